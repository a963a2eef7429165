"""The data of a study: read, check, sample, split, and encode the labels.

The search uses train and validation. Test is used once, for the verdict.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpo.config.schema import DataConfig
from hpo.core.errors import DataError
from hpo.finetune.data.labels import (
    encoder,
    is_missing,
    normalize,
    place,
    refuse_numbers,
    refuse_unlabelled,
    task_of,
    unlabelled,
)
from hpo.finetune.data.splits import set_aside, together
from hpo.finetune.data.tables import matching, read_table

SPLITS = ("train", "validation", "test")
Array = np.ndarray[Any, Any]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """The rows of one split.

    Attributes:
        texts: n first texts.
        pairs: n second texts, if a row has two.
        targets: [n] class indices (int64) or numbers (float32), or [n, labels] of 0 and 1 (float32).
        members: The group of each row, if the study names a column of groups.
        places: The source of each row, (file, row of the file, from 1), if known.
    """

    texts: list[str]
    pairs: list[str] | None
    targets: Array
    members: list[str] | None = None
    places: pd.Index[Any] | None = None

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Both texts of each row; the second is empty if rows have one text."""
        return list(zip(self.texts, self.pairs or [""] * len(self), strict=True))

    @cached_property
    def groups(self) -> Array:
        """[n] int64: rows with the same number are not independent, because of equal texts or a common group."""
        return together(self.rows, self.members)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.texts)


@dataclass(frozen=True)
class Dataset:
    """The data of a study.

    Attributes:
        task: Name in `TASKS`.
        labels: Label names by index; empty for regression.
        splits: `train`, `validation`, `test` -> rows.
        notes: Notes for the user: rows left out, duplicates and groups in two splits, empty texts.
        digest: SHA-256 of all rows of all splits.
    """

    task: str
    labels: tuple[str, ...]
    splits: dict[str, Split]
    notes: tuple[str, ...] = field(default=())
    digest: str = ""

    @property
    def label_shares(self) -> dict[str, float]:
        """Label -> its share of the training rows; empty for tasks other than `single_label`."""
        if self.task != "single_label":
            return {}
        counts = np.bincount(self.splits["train"].targets, minlength=len(self.labels))
        return dict(zip(self.labels, (counts / counts.sum()).tolist(), strict=True))


def load(config: DataConfig, task: str, seed: int, folder: Path) -> Dataset:
    """Read the data of a study.

    Args:
        config: Files or Hub data set, columns, splits.
        task: Name in `TASKS`, or `auto` to decide by the labels.
        seed: Seed of the sample and of the splits that are set aside.
        folder: The study file's folder.

    Raises:
        DataError: A file, column, label or split does not fit the task.
    """
    frames = _read(config, folder)
    log.info("checking the rows")
    notes = _prepared(frames, config)
    rng = np.random.default_rng(seed)
    if config.rows is not None and config.rows < len(frames["train"]):
        sample = np.sort(rng.permutation(len(frames["train"]))[: config.rows])
        frames["train"] = frames["train"].iloc[sample]
    resolved = task_of(frames["train"], config, task)
    if resolved == "single_label" and isinstance(config.label, str):
        refuse_numbers(frames["train"][config.label])
    set_aside(frames, config, resolved, rng)
    _refuse_empty(frames, config)
    labels, encode = encoder(frames["train"], config, resolved)
    splits = {name: _split(frames[name], config, encode(name, frames[name])) for name in SPLITS}
    _refuse_unlearnable(splits["train"])
    return Dataset(resolved, labels, splits, (*notes, *_notes(splits), *_shared_groups(splits)), _digest(splits))


def _read(config: DataConfig, folder: Path) -> dict[str, pd.DataFrame]:
    """Return the rows of train, and of the splits that are not set aside from it."""
    frames = {"train": matching(read_table(config, "train", config.train, folder), config)}
    for name in ("validation", "test"):
        setting = getattr(config, name)
        if not isinstance(setting, int | float):
            frames[name] = read_table(config, name, setting, folder)
    return frames


def _split(table: pd.DataFrame, config: DataConfig, targets: Array) -> Split:
    return Split(
        texts=list(table[config.text]),
        pairs=list(table[config.text_pair]) if config.text_pair else None,
        targets=targets,
        members=None if config.group is None else list(map(str, table[config.group])),
        places=table.index,
    )


