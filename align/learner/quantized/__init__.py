"""Moments of the optimizer in 8 bits, by bitsandbytes."""
