"""Output for people: live progress, tables, pages, cards and forecasts."""
