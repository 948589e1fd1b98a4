"""Prompts and examples that rounds learn from, with the base model they are encoded for."""
