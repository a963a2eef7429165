"""Synchronous successive halving (Jamieson & Talwalkar, 2016) for studies in rounds, as functions of their rows.

Optuna's pruners of this kind decide when a trial reaches a rung, from what has reached it by then (Li et al., 2020):
the outcome depends on who is first. In a round, a rung is decided when every trial of the round has reached it or
has ended; then all who decide see the same rows, and come to the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial


class Decision(Enum):
    """What a rung means for a trial that has reached it."""

    GO_ON = "go on"
    PRUNE = "prune"
    WAIT = "wait"


@dataclass(frozen=True)
class Rungs:
    """The rungs of a bracket.

    Attributes:
        first: Steps of the lowest rung.
        factor: One of so many is promoted, to a rung that is so many times as far.
        bootstrap: As long as a rung has no more trials, none is promoted.
        shares: Whether a trial is in this bracket.
    """

    first: int
    factor: int
    bootstrap: int
    shares: Callable[[FrozenTrial], bool]

    def values(self, curve: Mapping[int, float]) -> list[float]:
        """Return the values at the rungs that a curve (step -> value) has reached, the lowest first."""
        found: list[float] = []
        for step in sorted(curve):
            while step >= self.first * self.factor ** len(found):
                found.append(curve[step])
        return found


def rungs_of(pruner: BasePruner, study: optuna.Study, trial: FrozenTrial, segment: int) -> Rungs | None:
    """Return the rungs of a trial's bracket, or None if the pruner has none.

    Args:
        pruner: The study's.
        study: As it was when the first trial had completed.
        trial: Any row.
        segment: Steps between two reports, for a lowest rung that the pruner would guess from completed trials.
    """
    if isinstance(pruner, HyperbandPruner):
        brackets = pruner
        if not brackets._pruners:
            brackets._try_initialization(study)
        if not brackets._pruners:  # how far trials go is not known before one has completed
            return None
        own = brackets._get_bracket_id(study, trial)
        pruner = brackets._pruners[own]
        return _rungs(pruner, segment, lambda other: brackets._get_bracket_id(study, other) == own)
    if isinstance(pruner, SuccessiveHalvingPruner):
        return _rungs(pruner, segment, lambda other: True)
    return None


def _rungs(pruner: SuccessiveHalvingPruner, segment: int, shares: Callable[[FrozenTrial], bool]) -> Rungs:
    factor = pruner._reduction_factor
    first = (pruner._min_resource or segment) * factor**pruner._min_early_stopping_rate
    return Rungs(first, factor, pruner._bootstrap_count, shares)


def decide(rows: Sequence[FrozenTrial], number: int, step: int, rungs: Rungs, size: int, sign: int) -> Decision:
    """Return what becomes of a trial after an evaluation.

    Of n trials that have reached a rung, in this round and in earlier ones, the max(1, n // factor) best are
    promoted; of equals the lowest number. A twin, whose parameters an earlier trial of the round has too, counts for
    itself alone: it starts when that one has ended, and trains only if that one has failed.

    Args:
        rows: The rows of the study that run, will run, or ran.
        number: The trial's.
        step: Where it was evaluated; what it reported later does not count.
        rungs: Of its bracket.
        size: Trials of a round.
        sign: 1 if lower values are better, -1 if higher ones are.
    """
    mates = [row for row in rows if row.number // size == number // size]
    earlier = [row for row in rows if row.number // size < number // size]
    own = next(row.intermediate_values for row in mates if row.number == number)
    curve = {s: v for s, v in own.items() if s <= step}
    passed = len(rungs.values({s: v for s, v in curve.items() if s < step}))
    trained = [row for row in (*earlier, *mates) if rungs.shares(row) and "duplicate_of" not in row.user_attrs]
    reached = {row.number: rungs.values(row.intermediate_values) for row in trained} | {number: rungs.values(curve)}
    running = {row.number for row in mates if row.number in reached and not row.state.is_finished()}
    twins = {row.number for row in mates if _repeats(row, mates)} - {number}
    for rung in range(passed, len(reached[number])):  # one, unless an evaluation skips some
        at_rung = {other: values[rung] for other, values in reached.items() if len(values) > rung}
        if running - at_rung.keys() - twins:
            return Decision.WAIT
        ranked = sorted((sign * value, other) for other, value in at_rung.items() if other not in twins)
        promoted = [other for _, other in ranked[: max(1, len(ranked) // rungs.factor)]]
        if len(ranked) <= rungs.bootstrap or number not in promoted:
            return Decision.PRUNE
    return Decision.GO_ON


def _repeats(row: FrozenTrial, mates: Sequence[FrozenTrial]) -> bool:
    return any(other.number < row.number and other.params == row.params != {} for other in mates)
