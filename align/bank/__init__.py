"""Adapter bank: keys that retrieve adapters by the prompt, and the folder that holds both."""
