"""Rows in, three encoded splits out: read, check, sample, split, encode the labels.

The search sees train and validation; test is there for one look at the end.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpo.errors import DataError
from hpo.files import expand
from hpo.finetune.labels import encoder, is_missing, no_missing, refuse_numbers, task_of
from hpo.finetune.readers import read_rows
from hpo.settings import DataConfig

SPLITS = ("train", "validation", "test")
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Split:
    """The rows of one split.

    Attributes:
        texts: First texts, n of them.
        pairs: Second texts, if the task has pairs.
        targets: [n] class indices (int64) or numbers (float32), or [n, labels] of 0 and 1 (float32).
    """

    texts: list[str]
    pairs: list[str] | None
    targets: Array

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
    frames = {"train": _table(config, "train", config.train, folder)}
    for name in ("validation", "test"):
        setting = getattr(config, name)
        if not isinstance(setting, int | float):
            frames[name] = _table(config, name, setting, folder)
    train = _matching(frames["train"], config)
    for name, table in {**frames, "train": train}.items():
        no_missing(name, table, config)
    rng = np.random.default_rng(seed)
    if config.rows is not None and config.rows < len(train):
        train = train.iloc[np.sort(rng.permutation(len(train))[: config.rows])]
    frames["train"] = train.reset_index(drop=True)
    resolved = task_of(frames["train"], config, task)
    if resolved == "single_label" and isinstance(config.label, str):
        refuse_numbers(frames["train"][config.label])
    _set_aside(frames, config, resolved, rng)
    empty = [name for name in SPLITS if len(frames[name]) == 0]
    if empty:
        raise DataError(
            f"the {' and '.join(empty)} split has no rows: rows with the same text stay on one side, and train keeps "
            "some of each class; give it files, or a larger share of train"
        )
    if len(frames["test"]) == 1:
        raise DataError(
            "the test split has 1 row, and two or more are needed to say how sure a difference is; give it files with "
            "more rows, or a larger number or share of train, e.g. data: {test: 0.1}"
        )
    labels, encode = encoder(frames["train"], config, resolved)
    splits = {
        name: Split(
            list(frames[name][config.text]),
            list(frames[name][config.text_pair]) if config.text_pair else None,
            encode(name, frames[name]),
        )
        for name in SPLITS
    }
    return Dataset(resolved, labels, splits, tuple(_notes(splits)), _digest(splits))


# ---------------------------------------------------------------- reading


def _columns(config: DataConfig) -> list[str]:
    labels = [config.label] if isinstance(config.label, str) else list(config.label)
    return [config.text, *([config.text_pair] if config.text_pair else []), *labels]


def _table(config: DataConfig, split: str, source: str | list[str], folder: Path) -> pd.DataFrame:
    """Return the rows of one split with the columns that matter, texts as strings."""
    if config.dataset is not None:
        frame = _from_hub(config, str(source))
        frames = [(f"{config.dataset} ({source})", frame)]
    else:
        paths = expand(source, folder)
        frames = [(str(path), read_rows(path)) for path in paths]
    wanted = [*_columns(config), *(config.where if split == "train" else ())]
    for name, frame in frames:
        missing = [column for column in dict.fromkeys(wanted) if column not in frame.columns]
        if missing:
            raise DataError(
                f"{name} has no column {', '.join(map(repr, missing))}; it has {', '.join(map(str, frame.columns))}. "
                + (_separated(frame) or "Name the columns under data: text, text_pair, label, where")
            )
        if frame.empty:
            raise DataError(f"{name} has no rows")
    table = pd.concat([frame[list(dict.fromkeys(wanted))] for _, frame in frames], ignore_index=True)
    for column in filter(None, (config.text, config.text_pair)):
        table[column] = [("" if is_missing(text) else str(text)) for text in table[column]]
    return table


def _separated(frame: pd.DataFrame) -> str:
    """Return what to do where a table's only column looks like several."""
    name = str(frame.columns[0])
    found = next((sign for sign in (";", "\t", "|", ",") if len(frame.columns) == 1 and sign in name), None)
    return f"Its fields look separated by {found!r}: save it with commas, or with tabs as .tsv" if found else ""


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
        if (frame[config.label] < 0).any():
            raise DataError(f"split {split!r} of {config.dataset!r} has no public labels; set test: 0.1 to make one")
        frame[config.label] = [names[index] for index in frame[config.label]]
    return frame


