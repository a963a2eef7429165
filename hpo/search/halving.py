"""Successive halving as functions of a study's trials: synchronous in rounds, asynchronous without rounds.

Without rounds, a rung is decided when a trial reaches it, from the trials that have reached it by then, as Optuna's
pruners of this kind do (Li et al., 2020). The outcome depends on which trial is first. In a round, a rung is decided
when every trial of the round has reached it or has ended (Jamieson & Talwalkar, 2016). Then every process that decides
sees the same trials and decides alike.
"""

from __future__ import annotations

import math
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
    """The decision at a rung for a trial that has reached it."""

    GO_ON = "go on"
    PRUNE = "prune"
    WAIT = "wait"


@dataclass(frozen=True)
class Rungs:
    """The rungs of a bracket.

    Attributes:
        first: The step of the lowest rung.
        factor: One in `factor` trials is promoted, to a rung at `factor` times the step.
        bootstrap: No trial is promoted from a rung that at most this many trials have reached.
        in_bracket: Returns whether a trial is in this bracket.
        count: Number of rungs; None has no last one.
        upward: Whether one in `factor` is rounded up, and not down.
    """

    first: int
    factor: int
    bootstrap: int
    in_bracket: Callable[[FrozenTrial], bool]
    count: int | None = None
    upward: bool = False

    def places(self, reached: int) -> int:
        """Return how many of the trials that have reached a rung are promoted."""
        return -(-reached // self.factor) if self.upward else max(1, reached // self.factor)

    def values(self, curve: Mapping[int, Value]) -> list[Value]:
        """Return the values at the rungs that a curve (step -> value) has reached, the lowest first."""
        found: list[Value] = []
        for step in sorted(curve):
            while len(found) != self.count and step >= self.first * self.factor ** len(found):
                found.append(curve[step])
        return found


class TwoRungHalving(SuccessiveHalvingPruner):
    """Successive halving with two rungs; from each, one trial in four, rounded up, goes on.

    With the rungs of `asha`, which go on to the end, one trial of 24 is trained to its end. Here two are: a second one
    is worth more than any number of further starts (`benchmarks/search_quality.py`). The first rung is at a fortieth
    of the longest training, the second at a tenth.

    Args:
        segment: Steps between two reports; the first rung is not below it.
        horizon: Steps of the longest trial; if it is not known, the first rung is at the first report.
    """

    FACTOR, COUNT, FIRST = 4, 2, 40

    def __init__(self, segment: int = 1, horizon: int | None = None) -> None:
        self.horizon, self._first = horizon, max(segment, -(-(horizon or 0) // self.FIRST))
        super().__init__(min_resource=self._first, reduction_factor=self.FACTOR)

    def rungs(self) -> Rungs:
        """Return the two rungs."""
        return Rungs(self._first, self.FACTOR, 0, lambda other: True, self.COUNT, upward=True)


def rungs_of(pruner: BasePruner, study: optuna.Study, trial: FrozenTrial, segment: int) -> Rungs | None:
    """Return the rungs of a trial's bracket, or None if the pruner has none.

    Args:
        pruner: The study's pruner.
        study: The study as it was when the first trial had completed.
        trial: Any trial of the study.
        segment: Steps between two reports: the lowest rung, where the pruner would guess it from completed trials.
    """
    if isinstance(pruner, HyperbandPruner):
        hyperband = pruner
        if not hyperband._pruners:
            hyperband._try_initialization(study)
        if not hyperband._pruners:  # the longest training is unknown until a trial has completed
            return None
        own = hyperband._get_bracket_id(study, trial)
        return _rungs(hyperband._pruners[own], segment, lambda other: hyperband._get_bracket_id(study, other) == own)
    if isinstance(pruner, TwoRungHalving):
        return pruner.rungs()
    if isinstance(pruner, SuccessiveHalvingPruner):
        return _rungs(pruner, segment, lambda other: True)
    return None


def _rungs(pruner: SuccessiveHalvingPruner, segment: int, in_bracket: Callable[[FrozenTrial], bool]) -> Rungs:
    factor = pruner._reduction_factor
    first = (pruner._min_resource or segment) * factor**pruner._min_early_stopping_rate
    return Rungs(first, factor, pruner._bootstrap_count, in_bracket)


@dataclass(frozen=True)
class _Standing:
    """A trial and its competitors at a rung.

    Attributes:
        incomplete: Whether a trial of the round has still to reach the rung.
        own: The trial's key.
        keys: The keys of all trials that are compared, with the trial's own.
    """

    incomplete: bool
    own: Key
    keys: Sequence[Key]

    def promoted(self, rungs: Rungs, width: int | None = None) -> bool:
        """Return whether fewer trials are better than are promoted.

        Args:
            rungs: The rungs, which say how many are promoted.
            width: How many parts of the keys are compared; None compares all.
        """
        better = sum(key[:width] < self.own[:width] for key in self.keys)
        return better < rungs.places(len(self.keys))

    def tied(self, rungs: Rungs, width: int | None = None) -> bool:
        """Return whether the trial is one of equal trials of which only some fit among the promoted."""
        better_or_equal = sum(key[:width] <= self.own[:width] for key in self.keys)
        return self.promoted(rungs, width) and better_or_equal > rungs.places(len(self.keys))


def decide(
    trials: Sequence[FrozenTrial],
    number: int,
    step: int,
    rungs: Rungs,
    round_size: int | None,
    compared: Comparison,
) -> Decision:
    """Return the decision for a trial after an evaluation.

    Of n trials that have reached a rung, in this round and in earlier ones, the `rungs.places(n)` best are promoted.
    Among equal values those with the lower loss are better; trials equal in both are all promoted. A duplicate, which
    has the parameters of an earlier trial of its round, is compared in its own decision only: it starts after that
    trial has ended, and trains only if that trial has failed.

    Args:
        trials: The trials of the study, in any state.
        number: The trial's number.
        step: The step of the evaluation; later reports of the trial do not count.
        rungs: The rungs of its bracket.
        round_size: Trials of a round. None waits for no trial and compares all that have reached the rung.
        compared: What orders trials.
    """
    for standing in _standings(trials, number, step, rungs, round_size, compared):
        if standing.incomplete:
            return Decision.WAIT
        if len(standing.keys) <= rungs.bootstrap or not standing.promoted(rungs):
            return Decision.PRUNE
    return Decision.GO_ON


def tie(
    trials: Sequence[FrozenTrial],
    number: int,
    step: int,
    rungs: Rungs,
    round_size: int | None,
    compared: Comparison,
) -> str | None:
    """Return how a tie was decided that a trial was part of; None if there was none.

    In a tie, trials of equal value are on both sides of the limit between promoted and pruned. The arguments are those
    of `decide`, whose decision was not to wait.

    Returns:
        `loss` if the loss ordered the trials; `all` if they were equal in the loss too, and all were promoted. None too
        for a trial that is beyond a limit, as those are ordered by how far they are.
    """
    found = None
    for standing in _standings(trials, number, step, rungs, round_size, compared):
        if len(standing.keys) <= rungs.bootstrap or math.isinf(standing.own[0]):
            return found
        if standing.tied(rungs, 1):
            found = "all" if standing.tied(rungs) else "loss"
        if not standing.promoted(rungs):
            return found
    return found


def _standings(
    trials: Sequence[FrozenTrial],
    number: int,
    step: int,
    rungs: Rungs,
    round_size: int | None,
    compared: Comparison,
) -> Iterator[_Standing]:
    """Yield a trial's standing at each rung that its evaluation at `step` has reached, the lowest first."""
    own = compared.curve(next(trial for trial in trials if trial.number == number))
    passed = len(rungs.values({s: key for s, key in own.items() if s < step}))
    reached = rungs.values({s: key for s, key in own.items() if s <= step})
    if len(reached) == passed:
        return
    mates = [t for t in trials if round_size is not None and t.number // round_size == number // round_size]
    earlier = [t for t in trials if round_size is None or t.number // round_size < number // round_size]
    trained = [t for t in (*earlier, *mates) if rungs.in_bracket(t) and "duplicate_of" not in t.user_attrs]
    values = {t.number: rungs.values(compared.curve(t)) for t in trained} | {number: reached}
    unfinished = {t.number for t in mates if t.number in values and not t.state.is_finished()}
    duplicates = {t.number for t in mates if is_duplicate(t, mates)} - {number}
    for rung in range(passed, len(reached)):  # one, unless the evaluation skips rungs
        at_rung = {other: keys[rung] for other, keys in values.items() if len(keys) > rung}
        yield _Standing(
            bool(unfinished - at_rung.keys() - duplicates),
            reached[rung],
            [key for other, key in at_rung.items() if other not in duplicates],
        )


def is_duplicate(trial: FrozenTrial, mates: Sequence[FrozenTrial]) -> bool:
    """Return whether an earlier trial of the round has the same parameters."""
    return any(other.number < trial.number and other.params == trial.params != {} for other in mates)
