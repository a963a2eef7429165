"""The examples of a study, by split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from hpo.data.keys import DataKeys

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("train", "validation", "test")
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Split(ABC):
    """The examples of one split. Each task has a kind of its own.

    Attributes:
        members: The group of each example, if there are groups.
        places: The source of each example, (file, row of the file, from 1), if known.
    """

    members: list[str] | None = None
    places: pd.Index[Any] | None = None

    @property
    @abstractmethod
    def contents(self) -> Sequence[Hashable]:
        """What each example says, without what is expected of a model; equal ones are duplicates."""

    @abstractmethod
    def hashed(self, name: str) -> Iterable[bytes]:
        """Yield all that the examples of the split of this name consist of, for the digest of the data."""

    @abstractmethod
    def as_rows(self, labels: Sequence[str]) -> list[dict[str, Any]]:
        """Return the examples as JSON values, with what is expected of a model, to stand beside predictions."""

    @cached_property
    def groups(self) -> Array:
        """[n] int64: examples with the same number are not independent: they say the same, or are of one group."""
        from hpo.data.splits import together

        return together(self.contents, self.members)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.contents)


SMALL_SPLIT = 100  # examples; a share of 100 has a 95 % margin of up to 0.1


@dataclass(frozen=True)
class Dataset:
    """The data of a study.

    Attributes:
        task: Name in `TASKS`.
        labels: Label names by index; empty where a task has none.
        splits: `train`, `validation`, `test` -> examples.
        notes: Notes for the user: rows left out, duplicates and groups in two splits, empty texts.
        digest: SHA-256 of all examples of all splits.
        keys: The keys of `data:` by which they were read.
        metric: What the study optimises, a name in `METRICS`; see `hpo.tasks.loading.with_metric`.
        others: What is measured beside it, names in `METRICS`.
    """

    task: str
    labels: tuple[str, ...]
    splits: dict[str, Any]
    notes: tuple[str, ...] = field(default=())
    digest: str = ""
    keys: DataKeys = field(default_factory=DataKeys)
    metric: str = ""
    others: tuple[str, ...] = ()


def small_splits(data: Dataset, metric: str, example: str, *, share: bool) -> list[str]:
    """Return a note for each split of few examples; those that say the same or are of one group count as one.

    Args:
        data: The study's data.
        metric: Name in `METRICS` of what the search optimises.
        example: What an example is called.
        share: Whether the metric is like a share of right answers, whose uncertainty is known from their number.
    """
    notes = []
    for name in ("validation", "test"):
        examples, draws = len(data.splits[name]), int(data.splits[name].groups.max()) + 1
        if draws >= SMALL_SPLIT:
            continue
        margin = f"; a share of right answers is uncertain by up to {1.96 * (0.25 / draws) ** 0.5:.2f} (95 %)"
        has = f"only {examples} {example}s"
        if examples != draws:
            has = f"{examples} {example}s, but only {draws} that do not belong together,"
        notes.append(f"{name} has {has} to measure {metric} on{margin if share else ''}")
    return notes
