"""The rows of one split as a table, from files or from a data set on the Hub."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd

from hpo.config.inputs import no_column
from hpo.config.paths import expand
from hpo.config.readers import Dialect, read_rows
from hpo.config.schema import DataConfig
from hpo.core.errors import DataError
from hpo.finetune.data.labels import is_missing

log = logging.getLogger(__name__)


def _columns(config: DataConfig) -> list[str]:
    labels = [config.label] if isinstance(config.label, str) else list(config.label)
    return [*filter(None, (config.text, config.text_pair, config.group)), *labels]


def read_table(config: DataConfig, split: str, source: str | list[str], folder: Path) -> pd.DataFrame:
    """Return the rows of one split: the columns that are used, texts as strings, indexed by (file, row from 1).

    Raises:
        DataError: A file or data set cannot be read, has no rows or lacks a column.
    """
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
            message = no_column(name, missing, list(map(str, frame.columns)))
            raise DataError(f"{message}. Name the columns under data: text, text_pair, label, where, group")
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
    except Exception as error:  # the network, the cache and the Hub raise different types
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


def matching(table: pd.DataFrame, config: DataConfig) -> pd.DataFrame:
    """Return the rows that satisfy all conditions of `where`.

    Raises:
        DataError: No row satisfies a condition.
    """
    for column, wanted in config.where.items():
        selected = table[[str(value) == str(wanted) for value in table[column]]]
        if selected.empty:
            seen = ", ".join(sorted({str(value) for value in table[column]})[:8])
            raise DataError(f"no row has {column} = {wanted!r}; the column has {seen}")
        table = selected
    return table
