"""What the tasks whose models give out tokens have in common: scores of tokens, predictions, metrics."""
