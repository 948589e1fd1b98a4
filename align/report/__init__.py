"""What people look at: live progress and the tables at the end."""
