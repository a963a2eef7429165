"""From the rows of a table to examples: choices as lists or in several columns, labels in several ways of writing."""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from hpo.core.errors import DataError
from hpo.data.tables import is_missing, place
from hpo.tasks.multiple_choice.keys import ChoiceKeys
from hpo.tasks.multiple_choice.split import Example
from hpo.tasks.remarks import Kind, Remarks

EXAMPLE = "an example"
"""Column of `Example` objects; a column of a file with this name is not read."""

NOT_LISTED = Kind(
    "rows whose choices are no list of texts",
    'Write a list of texts, e.g. ["yes", "no"], or name a column for each choice, e.g. data: {choices: [a, b]}',
)
OTHER_NUMBER = Kind(
    "rows with another number of choices than most",
    "Give all rows the same number of choices: leave choices out, or the row",
)
EMPTY_CHOICE = Kind("rows with an empty choice", "Write the choice, or leave the row out")
NO_LABEL = Kind("rows without a label", "Name the right choice by its number, its letter or its text")
WRONG_LABEL = Kind("rows whose label is none of their choices", "Correct the label, or leave the row out")
TWICE = Kind(
    "rows that have the right choice twice",
    "Nothing tells the two apart: correct one of them, or leave the row out",
)
EQUAL_CHOICES = "rows that have a wrong choice twice"
NO_CONTEXT = "rows whose texts before the choices are empty"


@dataclass(frozen=True)
class Listed:
    """The choices of a row.

    Attributes:
        texts: The choices.
        names: Their names, e.g. A, B, C, if the row has names for them.
    """

    texts: tuple[str, ...]
    names: tuple[str, ...] = ()


Reading = Callable[[str, Listed], int | None]
"""The text of a label, and the choices of its row -> number of the right choice; None if it names none."""


def _number_from(first: int) -> Reading:
    def number(label: str, choices: Listed) -> int | None:
        found = int(label) - first if label.isascii() and label.isdigit() else -1
        return found if 0 <= found < len(choices.texts) else None

    return number


def _letter(label: str, choices: Listed) -> int | None:
    letter = label.strip(" ().").upper()
    found = string.ascii_uppercase.find(letter) if len(letter) == 1 else -1
    return found if 0 <= found < len(choices.texts) else None


def _name(label: str, choices: Listed) -> int | None:
    return choices.names.index(label) if choices.names.count(label) == 1 else None


def _text(label: str, choices: Listed) -> int | None:
    return choices.texts.index(label) if label in choices.texts else None


READINGS: dict[str, Reading] = {
    "names of the choices": _name,
    "numbers from 0": _number_from(0),
    "numbers from 1": _number_from(1),
    "letters": _letter,
    "texts of the choices": _text,
}
"""How labels may name the right choice. The way that most rows fit is that of all rows; of equal ones the first."""


# ---------------------------------------------------------------- labelled rows


def prepared(frames: dict[str, pd.DataFrame], keys: ChoiceKeys) -> list[str]:
    """Add the column `EXAMPLE` to the tables of all splits, and return notes.

    Raises:
        DataError: With all rows that cannot be used, counted by kind.
    """
    remarks = Remarks()
    listed = {name: [_listed(table, row, keys) for row in range(len(table))] for name, table in frames.items()}
    labels = {name: [_label(value) for value in table[keys.label]] for name, table in frames.items()}
    _refuse_unlabelled(labels, keys)
    pairs = [
        (label, choices)
        for name in frames
        for label, choices in zip(labels[name], listed[name], strict=True)
        if label is not None and choices is not None
    ]
    ways, most = _ways(pairs), _usual([choices for _, choices in pairs])
    for name, table in frames.items():
        found = [
            _example(table, row, keys, choices, label, READINGS[ways[0]], most, remarks)
            for row, (choices, label) in enumerate(zip(listed[name], labels[name], strict=True))
        ]
        frames[name] = table.assign(**{EXAMPLE: pd.Series(found, index=table.index, dtype=object)})
    remarks.refuse_faults()
    notes = remarks.notes()
    if ways[1:]:
        notes.append(
            f"the labels can be read as {' and as '.join(ways)}; they are read as {ways[0]}: look with hpo check "
            "whether the right choices are marked"
        )
    return notes


def _refuse_unlabelled(labels: Mapping[str, Sequence[str | None]], keys: ChoiceKeys) -> None:
    """Refuse a split of a data set on the Hub whose labels are not published."""
    for split, each in labels.items():
        if keys.dataset is not None and not any(label is not None for label in each):
            raise DataError(f"the {split} split of {keys.dataset!r} has no public labels; set {split}: 0.1 to make one")


