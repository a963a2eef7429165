"""A model's predictions for the examples of several tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from hpo.tasks.task import Predictions

Array = np.ndarray[Any, Any]

TASK = "multitask"


@dataclass(frozen=True)
class PartPredictions:
    """The predictions for one of several tasks.

    Attributes:
        predictions: For the n examples of the task.
        metric: Name of its metric in `METRICS`.
        share: Share of its metric in the weighted mean.
        labels: Names of its labels, by index.
    """

    predictions: Predictions
    metric: str
    share: float
    labels: tuple[str, ...]


@dataclass(frozen=True)
class MultiPredictions:
    """Predictions for the examples of several tasks, one task after the other; see `hpo.tasks.task.Predictions`.

    Attributes:
        parts: Name of a task in the study -> its predictions.
    """

    parts: Mapping[str, PartPredictions]

    @property
    def task(self) -> str:
        """Name in `TASKS`."""
        return TASK

    @property
    def places(self) -> dict[str, slice]:
        """Name of a task -> where its examples are among all."""
        found, first = {}, 0
        for name, part in self.parts.items():
            found[name] = slice(first, first + len(part.predictions))
            first = found[name].stop
        return found

    def with_parts(self, predictions: Mapping[str, Any]) -> MultiPredictions:
        """Return the same with other predictions for some tasks."""
        parts = {
            name: replace(part, predictions=predictions.get(name, part.predictions))
            for name, part in self.parts.items()
        }
        return MultiPredictions(parts)

    def __len__(self) -> int:
        """Return the number of examples of all tasks."""
        return sum(len(part.predictions) for part in self.parts.values())

    def take(self, examples: Array) -> MultiPredictions:
        """Return the predictions for some examples."""
        chosen = {}
        for name, place in self.places.items():
            own = examples[(examples >= place.start) & (examples < place.stop)]
            chosen[name] = self.parts[name].predictions.take(own - place.start)
        return self.with_parts(chosen)

    @property
    def finite(self) -> bool:
        """Whether all outputs of all tasks are finite."""
        return all(part.predictions.finite for part in self.parts.values())

    @property
    def varied(self) -> bool:
        """Whether the expected answers differ in every task."""
        return all(part.predictions.varied for part in self.parts.values())

    @property
    def collapsed(self) -> bool:
        """Whether the model has collapsed on every task; where on some, their scores say so."""
        return all(part.predictions.collapsed for part in self.parts.values())

    @property
    def losses(self) -> Array:
        """[n]: the loss of each example, divided by the mean units of an example of its task."""
        return np.concatenate([part.predictions.losses / _mean_units(part) for part in self.parts.values()])

    @property
    def units(self) -> Array:
        """[n]: the units of each example, of which an example of each task has one on average."""
        return np.concatenate([part.predictions.units / _mean_units(part) for part in self.parts.values()])


def _mean_units(part: PartPredictions) -> float:
    units = part.predictions.units
    return float(units.mean()) if len(units) and units.any() else 1.0
