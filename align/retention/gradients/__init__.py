"""Methods that turn the gradient or the optimizer's step away from what earlier rounds need."""
