"""Notes on what may be wrong in a study's data, with counts and the first rows, for `hpo check`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from hpo.data.tables import place
from hpo.tasks.classification.labels import normal
from hpo.tasks.classification.texts import TextSplit
from hpo.tasks.dataset import Dataset, small_splits

Array = np.ndarray[Any, Any]

FEW_OF_A_CLASS = 10  # rows; each of 10 rows of a class is 0.1 of its recall
MOST_NAMED = 5  # labels or rows in one note
_IDENTIFIER = re.compile(r"[A-Za-z0-9_.\-]*[0-9][A-Za-z0-9_.\-]*")  # one word with a digit, e.g. 12, 3f2a, user_12


def doubts(data: Dataset, metric: str) -> list[str]:
    """Return notes on data that may make the result of a study useless.

    Args:
        data: The study's data.
        metric: Name in `METRICS` of what the search optimises.
    """
    return [
        *small_splits(data, metric, "row", share=bool(data.labels)),
        *_rare_classes(data, metric),
        *_spellings(data),
        *_contradictions(data),
        *_repeats(data),
        *_odd_texts(data),
    ]


def _where(split: TextSplit, row: int) -> str:
    return f"row {row + 1}" if split.places is None else place(split.places[row])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _counts(split: TextSplit, labels: int) -> Array:
    """Return [labels]: the number of rows with each label."""
    if split.targets.ndim == 2:
        return np.asarray(split.targets.sum(axis=0), dtype=np.int64)
    return np.bincount(split.targets, minlength=labels)


def _first(split: TextSplit, label: int) -> str:
    labelled = split.targets[:, label] == 1 if split.targets.ndim == 2 else split.targets == label
    return _where(split, int(labelled.argmax()))


# ---------------------------------------------------------------- sizes and classes


def _rare_classes(data: Dataset, metric: str) -> list[str]:
    """Return notes on classes with too few rows to learn or to measure them."""
    if not data.labels:
        return []
    counts = {name: _counts(split, len(data.labels)) for name, split in data.splits.items()}
    train = data.splits["train"]
    rare = [
        f"{data.labels[i]!r} ({counts['train'][i]}: {_first(train, i)})"
        for i in np.flatnonzero((counts["train"] > 0) & (counts["train"] <= 2)).tolist()
    ]
    message = "labels of one or two rows of train, from which nothing reliable is learned"
    notes = [f"{message}: {_listed(rare)}"] if rare else []
    measured = [len(data.labels) - 1] if metric.endswith("_binary") else list(range(len(data.labels)))
    by_class = metric not in ("accuracy", "loss") and not metric.endswith("_micro")
    for name, count in counts.items():
        absent = [repr(data.labels[i]) for i in np.flatnonzero(count == 0)]
        if absent:
            notes.append(f"no row of {name} has the label {_listed(absent)}")
        if len(np.flatnonzero(count)) == 1 and data.task == "single_label":
            only = data.labels[int(count.argmax())]
            notes.append(f"every row of {name} has the label {only!r}: a model that always says so is right")
        few = [f"{data.labels[i]!r} ({count[i]})" for i in measured if 0 < count[i] < FEW_OF_A_CLASS]
        if few and name != "train" and by_class:
            notes.append(f"{metric} depends on few rows of {name}, as these labels have fewer than ten: {_listed(few)}")
    return notes


def _spellings(data: Dataset) -> list[str]:
    """Return notes on labels that differ only in spelling, and on blank ones."""
    if not data.labels:
        return []
    counts = np.sum([_counts(split, len(data.labels)) for split in data.splits.values()], axis=0)
    spellings: dict[str, list[int]] = {}
    for i, name in enumerate(data.labels):
        spellings.setdefault(normal(name), []).append(i)
    several = [
        ", ".join(f"{data.labels[i]!r} ({counts[i]}: {_first_of_all(data, i)})" for i in same)
        for same in spellings.values()
        if len(same) > 1
    ]
    notes = [
        f"labels that differ only in case or blanks: {labels}; data: {{normalize_labels: true}} makes them one"
        for labels in several[:MOST_NAMED]
    ]
    blank = [i for i, name in enumerate(data.labels) if not name.strip()]
    notes += [f"the label {data.labels[i]!r} ({counts[i]}: {_first_of_all(data, i)}) is blank" for i in blank]
    return notes


def _first_of_all(data: Dataset, label: int) -> str:
    split = next(split for split in data.splits.values() if _counts(split, len(data.labels))[label])
    return _first(split, label)


# ---------------------------------------------------------------- rows


def _contradictions(data: Dataset) -> list[str]:
    """Return a note on equal texts with different labels."""
    seen: dict[tuple[str, str], dict[bytes, tuple[TextSplit, int]]] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for split in data.splits.values():
        for row, (texts, target) in enumerate(zip(split.contents, split.targets, strict=True)):
            seen.setdefault(texts, {}).setdefault(target.tobytes(), (split, row))
            counts[texts] += 1
    several = {texts: list(labels.values()) for texts, labels in seen.items() if len(labels) > 1}
    if not several:
        return []
    (one, i), (other, j) = next(iter(several.values()))[:2]
    return [
        f"texts with several labels: {len(several)}, in {sum(counts[texts] for texts in several)} rows; first: "
        f"{_where(one, i)} has {_label(data, one.targets[i])}, {_where(other, j)} {_label(data, other.targets[j])}"
    ]


def _label(data: Dataset, target: Any) -> str:
    if not data.labels:
        return f"{target:g}"
    if np.ndim(target) == 0:
        return repr(data.labels[int(target)])
    return "[" + ", ".join(repr(data.labels[i]) for i in np.flatnonzero(target)) + "]"


def _repeats(data: Dataset) -> list[str]:
    """Return notes on rows with the same text as an earlier row of their split."""
    notes = []
    for name, split in data.splits.items():
        first: dict[tuple[str, str], int] = {}
        repeats = [(i, first[texts]) for i, texts in enumerate(split.contents) if first.setdefault(texts, i) != i]
        if repeats:
            row, earlier = repeats[0]
            notes.append(
                f"{len(repeats)} of {len(split)} rows of {name} repeat the text of an earlier one, first "
                f"{_where(split, row)} that of {_where(split, earlier)}"
            )
    return notes


def _odd_texts(data: Dataset) -> list[str]:
    """Return notes on a text column that looks like an identifier, or has the same text in all rows."""
    train = data.splits["train"]
    notes = []
    for key, texts in (("text", train.texts), ("text_pair", train.pairs)):
        if texts is None:
            continue
        different = len(set(texts))
        identifiers = sum(_IDENTIFIER.fullmatch(text.strip()) is not None for text in texts)
        if different == 1:
            notes.append(f"the column of data.{key} has the same text in every row of train: {texts[0][:60]!r}")
        elif different >= 0.95 * len(texts) and identifiers >= 0.9 * len(texts):
            notes.append(
                f"the column of data.{key} looks like an identifier: {different} different ones in {len(texts)} rows "
                f"of train, nearly all one word with digits, e.g. {texts[0][:60]!r}. Name the column of the texts"
            )
    return notes
