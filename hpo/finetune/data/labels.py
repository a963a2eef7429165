"""Labels as tables have them, and the targets that a task makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hpo.config.schema import DataConfig
from hpo.core.errors import DataError

Array = np.ndarray[Any, Any]


def is_missing(value: Any) -> bool:
    """Return whether a table has no value here."""
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)


def place(entry: Any) -> str:
    """Return where a row is from, of its entry in a table's index: (file, row of the file)."""
    return f"row {entry[1]} of {entry[0]}"


def normal(label: Any) -> Any:
    """Return a label in lower case, without blanks around and with single ones within; what is no text as it is."""
    if isinstance(label, str):
        return " ".join(label.split()).casefold()
    return [normal(each) for each in label] if isinstance(label, list | tuple | np.ndarray) else label


def normalize(frames: dict[str, pd.DataFrame], column: str) -> list[str]:
    """Replace the labels of all splits by their normal form, and return a note on those that became one."""
    written: dict[str, dict[str, None]] = {}
    for split, table in frames.items():
        labels = (each for value in table[column] for each in _listed(value) if not is_missing(each))
        for label in dict.fromkeys(map(str, labels)):
            written.setdefault(normal(label), {})[label] = None
        frames[split] = table.assign(**{column: [normal(value) for value in table[column]]})
    merged = {name: list(spellings) for name, spellings in written.items() if len(spellings) > 1}
    return [f"{', '.join(map(repr, spellings))} are one label, {name!r}" for name, spellings in sorted(merged.items())]


def unlabelled(table: pd.DataFrame, config: DataConfig) -> Array:
    """Return which rows lack a label, in any of its columns. [n] bool."""
    columns = [config.label] if isinstance(config.label, str) else config.label
    empty = np.zeros(len(table), dtype=bool)
    for column in columns:
        empty |= np.array([is_missing(value) or (isinstance(value, str) and not value) for value in table[column]])
    return empty


def task_of(table: pd.DataFrame, config: DataConfig, task: str) -> str:
    """Return the task that the labels show, if the study says `auto`."""
    if task != "auto":
        return task
    if not isinstance(config.label, str):
        return "multi_label"
    values = list(table[config.label])
    if any(isinstance(value, list | np.ndarray) for value in values):
        return "multi_label"
    numbers = [_number(value) for value in values]
    fractional = any(number is not None and number != int(number) for number in numbers if number is not None)
    return "regression" if None not in numbers and fractional else "single_label"


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def encoder(
    train: pd.DataFrame, config: DataConfig, task: str
) -> tuple[tuple[str, ...], Callable[[str, pd.DataFrame], Array]]:
    """Return the label names and a function (split name, rows) -> targets."""
    if task == "regression":
        return (), lambda name, rows: _numbers(name, rows, config)
    if task == "multi_label" and not isinstance(config.label, str):
        columns = tuple(config.label)
        return columns, lambda name, rows: _indicators(name, rows, columns)
    if not isinstance(config.label, str):
        raise DataError(f"label names several columns, which fits multi_label, not {task}")
    column = config.label
    if task == "multi_label":
        names = _sorted({str(label) for value in train[column] for label in _listed(value)})
        return names, lambda name, rows: _many_hot(name, rows, column, names)
    names = _sorted({_label(value) for value in train[column]})
    if len(names) < 2:
        raise DataError(f"every row of train has the label {names[0]!r}; a classifier needs at least two")
    return names, lambda name, rows: _classes(name, rows, column, names)


def refuse_numbers(labels: pd.Series[Any]) -> None:
    """Raise a `DataError` where so many different labels must be numbers to predict."""
    count = len({_label(value) for value in labels})
    if count > max(20, len(labels) // 2):
        raise DataError(
            f"column {labels.name!r} has {count} different labels in {len(labels)} rows; "
            "if they are numbers to predict, set task: regression"
        )


def _label(value: Any) -> str:
    """Return a label's name; 1.0 is the label 1."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    """Sort label names: as numbers if all are (so that index = number for 0, 1, 2), else as text."""
    every = list(names)
    numbers = {name: _number(name) for name in every}
    if all(number is not None for number in numbers.values()):
        return tuple(sorted(every, key=lambda name: (numbers[name] or 0.0, name)))
    return tuple(sorted(every))


def no_missing(split: str, rows: pd.DataFrame, config: DataConfig) -> None:
    """Raise a `DataError` where a row has no label."""
    if not isinstance(config.label, str):
        return  # several columns are read value by value
    empty = unlabelled(rows, config)
    if empty.any():
        raise DataError(
            f"{split}: column {config.label!r} has no label in {empty.sum()} rows, first in "
            f"{place(rows.index[int(empty.argmax())])}; label them, or leave them out with data: {{unlabelled: drop}}"
        )


def _classes(split: str, rows: pd.DataFrame, column: str, names: Sequence[str]) -> Array:
    index = {name: i for i, name in enumerate(names)}
    labels = [_label(value) for value in rows[column]]
    unseen = sorted(set(labels) - set(index))
    if unseen:
        known = {normal(name) for name in names}
        spelled = all(normal(label) in known for label in unseen)
        way = "set data: {normalize_labels: true}" if spelled else "Correct the label, or add such rows to train"
        raise DataError(
            f"{split} has the label {', '.join(map(repr, unseen))}, which train has not; train has "
            f"{', '.join(map(repr, names))}. {'They differ only in case or blanks: ' if spelled else ''}{way}"
        )
    return np.array([index[label] for label in labels], dtype=np.int64)


def _numbers(split: str, rows: pd.DataFrame, config: DataConfig) -> Array:
    assert isinstance(config.label, str)
    values = [_number(value) for value in rows[config.label]]
    bad = [i for i, value in enumerate(values) if value is None]
    if bad:
        raise DataError(
            f"{split}: label {rows[config.label].iloc[bad[0]]!r} in {place(rows.index[bad[0]])} is not a number"
        )
    return np.array(values, dtype=np.float32)


def _indicators(split: str, rows: pd.DataFrame, columns: Sequence[str]) -> Array:
    targets = np.zeros((len(rows), len(columns)), dtype=np.float32)
    for j, column in enumerate(columns):
        for i, value in enumerate(rows[column]):
            if (number := _number(value)) not in (0.0, 1.0):
                raise DataError(f"{split}: column {column!r} has {value!r} in {place(rows.index[i])}; write 0 or 1")
            targets[i, j] = number
    return targets


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | np.ndarray) else [value]


def _many_hot(split: str, rows: pd.DataFrame, column: str, names: Sequence[str]) -> Array:
    index = {name: i for i, name in enumerate(names)}
    targets = np.zeros((len(rows), len(names)), dtype=np.float32)
    for i, value in enumerate(rows[column]):
        for label in map(str, _listed(value)):
            if label not in index:
                raise DataError(f"{split}: {place(rows.index[i])} has the label {label!r}, which train has not")
            targets[i, index[label]] = 1.0
    return targets
