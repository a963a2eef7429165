"""A model's scores of the choices of n examples, with the right choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hpo.tasks.classification.predictions import KINDS

Array = np.ndarray[Any, Any]

TASK = "multiple_choice"
KIND = KINDS["single_label"]
"""Of a row's choices one is right, as of the classes of a text."""


@dataclass(frozen=True)
class ChoicePredictions:
    """Predictions for n examples; see `hpo.tasks.task.Predictions`.

    Attributes:
        targets: [n] numbers of the right choices, from 0.
        logits: [n, choices] the scores of the choices.
        choices: The texts of the choices of each example.
    """

    targets: Array
    logits: Array
    choices: Sequence[tuple[str, ...]]

    @property
    def task(self) -> str:
        """Name in `TASKS`."""
        return TASK

    def __len__(self) -> int:
        """Return n."""
        return len(self.targets)

    def take(self, examples: Array) -> ChoicePredictions:
        """Return the predictions for some examples."""
        return ChoicePredictions(self.targets[examples], self.logits[examples], [self.choices[i] for i in examples])

    @cached_property
    def predicted(self) -> Array:
        """[n] numbers of the chosen ones."""
        return KIND.predicted(self.logits)

    @cached_property
    def probabilities(self) -> Array:
        """[n, choices]."""
        return KIND.probabilities(self.logits)

    @cached_property
    def losses(self) -> Array:
        """[n] the cross-entropy of the right choice."""
        import torch

        logits = torch.as_tensor(self.logits, dtype=torch.float64)
        return np.asarray(KIND.loss(logits, torch.as_tensor(self.targets), 0.0).numpy())

    @property
    def units(self) -> Array:
        """[n] one for each example."""
        return np.ones(len(self))

    @property
    def finite(self) -> bool:
        """Whether all scores are finite."""
        return bool(np.isfinite(self.logits).all())

    @property
    def varied(self) -> bool:
        """Whether the right choices have different numbers."""
        return not bool((self.targets == self.targets[:1]).all())

    @property
    def collapsed(self) -> bool:
        """Whether the model chooses the same number in every example, although different ones are right."""
        return bool((self.predicted == self.predicted[:1]).all()) and self.varied
