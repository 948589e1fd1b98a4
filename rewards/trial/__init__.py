"""Rewards tried on answers before a run is paid for."""
