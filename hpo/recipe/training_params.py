"""The hyperparameters of one trial of the built-in objective, typed, with every default filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpo.recipe.hyperparameters import defaults


@dataclass(frozen=True)
class TrainingParams:
    """What training reads of a trial; the fields are the entries of `HYPERPARAMETERS`, which describes each."""

    learning_rate: float
    batch_size: int
    epochs: int
    warmup_ratio: float
    weight_decay: float
    schedule: str
    num_cycles: int
    power: float
    decay_ratio: float
    dropout: float | None
    layer_decay: float
    label_smoothing: float
    class_weights: str
    max_grad_norm: float
    lora_rank: int
    lora_alpha: float
    lora_dropout: float
    lora_targets: str

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> TrainingParams:
        """Return the parameters of a trial; what it does not give has its default.

        Args:
            given: Name -> value, as the search space suggests it.

        Raises:
            TypeError: A name is no hyperparameter of the built-in objective.
        """
        return cls(**{**defaults(given), **given})
