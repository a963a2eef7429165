"""Classification and regression of texts: labels, losses, predictions, metrics, baselines."""
