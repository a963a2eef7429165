"""A model's scores of the choices of n examples, with the right choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpo.tasks.classification.predictions import KINDS, ClassifierOutputs

Array = np.ndarray[Any, Any]

TASK = "multiple_choice"
KIND = KINDS["single_label"]
"""Of a row's choices one is right, as of the classes of a text."""


@dataclass(frozen=True)
class ChoicePredictions(ClassifierOutputs):
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

    def take(self, examples: Array) -> ChoicePredictions:
        """Return the predictions for some examples."""
        return ChoicePredictions(self.targets[examples], self.logits[examples], [self.choices[i] for i in examples])