def _matching(table: pd.DataFrame, config: DataConfig) -> pd.DataFrame:
    for column, wanted in config.where.items():
        kept = table[[str(value) == str(wanted) for value in table[column]]]
        if kept.empty:
            seen = ", ".join(sorted({str(value) for value in table[column]})[:8])
            raise DataError(f"no row has {column} = {wanted!r}; the column has {seen}")
        table = kept
    return table


# ---------------------------------------------------------------- splitting


def _set_aside(frames: dict[str, pd.DataFrame], config: DataConfig, task: str, rng: np.random.Generator) -> None:
    """Take the splits that have no files out of train: stratified, seeded, exact duplicates on one side."""
    pool = frames["train"]
    total = len(pool)
    for name in ("test", "validation"):
        share = getattr(config, name)
        if not isinstance(share, int | float):
            continue
        wanted = round(share * total) if isinstance(share, float) else share
        rest = len(frames["train"])
        if not 0 < wanted < rest:
            raise DataError(
                f"{name}: {share} asks for {wanted} rows of the {rest} that are left of train; give it another share "
                "or number, or a file"
            )
        chosen = _stratified(frames["train"], config, task, wanted, rng)
        frames[name] = frames["train"][chosen].reset_index(drop=True)
        frames["train"] = frames["train"][~chosen].reset_index(drop=True)


def _stratified(table: pd.DataFrame, config: DataConfig, task: str, wanted: int, rng: np.random.Generator) -> Array:
    """Return which rows to set aside: about `wanted`, classes in proportion, duplicates together. [n] bool."""
    keys = list(zip(*(table[c] for c in (config.text, config.text_pair) if c), strict=True))
    groups: dict[Any, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    strata: dict[Any, list[list[int]]] = {}
    for members in groups.values():
        stratum = table[config.label].iloc[members[0]] if task == "single_label" else None
        strata.setdefault(stratum, []).append(members)
    # Largest remainder: each class gets its exact share rounded down, then the largest fractions one more.
    exact = {k: wanted * sum(map(len, v)) / len(table) for k, v in strata.items()}
    quota = {k: int(share) for k, share in exact.items()}
    order = sorted(exact, key=lambda k: (quota[k] - exact[k], str(k)))
    for stratum in order[: wanted - sum(quota.values())]:
        quota[stratum] += 1
    chosen = np.zeros(len(table), dtype=bool)
    for stratum in sorted(strata, key=str):
        sizes = [len(members) for members in strata[stratum]]
        quota[stratum] = min(quota[stratum], sum(sizes) - max(sizes))  # train keeps some of every class
        taken = 0
        for index in rng.permutation(len(strata[stratum])):
            members = strata[stratum][index]
            if taken + len(members) <= quota[stratum]:
                chosen[members] = True
                taken += len(members)
    return chosen


# ---------------------------------------------------------------- what to know


def _rows(split: Split) -> list[tuple[str, str]]:
    return list(zip(split.texts, split.pairs or [""] * len(split), strict=True))


def _notes(splits: dict[str, Split]) -> list[str]:
    notes = []
    train = set(_rows(splits["train"]))
    for name in ("validation", "test"):
        shared = sum(row in train for row in _rows(splits[name]))
        if shared:
            notes.append(f"{shared} of {len(splits[name])} rows of {name} are in train too: its scores flatter")
    seen = set(_rows(splits["validation"]))
    if shared := sum(row in seen for row in _rows(splits["test"])):
        notes.append(
            f"{shared} of {len(splits['test'])} rows of test are in validation too, by which the search chooses: "
            "the verdict flatters"
        )
    empty = sum(not text.strip() for split in splits.values() for text in split.texts)
    if empty:
        notes.append(f"{empty} texts are empty")
    return notes


def _digest(splits: dict[str, Split]) -> str:
    digest = hashlib.sha256()
    for name in SPLITS:
        for text, pair in _rows(splits[name]):
            digest.update(f"{name}\0{text}\0{pair}\0".encode())
        digest.update(np.ascontiguousarray(splits[name].targets).tobytes())
    return digest.hexdigest()
