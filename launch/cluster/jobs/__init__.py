"""Campaigns as jobs of a Ray cluster: what is sent there, their logs, and their failures."""
