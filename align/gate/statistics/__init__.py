"""Statistical tests behind a verdict, as pure functions."""
