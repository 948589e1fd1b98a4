"""What Keel claims, measured: one script per claim, each prints one table."""
