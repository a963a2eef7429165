"""Pretrained models: loading, checks, and the state in which every trial starts."""
