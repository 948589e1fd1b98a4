"""Drawings of the page: panels, curves, intervals, and the coloured matrix."""
