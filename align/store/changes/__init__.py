"""Changes of a campaign file after its store was begun: found by name, allowed or refused."""
