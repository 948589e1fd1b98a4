"""Rewards in processes of their own: what they may see and use, and how they end."""
