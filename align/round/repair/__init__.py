"""Repairs that are tried before a candidate that the gate refused is given up."""
