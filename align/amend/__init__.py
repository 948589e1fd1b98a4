"""A campaign file that changed since its store was begun: what differs by name, and what may differ."""
