"""The data of several tasks: the data of each, and splits in which the examples of one follow those of another."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from hpo.core.errors import DataError
from hpo.tasks.dataset import Dataset, Split

if TYPE_CHECKING:
    from hpo.tasks.task import Task

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Part:
    """One of several tasks, with its data.

    Attributes:
        task: The task.
        data: Its data, with its metric.
        weight: Weight of its metric in the weighted mean.
    """

    task: Task
    data: Dataset
    weight: float


@dataclass(frozen=True)
class MultiDataset(Dataset):
    """The data of several tasks.

    Attributes:
        parts: Name of a task in the study -> the task with its data, in the order of the study file.
    """

    parts: Mapping[str, Part] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MultiSplit(Split):
    """A split of several tasks.

    Attributes:
        name: `train`, `validation` or `test`.
        parts: As of `MultiDataset`.
    """

    name: str
    parts: Mapping[str, Part]

    @property
    def each(self) -> dict[str, Split]:
        """Name of a task -> its split."""
        return {name: part.data.splits[self.name] for name, part in self.parts.items()}

    @property
    def contents(self) -> Sequence[Hashable]:
        """What each example says, with the task that it is of."""
        return [(name, content) for name, split in self.each.items() for content in split.contents]

    def hashed(self, name: str) -> Iterable[bytes]:
        """Yield what the examples of each task consist of."""
        for task, split in self.each.items():
            yield task.encode()
            yield from split.hashed(name)

    def as_rows(self, labels: Sequence[str]) -> list[dict[str, Any]]:
        """Return the examples as JSON values, with the name of their task."""
        return [
            {"task": name, **row}
            for name, part in self.parts.items()
            for row in part.data.splits[self.name].as_rows(part.data.labels)
        ]

    @cached_property
    def groups(self) -> Array:
        """[n] int64: groups of examples; examples of two tasks are of different groups."""
        found, first = [], 0
        for split in self.each.values():
            found.append(split.groups + first)
            first += int(split.groups.max()) + 1
        return np.concatenate(found)

    def __len__(self) -> int:
        """Return the number of examples of all tasks."""
        return sum(map(len, self.each.values()))


@contextmanager
def naming(task: str) -> Iterator[None]:
    """Within it, an error in data names the task."""
    try:
        yield
    except DataError as error:
        raise DataError(f"task {task}: {error}") from None
