"""Rows in, three encoded splits out: read, check, sample, split, encode the labels.

The search sees train and validation; test is there for one look at the end.
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

from hpo.config.inputs import no_column
from hpo.config.paths import expand
from hpo.config.schema import DataConfig
from hpo.core.errors import DataError
from hpo.finetune.data.labels import (
    encoder,
    is_missing,
    no_missing,
    normalize,
    place,
    refuse_numbers,
    task_of,
    unlabelled,
)
from hpo.finetune.data.readers import Dialect, read_rows
from hpo.finetune.data.splits import set_aside, together

SPLITS = ("train", "validation", "test")
Array = np.ndarray[Any, Any]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """The rows of one split.

    Attributes:
        texts: First texts, n of them.
        pairs: Second texts, if the task has pairs.
        targets: [n] class indices (int64) or numbers (float32), or [n, labels] of 0 and 1 (float32).
        members: The group of each row, n of them, if the study names a column of groups.
        places: Where each row is from: (file, row of the file, from 1), if known.
    """

    texts: list[str]
    pairs: list[str] | None
    targets: Array
    members: list[str] | None = None
    places: pd.Index[Any] | None = None

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Both texts of each row; the second is empty if the task has no pairs."""
        return list(zip(self.texts, self.pairs or [""] * len(self), strict=True))

    @cached_property
    def groups(self) -> Array:
        """[n] int64: rows with the same number are no independent draws, as they have equal texts or one group."""
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
        notes: What the user should know: duplicates across splits, empty texts, label shares.
        digest: SHA-256 of every row of every split.
    """

    task: str
    labels: tuple[str, ...]
    splits: dict[str, Split]
    notes: tuple[str, ...] = field(default=())
    digest: str = ""

    @property
    def label_shares(self) -> dict[str, float]:
        """Label -> its share of the training rows; empty where a row has not one label."""
        if self.task != "single_label":
            return {}
        counts = np.bincount(self.splits["train"].targets, minlength=len(self.labels))
        return dict(zip(self.labels, (counts / counts.sum()).tolist(), strict=True))


def load(config: DataConfig, task: str, seed: int, folder: Path) -> Dataset:
    """Read the data of a study.

    Args:
        config: Files or Hub data set, columns, splits.
        task: Name in `TASKS`, or `auto` to look at the labels.
        seed: Seeds the sample and the splits that are made.
        folder: The study file's folder.

    Raises:
        DataError: A file, column, label or split is not as the task needs it.
    """
    frames = {"train": _matching(_table(config, "train", config.train, folder), config)}
    for name in ("validation", "test"):
        setting = getattr(config, name)
        if not isinstance(setting, int | float):
            frames[name] = _table(config, name, setting, folder)
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
    splits = {
        name: Split(
            list(table[config.text]),
            list(table[config.text_pair]) if config.text_pair else None,
            encode(name, table),
            None if config.group is None else list(map(str, table[config.group])),
            table.index,
        )
        for name, table in ((name, frames[name]) for name in SPLITS)
    }
    _refuse_unlearnable(splits["train"])
    return Dataset(resolved, labels, splits, (*notes, *_notes(splits), *_shared_groups(splits)), _digest(splits))


# ---------------------------------------------------------------- reading


def _columns(config: DataConfig) -> list[str]:
    labels = [config.label] if isinstance(config.label, str) else list(config.label)
    return [*filter(None, (config.text, config.text_pair, config.group)), *labels]


def _table(config: DataConfig, split: str, source: str | list[str], folder: Path) -> pd.DataFrame:
    """Return the rows of one split with the columns that matter, texts as strings, indexed by (file, row from 1)."""
    if config.dataset is not None:
        log.info("reading split %s of %s", source, config.dataset)
        frame = _from_hub(config, str(source))
        frames = [(f"{config.dataset} ({source})", frame)]
    else:
        paths = expand(source, folder)
        dialect = Dialect(config.encoding, config.separator)
        frames = [(str(path), _read(path, dialect)) for path in paths]
    wanted = [*_columns(config), *(config.where if split == "train" else ())]
    for name, frame in frames:
        missing = [column for column in dict.fromkeys(wanted) if column not in frame.columns]
        if missing:
            said = no_column(name, missing, list(map(str, frame.columns)))
            raise DataError(f"{said}. Name the columns under data: text, text_pair, label, where, group")
        if frame.empty:
            raise DataError(f"{name} has no rows")
    numbered_rows = [frame[list(dict.fromkeys(wanted))].set_axis(range(1, len(frame) + 1)) for _, frame in frames]
    table = pd.concat(numbered_rows, keys=[name for name, _ in frames])
    for column in filter(None, (config.text, config.text_pair)):
        table[column] = [("" if is_missing(text) else str(text)) for text in table[column]]
    return table


def _read(path: Path, dialect: Dialect) -> pd.DataFrame:
    log.info("reading %s", path)
    return read_rows(path, dialect)


def _from_hub(config: DataConfig, split: str) -> pd.DataFrame:
    import datasets

    assert config.dataset is not None
    datasets.disable_progress_bars()
    try:
        data = datasets.load_dataset(config.dataset, config.subset, split=split)
    except ValueError as error:
        raise DataError(f"data set {config.dataset!r}: {error}") from None
    except Exception as error:  # the network, the cache and the Hub each raise their own kinds
        raise DataError(
            f"data set {config.dataset!r} cannot be had from the Hub ({type(error).__name__}). Check its name and the "
            "network, or use local files: data: {train: train.csv}"
        ) from None
    label = data.features.get(config.label) if isinstance(config.label, str) else None
    frame: pd.DataFrame = data.to_pandas()
    names = getattr(label, "names", None)
    if names is not None:
        indices = frame[config.label].to_numpy()
        if (indices < 0).any() and config.unlabelled == "error":
            raise DataError(f"split {split!r} of {config.dataset!r} has no public labels; set test: 0.1 to make one")
        frame[config.label] = [names[index] if index >= 0 else None for index in indices]
    return frame


def _matching(table: pd.DataFrame, config: DataConfig) -> pd.DataFrame:
    for column, wanted in config.where.items():
        kept = table[[str(value) == str(wanted) for value in table[column]]]
        if kept.empty:
            seen = ", ".join(sorted({str(value) for value in table[column]})[:8])
            raise DataError(f"no row has {column} = {wanted!r}; the column has {seen}")
        table = kept
    return table


def _prepared(frames: dict[str, pd.DataFrame], config: DataConfig) -> list[str]:
    """Normalise the labels and leave out the rows without one, if the study says so; return what has been done.

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
            no_missing(split, table, config)
        if config.group is not None:
            without = np.array([is_missing(value) or str(value) == "" for value in table[config.group]], dtype=bool)
            if without.any():
                raise DataError(
                    f"{split}: column {config.group!r} has no group in {without.sum()} rows, first in "
                    f"{place(table.index[int(without.argmax())])}; name a group, one of its own if the row is alone"
                )
    return notes