def _ways(pairs: Sequence[tuple[str, Listed]]) -> list[str]:
    """Return the readings that most labels fit, the preferred one first."""
    fits = {name: sum(reads(*pair) is not None for pair in pairs) for name, reads in READINGS.items()}
    return [name for name, count in fits.items() if count == max(fits.values())]


def _usual(choices: Sequence[Listed]) -> int:
    """Return the number of choices that most rows have."""
    counts = Counter(len(each.texts) for each in choices)
    return counts.most_common(1)[0][0] if counts else 0


def _example(
    table: pd.DataFrame,
    row: int,
    keys: ChoiceKeys,
    choices: Listed | None,
    label: str | None,
    reads: Reading,
    most: int,
    remarks: Remarks,
) -> Example | None:
    """Return the example of a row; None, with a remark, if the row cannot be used."""
    where = place(table.index[row])
    texts = [_string(table[column].iloc[row]) for column in keys.texts()]
    if not any(text.strip() for text in texts):
        remarks.note(NO_CONTEXT, where)
    if choices is None:
        remarks.fault(NOT_LISTED, where, f"{table[keys.of_choices()[0]].iloc[row]!r:.60}")
        return None
    if fault := _fault(choices.texts, most):
        remarks.fault(fault[0], where, fault[1])
        return None
    if label is None:
        remarks.fault(NO_LABEL, where, f"column {keys.label!r} is empty")
        return None
    if (right := reads(label, choices)) is None:
        remarks.fault(WRONG_LABEL, where, f"{label!r:.60} of {most} choices")
        return None
    if len(set(choices.texts)) < most:
        if choices.texts.count(choices.texts[right]) > 1:
            remarks.fault(TWICE, where, f"{choices.texts[right]!r:.60}")
            return None
        remarks.note(EQUAL_CHOICES, where)
    return Example(texts[0], texts[1] if texts[1:] else "", choices.texts, right)


def _fault(choices: Sequence[str], most: int) -> tuple[Kind, str] | None:
    """Return what is wrong with the choices of a row, if anything is."""
    if len(choices) != most or most < 2:
        return OTHER_NUMBER, f"{len(choices)}, not {max(2, most)}"
    empty = [number for number, choice in enumerate(choices) if not choice.strip()]
    return (EMPTY_CHOICE, f"number {empty[0]} of 0 to {most - 1}") if empty else None


# ---------------------------------------------------------------- cells


def _string(value: Any) -> str:
    return "" if is_missing(value) else str(value)


def _label(value: Any) -> str | None:
    """Return the text of a label, that of 1.0 is `1`; None if there is none."""
    if is_missing(value) or not str(value).strip():
        return None
    whole = isinstance(value, float | np.floating) and float(value).is_integer()
    return str(int(value)) if whole else str(value)


def _listed(table: pd.DataFrame, row: int, keys: ChoiceKeys) -> Listed | None:
    return listed([table[column].iloc[row] for column in keys.of_choices()], isinstance(keys.choices, str))


def listed(cells: Sequence[Any], in_one: bool) -> Listed | None:
    """Return the choices of a row; None if its cells are not of any form.

    Args:
        cells: The cells of the columns of choices.
        in_one: Whether it is one cell: a list; as in CommonsenseQA and ARC `{text: [...], label: [...]}`, with a name
            for each choice; or one of them as JSON.
    """
    if not in_one:
        return Listed(tuple(map(_string, cells)))
    (cell,) = cells
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except ValueError:
            return None
    names: Any = ()
    if isinstance(cell, Mapping):
        names, cell = cell.get("label", ()), cell.get("text")
    if not isinstance(cell, list | tuple | np.ndarray) or any(isinstance(each, list | Mapping) for each in cell):
        return None
    return Listed(tuple(map(_string, cell)), tuple(map(str, names)))


# ---------------------------------------------------------------- rows to predict


def unlabelled(rows: Sequence[Mapping[str, Any]], keys: ChoiceKeys) -> list[Example]:
    """Return the examples of rows whose labels are not known.

    Raises:
        DataError: With all rows that cannot be used, counted by kind.
    """
    remarks = Remarks()
    found = [listed([row[column] for column in keys.of_choices()], isinstance(keys.choices, str)) for row in rows]
    most = _usual([choices for choices in found if choices is not None])
    examples = []
    for number, (row, choices) in enumerate(zip(rows, found, strict=True), 1):
        fault = (NOT_LISTED, f"{row[keys.of_choices()[0]]!r:.60}") if choices is None else _fault(choices.texts, most)
        if choices is None or fault:
            assert fault is not None
            remarks.fault(fault[0], f"row {number}", fault[1])
            continue
        texts = [_string(row[column]) for column in keys.texts()]
        examples.append(Example(texts[0], texts[1] if texts[1:] else "", choices.texts))
    remarks.refuse_faults()
    return examples
