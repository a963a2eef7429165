"""The interface of fine-tuning arrays: training, predictions of written weights, and speed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from hpo.core.trainer import TrialArray
from hpo.finetune.setup import Setup
from hpo.tasks.task import Predictions


class ScorableArray(TrialArray, Protocol):
    """An array of fine-tuning trials whose weights can be scored on any split.

    Attributes:
        setup: The data, the model and the settings of its study.
        notes: What the user should know of how it runs.
    """

    setup: Setup
    notes: Sequence[str]

    def predictions_of(self, folder: Path, split: str, *, generate: bool = False) -> Predictions:
        """Return the predictions for a split of written weights; call it while no trial is in training.

        With `generate`, a text is generated for each example too.
        """

    def untuned(self, split: str, *, generate: bool = False) -> Predictions | None:
        """Return the predictions for a split of the model as it was published.

        With `generate`, a text is generated for each example too. None if the model gives out no tokens, or lacks
        parameters, such as a head, that each trial draws.
        """

    def fastest_slots(self, most: int) -> int:
        """Return how many slots train the most examples a second; more than `most` are not needed."""

    def seconds_per_example(self) -> float:
        """Measure forward and backward passes over a few batches of the train split; no weight is changed."""
