"""A snapshot as an ordinary model folder with its model card."""
