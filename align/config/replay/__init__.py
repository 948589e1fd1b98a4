"""Settings of replay in a campaign file."""
