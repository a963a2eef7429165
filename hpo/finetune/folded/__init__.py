"""Several trials as the slots of one folded model."""
