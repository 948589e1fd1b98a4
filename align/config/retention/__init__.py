"""Settings of what holds a round's policy to earlier rounds."""
