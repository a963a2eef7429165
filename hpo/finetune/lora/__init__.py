"""LoRA adapters on a frozen model."""
