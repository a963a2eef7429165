"""Hyperparameter optimisation for fine-tuning transformers."""
