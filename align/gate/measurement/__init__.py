"""Measuring a snapshot on suites, item by item."""
