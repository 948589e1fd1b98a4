"""Replay of what earlier rounds taught: stored prompts and examples, and draws that choose among them."""
