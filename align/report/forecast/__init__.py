"""What a campaign would do next and what it would take, without doing any of it."""
