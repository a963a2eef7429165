"""When trials and the study end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpo.search.comparison import Comparison


@dataclass(frozen=True)
class Rules:
    """When trials and the study end.

    Attributes:
        budget: Trials of the study.
        seed: The study's seed.
        timeout: Seconds after which running trials return to waiting.
        patience: Evaluations without improvement after which a trial ends.
        max_consecutive_failures: Failed trials in a row after which the study stops.
        round_size: Trials of a round; None runs without rounds.
        stall_timeout: Seconds without a step of training after which the process ends itself.
        compared: What the pruner compares. None compares the values, and the loss where they are equal.
        wave: Trials of a round that are drawn together; None draws a round at once.
    """

    budget: int
    seed: int = 0
    timeout: float | None = None
    patience: int | None = None
    max_consecutive_failures: int = 3
    round_size: int | None = None
    stall_timeout: float | None = None
    compared: Comparison | None = None
    wave: int | None = None


def best_index(values: Sequence[float], direction: str) -> int:
    """Return the position of the best score; the first of equals."""
    choose = max if direction == "maximize" else min
    return choose(range(len(values)), key=values.__getitem__)


def out_of_patience(values: Sequence[float], patience: int | None, direction: str) -> bool:
    """Return whether the last `patience` evaluations brought no better score.

    Args:
        values: The trial's scores so far.
        patience: Evaluations to wait; None never runs out.
        direction: `maximize` or `minimize`.
    """
    if patience is None or not values:
        return False
    return len(values) - 1 - best_index(values, direction) >= patience
