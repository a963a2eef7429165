"""The hyperparameters of one trial of the built-in objective, typed and complete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpo.recipe.hyperparameters import defaults


@dataclass(frozen=True)
class TrainingParams:
    """The hyperparameters that training reads; `HYPERPARAMETERS` describes each field."""

    learning_rate: float
    batch_size: int
    epochs: int
    warmup_ratio: float
    warmup_steps: int | None
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
    frozen_layers: int
    sampling_temperature: float
    lora_rank: int
    lora_alpha: float
    lora_dropout: float
    lora_targets: str

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> TrainingParams:
        """Return the parameters of a trial, with defaults for those that are not given.

        Args:
            given: Name -> value, as the search space suggests it.

        Raises:
            TypeError: A name is not a hyperparameter of the built-in objective.
        """
        return cls(**{**defaults(given), **given})
