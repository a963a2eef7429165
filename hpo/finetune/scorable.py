"""The interfaces of fine-tuning arrays: training, speed, and predictions of written weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hpo.core.trainer import TrialArray
from hpo.finetune.setup import Setup
from hpo.tasks.task import Predictions


class ScorableArray(TrialArray, Protocol):
    """An array of fine-tuning trials whose weights can be scored on any split.

    Attributes:
        setup: The data, the model and the settings of its study; of several models those of the first.
        notes: What the user should know of how it runs.
    """

    setup: Setup
    notes: Sequence[str]

    @property
    def models(self) -> Mapping[str, OneModelArray]:
        """Model -> the array that trains its trials; of one model itself."""

    def of(self, params: Mapping[str, Any]) -> OneModelArray:
        """Return the array of the model of a trial with these hyperparameters."""

    def fastest_slots(self, most: int) -> int:
        """Return how many slots train the most examples a second; more than `most` are not needed."""

    def seconds_per_example(self) -> float:
        """Measure forward and backward passes over a few batches of the train split; no weight is changed."""


class OneModelArray(ScorableArray, Protocol):
    """An array whose trials have one pretrained model."""

    def predictions_of(self, folder: Path, split: str, *, generate: bool = False) -> Predictions:
        """Return the predictions for a split of written weights; call it while no trial is in training.

        With `generate`, a text is generated for each example too.
        """

    def as_trained(self, folder: Path, split: str) -> Predictions | None:
        """Return the predictions for a split of written weights on the base that they were trained on.

        None if it is the base that `predictions_of` takes. Call it while no trial is in training.
        """

    def untuned(self, split: str, *, generate: bool = False) -> Predictions | None:
        """Return the predictions for a split of the model as it was published.

        With `generate`, a text is generated for each example too. None if the model gives out no tokens, or lacks
        parameters, such as a head, that each trial draws.
        """