def _refuse_empty(frames: dict[str, pd.DataFrame], config: DataConfig) -> None:
    empty = [name for name in SPLITS if len(frames[name]) == 0]
    if empty:
        whole = "with the same text" if config.group is None else f"with the same text or the same {config.group!r}"
        raise DataError(
            f"the {' and '.join(empty)} split has no rows: rows {whole} stay on one side, and train keeps "
            "some of each class; give it files, or a larger share of train"
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


# ---------------------------------------------------------------- what to know


def _notes(splits: dict[str, Split]) -> list[str]:
    notes = []
    train = set(splits["train"].rows)
    for name in ("validation", "test"):
        shared = sum(row in train for row in splits[name].rows)
        if shared:
            notes.append(f"{shared} of {len(splits[name])} rows of {name} are in train too: its scores flatter")
    seen = set(splits["validation"].rows)
    if shared := sum(row in seen for row in splits["test"].rows):
        notes.append(
            f"{shared} of {len(splits['test'])} rows of test are in validation too, by which the search chooses: "
            "the verdict flatters"
        )
    empty = sum(not text.strip() for split in splits.values() for text in split.texts)
    if empty:
        notes.append(f"{empty} texts are empty")
    return notes


def _shared_groups(splits: dict[str, Split]) -> list[str]:
    """Return a note for every two splits that have rows of one group."""
    groups = {name: set(split.members or ()) for name, split in splits.items()}
    return [
        f"{len(common)} of {len(groups[name])} groups of {name} are in {other} too, e.g. {min(common)!r}: where rows "
        "of a group are alike, its scores flatter"
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
