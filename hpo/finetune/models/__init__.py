"""Pretrained models: loaded, checked, and put back to where every trial starts."""
