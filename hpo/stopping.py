"""When a trial has been better before, and when it is time to give up: pure functions of its scores."""

from __future__ import annotations

from collections.abc import Sequence


def best_index(values: Sequence[float], direction: str) -> int:
    """Return the position of the best score; the first of equals."""
    choose = max if direction == "maximize" else min
    return choose(range(len(values)), key=values.__getitem__)


def out_of_patience(values: Sequence[float], patience: int | None, direction: str) -> bool:
    """Return whether the last `patience` evaluations brought no better score.

    Args:
        values: The trial's scores so far.
        patience: Evaluations to wait; None waits for ever.
        direction: `maximize` or `minimize`.
    """
    if patience is None or not values:
        return False
    return len(values) - 1 - best_index(values, direction) >= patience
