"""Several tasks at once: one encoder that they share, and a head for each."""
