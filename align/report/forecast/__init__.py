"""Forecasts of a campaign: what it would do next and take, without doing any of it."""
