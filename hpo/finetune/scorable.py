"""The interfaces of fine-tuning arrays: training, speed, and predictions of written weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hpo.config.schema import Decoding
from hpo.core.trainer import TrialArray
from hpo.finetune.memory import Memory
from hpo.finetune.setup import Setup
from hpo.tasks.task import Predictions

Array = np.ndarray[Any, Any]


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

    def memory(self) -> Memory | None:
        """Estimate the peak of the memory that training takes, with all slots occupied; no weight is changed.

        None where it cannot be told: for a trial that is divided over several processes, and on MPS.
        """

    def memory_used(self) -> int | None:
        """Return how far the peak until now is above what was used before the model was loaded.

        On a CPU it is the memory of the process, else what PyTorch has allocated. None if it cannot be told.
        """

    def memory_free(self) -> int | None:
        """Return the bytes that could be used on the device before the model was loaded; None if unknown."""


class OneModelArray(ScorableArray, Protocol):
    """An array whose trials have one pretrained model."""

    def predictions_of(self, folder: Path, split: str, *, decoding: Decoding | None = None) -> Predictions:
        """Return the predictions for a split of written weights; call it while no trial is in training.

        With `decoding`, a text is generated for each example too.
        """

    def as_trained(self, folder: Path, split: str) -> Predictions | None:
        """Return the predictions for a split of written weights on the base that they were trained on.

        None if it is the base that `predictions_of` takes. Call it while no trial is in training.
        """

    def untuned(self, split: str, *, decoding: Decoding | None = None) -> Predictions | None:
        """Return the predictions for a split of the model as it was published.

        With `decoding`, a text is generated for each example too. None if the model gives out no tokens, or lacks
        parameters, such as a head, that each trial draws.
        """

    def written(self, folder: Path, split: str, rows: Array, decodings: Sequence[Decoding]) -> Iterator[list[str]]:
        """Load written weights, and return what they generate for rows of a split, for one way of decoding at a time.

        Nothing is generated before it is asked for.
        """

    def set_decoding(self, folder: Path, decoding: Decoding) -> None:
        """Write a way of decoding into the settings of written weights, which are exported with them."""
