"""Search spaces: parameters, conditions, and how a study file writes them."""
