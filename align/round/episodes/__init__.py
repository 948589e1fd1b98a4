"""Episodes of a round: the environments that its policy acts in."""
