"""What all packages know of a model's predictions, and of a cheap model that a fine-tuned one should beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]


class Predictions(Protocol):
    """A model's predictions for the n examples of a split, together with what is expected of them."""

    @property
    def task(self) -> str:
        """Name in `TASKS`."""

    def __len__(self) -> int:
        """Return n."""

    def take(self, examples: Array) -> Predictions:
        """Return the predictions for some examples, e.g. those of a bootstrap sample."""

    @property
    def finite(self) -> bool:
        """Whether all outputs of the model were finite."""

    @property
    def collapsed(self) -> bool:
        """Whether the model gives every example the same answer although different ones are expected."""

    @property
    def varied(self) -> bool:
        """Whether the examples have different expected answers; if not, some metrics are not defined."""

    @property
    def losses(self) -> Array:
        """[n]: the loss of each example, summed over its units, without label smoothing and class weights."""

    @property
    def units(self) -> Array:
        """[n]: the units of each example."""


@dataclass(frozen=True)
class Reference:
    """A cheap model that a fine-tuned one should beat.

    Attributes:
        says: Its name in words, to begin a sentence with.
        predictions: Its predictions for the test split.
        bounded: On how many of the training rows it learned, in words, if not on all.
    """

    says: str
    predictions: Predictions
    bounded: str = ""
