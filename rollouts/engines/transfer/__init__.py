"""New weights into live engines: carriers, vLLM's weight-transfer backends, and the guards around them."""
