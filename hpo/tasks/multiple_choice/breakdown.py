"""The scores of examples by the number of their right choice."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpo.tasks.multiple_choice.predictions import ChoicePredictions

TITLE = "By number of the right choice, from 0, on the test split"
HEADS = ["right choice", "rows", "chosen", "accuracy"]


def collapse(predictions: ChoicePredictions) -> str:
    """Return what a collapsed model does."""
    return f"chooses number {predictions.predicted[0]} (from 0) in every row"


def by_number(predictions: ChoicePredictions) -> dict[str, Any]:
    """Return accuracy by number of the right choice, and how often each number is chosen, as JSON values.

    Returns:
        `collapsed`, `collapse` if so, and `tables`: one table with its `title`, `heads` and `rows`.
    """
    targets, chosen = predictions.targets, predictions.predicted
    rows: list[list[Any]] = []
    for number in range(predictions.logits.shape[1]):
        own = targets == number
        accuracy = float((chosen[own] == number).mean()) if own.any() else "-"
        rows.append([number, int(own.sum()), int((chosen == number).sum()), accuracy])
    found: dict[str, Any] = {"collapsed": predictions.collapsed}
    if predictions.collapsed:
        found["collapse"] = collapse(predictions)
    return found | {"tables": [{"title": TITLE, "heads": HEADS, "rows": rows}]}


def skewed(targets: np.ndarray[Any, Any], choices: int) -> tuple[int, float] | None:
    """Return the number that is right most often, and its share, if that is 1.5 times chance or more."""
    shares = np.bincount(targets, minlength=choices) / len(targets)
    most = int(shares.argmax())
    return (most, float(shares[most])) if shares[most] * choices >= 1.5 else None
