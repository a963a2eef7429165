"""The limits that a search space sets for trials, for which training prepares before the first trial starts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrialLimits:
    """The limits of a study's trials.

    Attributes:
        epochs: The largest number of epochs.
        smallest_batch: The smallest batch size.
        largest_batch: The largest batch size.
        layer_decay: Whether a trial may use layer-wise learning-rate decay.
        frozen_layers: The numbers of frozen layers that a trial may have.
        lora_rank: The largest rank of adapters; None if whole models are trained.
        lora_targets: The names in `LORA_TARGETS` that a trial may use.
    """

    epochs: int
    smallest_batch: int
    largest_batch: int
    layer_decay: bool = False
    frozen_layers: tuple[int, ...] = (0,)
    lora_rank: int | None = None
    lora_targets: tuple[str, ...] = ()
