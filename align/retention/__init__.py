"""Methods that hold a policy to what earlier rounds taught it."""
