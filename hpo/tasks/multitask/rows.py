"""The rows of several tasks as one set of rows: those of one task after those of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from hpo.tasks.rows import IGNORED, EncodedRows

Array = np.ndarray[Any, Any]
Value = TypeVar("Value")

OF_TASK = "task"
"""The row target that says which task a row is of, by its number."""
SHARE = "share"
"""The row target by which the loss of a row is multiplied."""
SHOWN = 3  # rows of a task whose tokens are kept


def joined(parts: Mapping[str, EncodedRows], idle: Mapping[str, int]) -> EncodedRows:
    """Return the rows of several tasks as one set of rows.

    A target `T` of a task `A` becomes the target `A.T`. The unit of a task is scaled so that its rows have one unit on
    average. Else a task of tokens, whose rows have as many units as tokens, would outweigh a task of texts.

    Args:
        parts: Name of a task -> its rows.
        idle: Row target -> its value in the rows of other tasks; 0 if it is not named. No head's loss may be infinite
            there.
    """
    counts = {name: len(rows.units) for name, rows in parts.items()}
    scale = {name: float(np.float32(1 / max(rows.units.mean(), 1e-9))) for name, rows in parts.items()}
    firsts = dict(zip(parts, np.cumsum([0, *counts.values()]), strict=False))
    examples = np.cumsum([0, *(int(rows.example[-1]) + 1 for rows in parts.values())])
    return EncodedRows(
        inputs=_inputs(parts),
        row_targets={
            OF_TASK: np.repeat(np.arange(len(parts)), list(counts.values())),
            SHARE: np.repeat(np.array(list(scale.values()), dtype=np.float32), list(counts.values())),
            **_row_targets(parts, firsts, sum(counts.values()), idle),
        },
        token_targets=_token_targets(parts),
        units=np.concatenate([rows.units * scale[name] for name, rows in parts.items()]),
        example=np.concatenate([rows.example + first for rows, first in zip(parts.values(), examples, strict=False)]),
        alignment={name: rows.without_tokens(SHOWN) for name, rows in parts.items()},
    )


def _inputs(parts: Mapping[str, EncodedRows]) -> dict[str, Sequence[Sequence[int]]]:
    """Return the inputs of all rows; one that a task's rows lack is zeros there."""
    names = dict.fromkeys(name for rows in parts.values() for name in rows.inputs)
    return {
        name: [
            values
            for rows in parts.values()
            for values in rows.inputs.get(name) or ([0] * len(ids) for ids in rows.inputs["input_ids"])
        ]
        for name in names
    }


def _row_targets(
    parts: Mapping[str, EncodedRows], firsts: Mapping[str, Any], count: int, idle: Mapping[str, int]
) -> dict[str, Array]:
    found = {}
    for name, rows in parts.items():
        for target, values in rows.row_targets.items():
            every = np.full((count, *values.shape[1:]), idle.get(target, 0), dtype=values.dtype)
            every[firsts[name] : firsts[name] + len(values)] = values
            found[f"{name}.{target}"] = every
    return found


def _token_targets(parts: Mapping[str, EncodedRows]) -> dict[str, Sequence[Sequence[int]]]:
    """Return the target of each token of all rows, `IGNORED` in the rows of other tasks."""
    return {
        f"{name}.{target}": [
            each
            for other, rows in parts.items()
            for each in (values if other == name else ([IGNORED] * len(ids) for ids in rows.inputs["input_ids"]))
        ]
        for name, own in parts.items()
        for target, values in own.token_targets.items()
    }


def named(values: Mapping[str, Value], task: str) -> dict[str, Value]:
    """Return what belongs to a task of what is named `task.name`, by `name`."""
    return {name.removeprefix(f"{task}."): value for name, value in values.items() if name.startswith(f"{task}.")}
