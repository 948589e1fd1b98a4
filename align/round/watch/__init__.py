"""Watch over a round for a policy that games its reward."""
