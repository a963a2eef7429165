"""Running studies: trials in slots, checkpoints, workers."""
