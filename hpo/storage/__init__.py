"""Optuna storages, the locks of trials, and what a process knows and writes of a study."""
