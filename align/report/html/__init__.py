"""A campaign as one HTML page that needs nothing but itself: no script, no network, no other file."""

from align.report.html.page import render

__all__ = ["render"]
