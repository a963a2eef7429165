"""Texts with their targets: the examples of classification and regression."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpo.core.errors import DataError
from hpo.tasks.dataset import SPLITS, Split

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class TextSplit(Split):
    """Texts with their targets.

    Attributes:
        texts: n first texts.
        pairs: n second texts, if an example has two.
        targets: [n] class indices (int64) or numbers (float32), or [n, labels] of 0 and 1 (float32).
    """

    texts: list[str]
    pairs: list[str] | None
    targets: Array

    @property
    def contents(self) -> list[tuple[str, str]]:
        """Both texts of each example; the second is empty if examples have one text."""
        return list(zip(self.texts, self.pairs or [""] * len(self.texts), strict=True))

    def hashed(self, name: str) -> Iterator[bytes]:
        """Yield texts and targets."""
        for text, pair in self.contents:
            yield f"{name}\0{text}\0{pair}\0".encode()
        yield np.ascontiguousarray(self.targets).tobytes()

    def as_rows(self, labels: Sequence[str]) -> list[dict[str, Any]]:
        """Return the texts and their labels: a name, a list of names, or a number."""
        rows: list[dict[str, Any]] = [{"text": text} for text in self.texts]
        if self.pairs is not None:
            rows = [{**row, "text_pair": pair} for row, pair in zip(rows, self.pairs, strict=True)]
        return [{**row, "label": label} for row, label in zip(rows, self._labels(labels), strict=True)]

    def _labels(self, names: Sequence[str]) -> list[Any]:
        if not names:
            return [float(value) for value in self.targets]
        if self.targets.ndim == 2:
            return [[name for name, yes in zip(names, row, strict=True) if yes] for row in self.targets]
        return [names[index] for index in self.targets]


def refuse_unlearnable(train: TextSplit) -> None:
    """Refuse data from which nothing can be learned.

    Raises:
        DataError: All texts, or all targets, of train are equal.
    """
    if len(set(train.contents)) == 1:
        raise DataError(
            f"every row of train has the same text, {train.texts[0][:60]!r}: nothing can be learned. Name the column "
            "of the texts under data: text"
        )
    if (train.targets == train.targets[:1]).all():
        raise DataError(
            "every row of train has the same label: nothing can be learned. Name the column of the labels under data: "
            "label"
        )


def shares(train: TextSplit, labels: Sequence[str]) -> dict[str, float]:
    """Return label -> its share of the training rows, which have one label each."""
    counts = np.bincount(train.targets, minlength=len(labels))
    return dict(zip(labels, (counts / counts.sum()).tolist(), strict=True))


def empty_texts(splits: Mapping[str, TextSplit]) -> list[str]:
    """Return a note on texts that are empty."""
    empty = sum(not text.strip() for name in SPLITS for text in splits[name].texts)
    return [f"{empty} texts are empty"] if empty else []
