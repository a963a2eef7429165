"""Read the data of a study: check, sample and split the rows, as its task reads them.

The search uses train and validation. Test is used once, for the verdict.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpo.core.errors import DataError
from hpo.data.keys import DataKeys
from hpo.data.splits import set_aside
from hpo.data.tables import is_missing, matching, place
from hpo.tasks import metrics
from hpo.tasks.dataset import SPLITS, Dataset, Split
from hpo.tasks.registry import AUTO, TASKS, reader_of
from hpo.tasks.task import Task

log = logging.getLogger(__name__)


def load(keys: DataKeys, task: str, seed: int, folder: Path) -> Dataset:
    """Read the data of a study.

    Args:
        keys: Files or Hub data set, columns, splits.
        task: Name in `TASKS`, or `auto` to decide by the labels.
        seed: Seed of the sample and of the splits that are set aside.
        folder: The study file's folder.

    Raises:
        DataError: A file, column, label or split does not fit the task.
    """
    reader = reader_of(task)
    frames = _read(reader, keys, folder)
    log.info("checking the rows")
    notes = reader.prepared(frames, keys)
    for name, table in frames.items():
        _refuse_ungrouped(name, table, keys.group)
    rng = np.random.default_rng(seed)
    if keys.rows is not None and keys.rows < len(frames["train"]):
        sample = np.sort(rng.permutation(len(frames["train"]))[: keys.rows])
        frames["train"] = frames["train"].iloc[sample]
    reader = reader.resolved(frames["train"], keys, task == AUTO)
    grouped = reader.groups(frames["train"], keys) is not None
    set_aside(
        frames,
        keys,
        contents=lambda table: reader.contents(table, keys),
        groups=lambda table: reader.groups(table, keys),
        strata=lambda table: reader.strata(table, keys),
        rng=rng,
    )
    _refuse_empty(frames, keys, grouped)
    labels, splits = reader.splits(frames, keys)
    data = Dataset(reader.name, labels, splits, keys=keys)
    reader.refuse_unlearnable(data)
    found = (*notes, *_shared(splits, reader.example), *reader.notes(data), *_shared_groups(splits))
    return Dataset(reader.name, labels, splits, found, _digest(splits), keys)


def with_metric(data: Dataset, metric: str | None, others: Iterable[str] = ()) -> Dataset:
    """Return the data with the metric of the study, and with others that are measured beside it.

    Args:
        data: The data.
        metric: The metric that the study file names; None takes the default for this data.
        others: The other metrics.

    Raises:
        DataError: A metric is not defined for the task, or nothing can be chosen by it on a split.
    """
    task = TASKS[data.task]
    chosen = metrics.chosen(metric, data.task, task.default_metric(data))
    for name in (chosen, *others):
        task.refuse_metric(metrics.chosen(name, data.task, name), data)
    return replace(data, metric=chosen, others=tuple(others))


def _read(reader: Task, keys: DataKeys, folder: Path) -> dict[str, pd.DataFrame]:
    """Return the rows of train, and of the splits that are not set aside from it."""
    frames = {"train": matching(reader.table(keys, "train", keys.train, folder), keys)}
    for name in ("validation", "test"):
        setting = getattr(keys, name)
        if not isinstance(setting, int | float):
            frames[name] = reader.table(keys, name, setting, folder)
    return frames


def _refuse_ungrouped(split: str, table: pd.DataFrame, column: str | None) -> None:
    if column is None:
        return
    ungrouped = np.array([is_missing(value) or str(value) == "" for value in table[column]], dtype=bool)
    if ungrouped.any():
        raise DataError(
            f"{split}: column {column!r} has no group in {ungrouped.sum()} rows, first in "
            f"{place(table.index[int(ungrouped.argmax())])}; name a group, one of its own if the row is alone"
        )


def _refuse_empty(frames: dict[str, pd.DataFrame], keys: DataKeys, grouped: bool) -> None:
    empty = [name for name in SPLITS if len(frames[name]) == 0]
    if empty:
        group = f"the same {keys.group!r}" if keys.group else "of one document"
        equal = f"with the same text or {group}" if grouped else "with the same text"
        raise DataError(
            f"the {' and '.join(empty)} split has no rows: rows {equal} stay in one split, and some "
            "rows of each class stay in train; give it files, or a larger share of train"
        )
    if len(frames["test"]) == 1:
        raise DataError(
            "the test split has 1 row, and two or more are needed to say how sure a difference is; give it files with "
            "more rows, or a larger number or share of train, e.g. data: {test: 0.1}"
        )


# ---------------------------------------------------------------- notes


def _shared(splits: Mapping[str, Split], example: str) -> list[str]:
    """Return a note for every pair of splits with equal examples."""
    notes = []
    train = set(splits["train"].contents)
    for name in ("validation", "test"):
        shared = sum(content in train for content in splits[name].contents)
        if shared:
            notes.append(
                f"{shared} of {len(splits[name])} {example}s of {name} are in train too: its scores are optimistic"
            )
    seen = set(splits["validation"].contents)
    if shared := sum(content in seen for content in splits["test"].contents):
        notes.append(
            f"{shared} of {len(splits['test'])} {example}s of test are in validation too, by which the search chooses: "
            "the verdict is optimistic"
        )
    return notes


def _shared_groups(splits: Mapping[str, Split]) -> list[str]:
    """Return a note for every pair of splits with rows of the same group."""
    groups = {name: set(split.members or ()) for name, split in splits.items()}
    return [
        f"{len(common)} of {len(groups[name])} groups of {name} are in {other} too, e.g. {min(common)!r}: where rows "
        "of a group are alike, its scores are optimistic"
        for name, other in (("validation", "train"), ("test", "train"), ("test", "validation"))
        if (common := groups[name] & groups[other])
    ]


def _digest(splits: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all examples; of classification as earlier versions computed it."""
    digest = hashlib.sha256()
    for name in SPLITS:
        for part in splits[name].hashed(name):
            digest.update(part)
    return digest.hexdigest()
