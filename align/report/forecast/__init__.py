"""Forecast of a campaign's next steps and their cost, without doing any of them."""