def _prepared(frames: dict[str, pd.DataFrame], config: DataConfig) -> list[str]:
    """Normalise the labels and drop rows without one, as the study's options say; return notes on what was done.

    Raises:
        DataError: A row has no label, or no group.
    """
    notes = normalize(frames, config.label) if config.normalize_labels and isinstance(config.label, str) else []
    for split, table in frames.items():
        if config.unlabelled == "drop":
            empty = unlabelled(table, config)
            if empty.any():
                first = place(table.index[int(empty.argmax())])
                notes.append(
                    f"{empty.sum()} of {len(table)} rows of {split} have no label and are left out, first {first}"
                )
            frames[split] = table[~empty]
            if empty.all():
                raise DataError(f"no row of {split} has a label; give it a file with labels")
        else:
            refuse_unlabelled(split, table, config)
        if config.group is not None:
            _refuse_ungrouped(split, table, config.group)
    return notes


def _refuse_ungrouped(split: str, table: pd.DataFrame, column: str) -> None:
    ungrouped = np.array([is_missing(value) or str(value) == "" for value in table[column]], dtype=bool)
    if ungrouped.any():
        raise DataError(
            f"{split}: column {column!r} has no group in {ungrouped.sum()} rows, first in "
            f"{place(table.index[int(ungrouped.argmax())])}; name a group, one of its own if the row is alone"
        )


def _refuse_empty(frames: dict[str, pd.DataFrame], config: DataConfig) -> None:
    empty = [name for name in SPLITS if len(frames[name]) == 0]
    if empty:
        equal = "with the same text" if config.group is None else f"with the same text or the same {config.group!r}"
        raise DataError(
            f"the {' and '.join(empty)} split has no rows: rows {equal} stay in one split, and some "
            "rows of each class stay in train; give it files, or a larger share of train"
        )
    if len(frames["test"]) == 1:
        raise DataError(
            "the test split has 1 row, and two or more are needed to say how sure a difference is; give it files with "
            "more rows, or a larger number or share of train, e.g. data: {test: 0.1}"
        )


def _refuse_unlearnable(train: Split) -> None:
    if len(set(train.rows)) == 1:
        raise DataError(
            f"every row of train has the same text, {train.texts[0][:60]!r}: nothing can be learned. Name the column "
            "of the texts under data: text"
        )
    if (train.targets == train.targets[:1]).all():
        raise DataError(
            "every row of train has the same label: nothing can be learned. Name the column of the labels under data: "
            "label"
        )


# ---------------------------------------------------------------- notes


def _notes(splits: dict[str, Split]) -> list[str]:
    notes = []
    train = set(splits["train"].rows)
    for name in ("validation", "test"):
        shared = sum(row in train for row in splits[name].rows)
        if shared:
            notes.append(f"{shared} of {len(splits[name])} rows of {name} are in train too: its scores are optimistic")
    seen = set(splits["validation"].rows)
    if shared := sum(row in seen for row in splits["test"].rows):
        notes.append(
            f"{shared} of {len(splits['test'])} rows of test are in validation too, by which the search chooses: "
            "the verdict is optimistic"
        )
    empty = sum(not text.strip() for split in splits.values() for text in split.texts)
    if empty:
        notes.append(f"{empty} texts are empty")
    return notes


def _shared_groups(splits: dict[str, Split]) -> list[str]:
    """Return a note for every pair of splits with rows of the same group."""
    groups = {name: set(split.members or ()) for name, split in splits.items()}
    return [
        f"{len(common)} of {len(groups[name])} groups of {name} are in {other} too, e.g. {min(common)!r}: where rows "
        "of a group are alike, its scores are optimistic"
        for name, other in (("validation", "train"), ("test", "train"), ("test", "validation"))
        if (common := groups[name] & groups[other])
    ]


def _digest(splits: dict[str, Split]) -> str:
    digest = hashlib.sha256()
    for name in SPLITS:
        for text, pair in splits[name].rows:
            digest.update(f"{name}\0{text}\0{pair}\0".encode())
        digest.update(np.ascontiguousarray(splits[name].targets).tobytes())
    return digest.hexdigest()
