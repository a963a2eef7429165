"""What rows mean: losses, predictions and metrics."""
