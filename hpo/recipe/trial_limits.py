"""What a search space allows of trials, as far as training prepares for it before the first one starts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrialLimits:
    """The limits of a study's trials.

    Attributes:
        epochs: The most epochs.
        smallest_batch: The smallest batch size.
        layer_decay: Whether a trial may have layer-wise decay.
        lora_rank: The largest rank of adapters; None where whole models are trained.
        lora_targets: All the names in `LORA_TARGETS` that a trial may have.
    """

    epochs: int
    smallest_batch: int
    layer_decay: bool = False
    lora_rank: int | None = None
    lora_targets: tuple[str, ...] = ()
