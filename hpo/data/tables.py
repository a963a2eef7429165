"""The rows of one split as a table, from files or from a data set on the Hub."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpo.core.errors import DataError
from hpo.core.paths import expand, locate
from hpo.data.keys import DataKeys, no_column
from hpo.data.readers import Dialect, read_rows

log = logging.getLogger(__name__)


def is_missing(value: Any) -> bool:
    """Return whether a cell of a table is empty."""
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)


def place(entry: Any) -> str:
    """Return where a row is from, given its entry in a table's index: (file, row of the file)."""
    return f"row {entry[1]} of {entry[0]}"


def read_table(keys: DataKeys, split: str, source: str | list[str], folder: Path) -> pd.DataFrame:
    """Return the rows of one split: the columns that are used, indexed by (file, row from 1).

    Raises:
        DataError: A file or data set cannot be read, has no rows or lacks a column.
    """
    frames = frames_of(keys, source, folder)
    wanted = [column for _, column in keys.columns()] + (list(keys.where) if split == "train" else [])
    for name, frame in frames:
        if frame.empty:
            raise DataError(f"{name} has no rows")
        missing = [column for column in dict.fromkeys(wanted) if column not in frame.columns]
        if missing:
            message = no_column(name, missing, list(map(str, frame.columns)))
            places = [place[0] for place, _ in keys.columns()]
            raise DataError(f"{message}. Name the columns under data: {', '.join(dict.fromkeys([*places, 'where']))}")
    numbered_rows = [frame[list(dict.fromkeys(wanted))].set_axis(range(1, len(frame) + 1)) for _, frame in frames]
    return pd.concat(numbered_rows, keys=[name for name, _ in frames])


def frames_of(keys: DataKeys, source: str | list[str], folder: Path) -> list[tuple[str, pd.DataFrame]]:
    """Return (name, rows with all their columns) of each file of a split, or of the data set on the Hub.

    Raises:
        DataError: A file or data set cannot be read.
    """
    if keys.dataset is not None:
        log.info("reading split %s of %s", source, keys.dataset)
        return [(f"{keys.dataset} ({source})", _from_hub(keys, str(source), folder))]
    dialect = Dialect(keys.encoding, keys.separator)
    return [(str(path), _read(path, dialect)) for path in expand(source, folder)]


def _read(path: Path, dialect: Dialect) -> pd.DataFrame:
    log.info("reading %s", path)
    return read_rows(path, dialect)


def _from_hub(keys: DataKeys, split: str, folder: Path) -> pd.DataFrame:
    """Return a split of a data set on the Hub, or of a copy of it in a folder.

    Numbers of labels are replaced by their names, negative ones by None.
    """
    import datasets

    assert keys.dataset is not None
    datasets.disable_progress_bars()
    try:
        data = datasets.load_dataset(str(locate(keys.dataset, folder) or keys.dataset), keys.subset, split=split)
    except ValueError as error:
        raise DataError(f"data set {keys.dataset!r}: {error}") from None
    except Exception as error:  # the network, the cache and the Hub raise different types
        raise DataError(
            f"data set {keys.dataset!r} cannot be had from the Hub ({type(error).__name__}). Check its name and the "
            "network, or use local files: data: {train: train.csv}"
        ) from None
    frame: pd.DataFrame = data.to_pandas()
    for column in keys.labels():
        feature = data.features.get(column)
        names = getattr(getattr(feature, "feature", feature), "names", None)  # of a list of labels, or of one
        if names is not None:
            frame[column] = [_named(value, names) for value in frame[column]]
    return frame


def _named(value: Any, names: Sequence[str]) -> Any:
    if not is_missing(value) and np.ndim(value):
        return [_named(each, names) for each in value]
    return names[value] if not is_missing(value) and value >= 0 else None


def matching(table: pd.DataFrame, keys: DataKeys) -> pd.DataFrame:
    """Return the rows that satisfy all conditions of `where`.

    Raises:
        DataError: No row satisfies a condition.
    """
    for column, wanted in keys.where.items():
        selected = table[[str(value) == str(wanted) for value in table[column]]]
        if selected.empty:
            seen = ", ".join(sorted({str(value) for value in table[column]})[:8])
            raise DataError(f"no row has {column} = {wanted!r}; the column has {seen}")
        table = selected
    return table
