"""Predictions of classes and numbers from the rows of a file of predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hpo.tasks.classification.predictions import LabelPredictions

Array = np.ndarray[Any, Any]
Rows = Sequence[Mapping[str, str]]

PROBABILITY = "probability of "  # begins the columns of probabilities
SMALLEST = 1e-30  # a probability that was rounded to 0, whose logarithm would be infinite


def reread(task: str, rows: Rows) -> tuple[LabelPredictions, tuple[str, ...]]:
    """Return the predictions that rows have, and the labels; see `Task.reread`.

    Args:
        task: Name in `KINDS`.
        rows: The rows of a CSV file, one or more.

    Raises:
        KeyError: A column is missing.
        ValueError: A value is not what it must be.
    """
    names = tuple(column.removeprefix(PROBABILITY) for column in rows[0] if column.startswith(PROBABILITY))
    targets, logits = _READERS[task](rows, names)
    return LabelPredictions(task, targets, logits), names


def _single_label(rows: Rows, names: tuple[str, ...]) -> tuple[Array, Array]:
    return np.array([names.index(row["label"]) for row in rows]), np.log(_probabilities(rows, names))


def _multi_label(rows: Rows, names: tuple[str, ...]) -> tuple[Array, Array]:
    having = [set(json.loads(row["label"])) for row in rows]
    probabilities = _probabilities(rows, names)
    no = np.maximum(1 - probabilities, SMALLEST)
    return np.array([[float(name in labels) for name in names] for labels in having]), np.log(probabilities / no)


def _regression(rows: Rows, names: tuple[str, ...]) -> tuple[Array, Array]:
    return np.array([float(row["label"]) for row in rows]), np.array([[float(row["predicted"])] for row in rows])


_READERS = {"single_label": _single_label, "multi_label": _multi_label, "regression": _regression}
"""Task -> function of the rows and the labels that returns targets and logits."""


def _probabilities(rows: Rows, names: tuple[str, ...]) -> Array:
    """Return the probabilities [rows, labels]."""
    return np.maximum([[float(row[f"{PROBABILITY}{name}"]) for name in names] for row in rows], SMALLEST)
