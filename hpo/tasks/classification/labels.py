"""From the labels of a table to the targets of a task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hpo.core.errors import DataError
from hpo.data.tables import is_missing, place
from hpo.tasks.classification.keys import TextKeys

Array = np.ndarray[Any, Any]


def normal(label: Any) -> Any:
    """Return a label, or each of a list, in lower case, without outer blanks and with single inner ones.

    Values other than text are returned unchanged.
    """
    if isinstance(label, str):
        return " ".join(label.split()).casefold()
    return [normal(each) for each in label] if isinstance(label, list | tuple | np.ndarray) else label


def normalize(frames: dict[str, pd.DataFrame], column: str) -> list[str]:
    """Replace the labels of all splits by their normal form, and return a note for each merged set of labels."""
    spellings: dict[str, dict[str, None]] = {}  # normal form -> the labels as written
    for split, table in frames.items():
        labels = (each for value in table[column] for each in _listed(value) if not is_missing(each))
        for label in dict.fromkeys(map(str, labels)):
            spellings.setdefault(normal(label), {})[label] = None
        frames[split] = table.assign(**{column: [normal(value) for value in table[column]]})
    merged = {name: list(written) for name, written in spellings.items() if len(written) > 1}
    return [f"{', '.join(map(repr, written))} are one label, {name!r}" for name, written in sorted(merged.items())]


def unlabelled(table: pd.DataFrame, keys: TextKeys) -> Array:
    """Return [n] bool: the rows that have no label in one of the label columns."""
    columns = [keys.label] if isinstance(keys.label, str) else keys.label
    empty = np.zeros(len(table), dtype=bool)
    for column in columns:
        empty |= np.array([is_missing(value) or (isinstance(value, str) and not value) for value in table[column]])
    return empty


def prepared(frames: dict[str, pd.DataFrame], keys: TextKeys) -> list[str]:
    """Normalise the labels and drop rows without one, as the study's options say; return notes on what was done.

    Raises:
        DataError: A row has no label.
    """
    notes = normalize(frames, keys.label) if keys.normalize_labels and isinstance(keys.label, str) else []
    for split, table in frames.items():
        if keys.unlabelled != "drop":
            refuse_unlabelled(split, table, keys)
            continue
        empty = unlabelled(table, keys)
        if empty.any():
            first = place(table.index[int(empty.argmax())])
            notes.append(f"{empty.sum()} of {len(table)} rows of {split} have no label and are left out, first {first}")
        frames[split] = table[~empty]
        if empty.all():
            raise DataError(f"no row of {split} has a label; give it a file with labels")
    return notes


def task_of(table: pd.DataFrame, keys: TextKeys) -> str:
    """Return the task that the labels of a table are of."""
    if not isinstance(keys.label, str):
        return "multi_label"
    values = list(table[keys.label])
    if any(isinstance(value, list | np.ndarray) for value in values):
        return "multi_label"
    numbers = [_number(value) for value in values]
    fractional = any(number != int(number) for number in numbers if number is not None)
    return "regression" if None not in numbers and fractional else "single_label"


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def encoder(
    train: pd.DataFrame, keys: TextKeys, task: str
) -> tuple[tuple[str, ...], Callable[[str, pd.DataFrame], Array]]:
    """Return the label names, which are those of train, and a function (split name, rows) -> targets.

    Raises:
        DataError: The label columns do not fit the task, or train has one label only.
    """
    if task == "regression":
        return (), lambda name, rows: _numbers(name, rows, keys)
    if task == "multi_label" and not isinstance(keys.label, str):
        columns = tuple(keys.label)
        return columns, lambda name, rows: _indicators(name, rows, columns)
    if not isinstance(keys.label, str):
        raise DataError(f"label names several columns, which fits multi_label, not {task}")
    column = keys.label
    if task == "multi_label":
        names = _sorted({str(label) for value in train[column] for label in _listed(value)})
        return names, lambda name, rows: _many_hot(name, rows, column, names)
    names = _sorted({_label(value) for value in train[column]})
    if len(names) < 2:
        raise DataError(f"every row of train has the label {names[0]!r}; a classifier needs at least two")
    return names, lambda name, rows: _classes(name, rows, column, names)


def refuse_numbers(labels: pd.Series[Any]) -> None:
    """Refuse labels that are so many that they must be numbers to predict.

    Raises:
        DataError: More than half of the rows, and more than 20, have different labels.
    """
    count = len({_label(value) for value in labels})
    if count > max(20, len(labels) // 2):
        raise DataError(
            f"column {labels.name!r} has {count} different labels in {len(labels)} rows; "
            "if they are numbers to predict, set task: regression"
        )


def _label(value: Any) -> str:
    """Return the name of a label; that of 1.0 is `1`."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    """Sort label names: as numbers if all are numbers, so that 0, 1, 2 are their own indices; else as text."""
    numbers = {name: _number(name) for name in names}
    if all(number is not None for number in numbers.values()):
        return tuple(sorted(numbers, key=lambda name: (numbers[name] or 0.0, name)))
    return tuple(sorted(numbers))


def refuse_unlabelled(split: str, rows: pd.DataFrame, keys: TextKeys) -> None:
    """Refuse rows without a label.

    Raises:
        DataError: A row has no label.
    """
    if not isinstance(keys.label, str):
        return  # each value of several columns is checked when it is encoded
    empty = unlabelled(rows, keys)
    if empty.all() and keys.dataset is not None:
        raise DataError(f"the {split} split of {keys.dataset!r} has no public labels; set {split}: 0.1 to make one")
    if empty.any():
        raise DataError(
            f"{split}: column {keys.label!r} has no label in {empty.sum()} rows, first in "
            f"{place(rows.index[int(empty.argmax())])}; label them, or leave them out with data: {{unlabelled: drop}}"
        )


def _classes(split: str, rows: pd.DataFrame, column: str, names: Sequence[str]) -> Array:
    index = {name: i for i, name in enumerate(names)}
    labels = [_label(value) for value in rows[column]]
    unseen = sorted(set(labels) - set(index))
    if unseen:
        known = {normal(name) for name in names}
        respelled = all(normal(label) in known for label in unseen)
        hint = (
            "They differ only in case or blanks: set data: {normalize_labels: true}"
            if respelled
            else "Correct the label, or add such rows to train"
        )
        raise DataError(
            f"{split} has the label {', '.join(map(repr, unseen))}, which train has not; train has "
            f"{', '.join(map(repr, names))}. {hint}"
        )
    return np.array([index[label] for label in labels], dtype=np.int64)


def _numbers(split: str, rows: pd.DataFrame, keys: TextKeys) -> Array:
    assert isinstance(keys.label, str)
    values = [_number(value) for value in rows[keys.label]]
    invalid = [i for i, value in enumerate(values) if value is None]
    if invalid:
        first = invalid[0]
        raise DataError(
            f"{split}: label {rows[keys.label].iloc[first]!r} in {place(rows.index[first])} is not a number"
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
