"""Code that a model wrote, run in a process of its own against tests that stay with us."""
