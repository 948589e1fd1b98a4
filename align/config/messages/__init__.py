"""Messages about mistakes in a file: where each was written, what is expected there, what was given."""
