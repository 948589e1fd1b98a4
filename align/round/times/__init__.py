"""Wall time of rounds by what it was spent on."""
