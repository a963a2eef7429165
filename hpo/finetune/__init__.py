"""Training: the built-in objective."""
