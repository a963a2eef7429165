"""Successive halving, as functions of a study's rows: synchronous in rounds, asynchronous without.

Free-running, a rung is decided when a trial reaches it, from what has reached it by then, as Optuna's pruners of this
kind do (Li et al., 2020): the outcome depends on who is first. In a round, it is decided when every trial of the round
has reached it or has ended (Jamieson & Talwalkar, 2016); then all who decide see the same rows, and come to the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial

from hpo.search.comparison import Comparison, Key

Value = TypeVar("Value")


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

    def values(self, curve: Mapping[int, Value]) -> list[Value]:
        """Return the values at the rungs that a curve (step -> value) has reached, the lowest first."""
        found: list[Value] = []
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


@dataclass(frozen=True)
class _Standing:
    """What a trial stands against at a rung.

    Attributes:
        waits: Whether a trial of its round has still to come.
        own: The trial's key.
        keys: Those of all trials that count, the trial's own too.
    """

    waits: bool
    own: Key
    keys: Sequence[Key]

    def promoted(self, factor: int, width: int | None = None) -> bool:
        """Return whether fewer trials are better than are promoted, by so many parts of the key (all if None)."""
        better = sum(key[:width] < self.own[:width] for key in self.keys)
        return better < max(1, len(self.keys) // factor)

    def tied(self, factor: int, width: int | None = None) -> bool:
        """Return whether trials are equal of which some would be promoted and some not, and the trial is of them."""
        reach = sum(key[:width] <= self.own[:width] for key in self.keys)
        return self.promoted(factor, width) and reach > max(1, len(self.keys) // factor)


def decide(
    rows: Sequence[FrozenTrial], number: int, step: int, rungs: Rungs, size: int | None, compared: Comparison
) -> Decision:
    """Return what becomes of a trial after an evaluation.

    Of n trials that have reached a rung, in this round and in earlier ones, the max(1, n // factor) best are
    promoted; of equal values those with the lower loss, and all that are equal in both. A twin, whose parameters an
    earlier trial of the round has too, counts for itself alone: it starts when that one has ended, and trains only if
    that one has failed.

    Args:
        rows: The rows of the study that run, will run, or ran.
        number: The trial's.
        step: Where it was evaluated; what it reported later does not count.
        rungs: Of its bracket.
        size: Trials of a round; None waits for nobody, and compares with all that have reached the rung.
        compared: What orders trials.
    """
    for standing in _standings(rows, number, step, rungs, size, compared):
        if standing.waits:
            return Decision.WAIT
        if len(standing.keys) <= rungs.bootstrap or not standing.promoted(rungs.factor):
            return Decision.PRUNE
    return Decision.GO_ON


def tie(
    rows: Sequence[FrozenTrial], number: int, step: int, rungs: Rungs, size: int | None, compared: Comparison
) -> str | None:
    """Return how a tie was decided that a trial was part of; None if there was none.

    A tie is a decision in which trials of one value stand on both sides of the line. The arguments are those of
    `decide`, which has not told the trial to wait.

    Returns:
        `loss` if the loss told them apart, `all` if they were equal in it too, and all were promoted.
    """
    found = None
    for standing in _standings(rows, number, step, rungs, size, compared):
        if len(standing.keys) <= rungs.bootstrap:
            return found
        if standing.tied(rungs.factor, 1):
            found = "all" if standing.tied(rungs.factor) else "loss"
        if not standing.promoted(rungs.factor):
            return found
    return found


def _standings(
    rows: Sequence[FrozenTrial], number: int, step: int, rungs: Rungs, size: int | None, compared: Comparison
) -> Iterator[_Standing]:
    """Yield how a trial stands at each rung that it has reached with an evaluation, the lowest first."""
    own = compared.curve(next(row for row in rows if row.number == number))
    passed = len(rungs.values({s: key for s, key in own.items() if s < step}))
    reached = rungs.values({s: key for s, key in own.items() if s <= step})
    if len(reached) == passed:
        return
    mates = [row for row in rows if size is not None and row.number // size == number // size]
    before = [row for row in rows if size is None or row.number // size < number // size]
    trained = [row for row in (*before, *mates) if rungs.shares(row) and "duplicate_of" not in row.user_attrs]
    values = {row.number: rungs.values(compared.curve(row)) for row in trained} | {number: reached}
    running = {row.number for row in mates if row.number in values and not row.state.is_finished()}
    twins = {row.number for row in mates if _repeats(row, mates)} - {number}
    for rung in range(passed, len(reached)):  # one, unless an evaluation skips some
        at_rung = {other: keys[rung] for other, keys in values.items() if len(keys) > rung}
        yield _Standing(
            bool(running - at_rung.keys() - twins),
            reached[rung],
            [key for other, key in at_rung.items() if other not in twins],
        )


def _repeats(row: FrozenTrial, mates: Sequence[FrozenTrial]) -> bool:
    return any(other.number < row.number and other.params == row.params != {} for other in mates)
