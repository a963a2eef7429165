"""Successive halving as functions of a study's trials: synchronous in rounds, asynchronous without rounds.

Without rounds, a rung is decided when a trial reaches it, from the trials that have reached it by then, as Optuna's
pruners of this kind do (Li et al., 2020). The outcome depends on which trial is first. Where trials pause at rungs
(`type: promotion`), a trial that is not among the best then waits until it is, or no more trials can reach the rung.

In a round, a rung is decided when every trial of the round has reached it or has ended (Jamieson & Talwalkar, 2016).
Then every process that decides sees the same trials and decides alike.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TypeVar

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial

from hpo.search.comparison import Comparison, Key
from hpo.search.decisions import TIED, Decision, Judged

Value = TypeVar("Value")


def every_trial(trial: FrozenTrial) -> bool:
    """Return True: every trial is in the only bracket."""
    return True


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
        pauses: Whether a trial that is not promoted waits at its rung, without rounds too.
    """

    first: int
    factor: int
    bootstrap: int
    in_bracket: Callable[[FrozenTrial], bool]
    count: int | None = None
    upward: bool = False
    pauses: bool = False

    def places(self, reached: int, more: bool = False) -> int:
        """Return how many of the trials that have reached a rung are promoted.

        Args:
            reached: Trials that have reached it.
            more: Whether more may reach it, so that the best of too few need not be promoted yet.
        """
        if self.upward:
            return -(-reached // self.factor)
        return reached // self.factor if more else max(1, reached // self.factor)

    def values(self, curve: Mapping[int, Value]) -> list[Value]:
        """Return the values at the rungs that a curve (step -> value) has reached, the lowest first."""
        found: list[Value] = []
        for step in sorted(curve):
            while len(found) != self.count and step >= self.first * self.factor ** len(found):
                found.append(curve[step])
        return found

    def reached(self, curve: Mapping[int, Value], step: int) -> range:
        """Return the rungs that a curve (step -> value) reaches at a step: one, unless its evaluations skip rungs."""
        before = self.values({at: value for at, value in curve.items() if at < step})
        return range(len(before), len(self.values({at: value for at, value in curve.items() if at <= step})))


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
        return Rungs(self._first, self.FACTOR, 0, every_trial, self.COUNT, upward=True)


class PromotionPruner(SuccessiveHalvingPruner):
    """Asynchronous successive halving whose trials pause at a rung (Li et al., 2020, Algorithm 2).

    A trial that is not among the best at its rung waits there, and goes on once so many others have reached the rung
    that it is. `Field` decides; as Optuna cannot pause a trial, `prune` would end it.
    """


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
        return _rungs(pruner, segment, every_trial)
    return None


def _rungs(pruner: SuccessiveHalvingPruner, segment: int, in_bracket: Callable[[FrozenTrial], bool]) -> Rungs:
    factor = pruner._reduction_factor
    first = (pruner._min_resource or segment) * factor**pruner._min_early_stopping_rate
    pauses = isinstance(pruner, PromotionPruner)
    return Rungs(first, factor, pruner._bootstrap_count, in_bracket, pauses=pauses)


class EndedKeys:
    """The keys of ended trials at rungs, with a bracket of all trials: `StudyCache.kept` adds each trial once.

    Args:
        rungs: The rungs.
        compared: What orders trials.

    Attributes:
        at: Rung -> the keys there, the best first.
    """

    def __init__(self, rungs: Rungs, compared: Comparison) -> None:
        self._rungs, self._compared = rungs, compared
        self.at: dict[int, list[Key]] = defaultdict(list)

    def add(self, trial: FrozenTrial) -> None:
        """Add a trial that has ended."""
        if "duplicate_of" not in trial.user_attrs:
            for rung, key in enumerate(self._rungs.values(self._compared.curve(trial))):
                insort(self.at[rung], key)


class Field:
    """The trials among which decisions at rungs are taken.

    Of n trials that have reached a rung, in this round and in earlier ones, the `rungs.places(n)` best are promoted.
    Among equal values those with the lower loss are better; trials equal in both are all promoted. A duplicate, which
    has the parameters of an earlier trial of its round, is compared in its own decision only: it starts after that
    trial has ended, and trains only if that trial has failed.

    In a round, a rung waits for the trials of the round that have still to reach it. Where trials pause, without
    rounds, it does not wait: the best of those that have reached it are promoted at any time, and the others wait until
    no more trials can reach it.

    Args:
        trials: The trials of the study, in any state.
        rungs: The rungs of a bracket.
        compared: What orders trials.
        round_size: Trials of a round. None compares all trials that have reached a rung.
        number: A trial of the round; with rounds only.
        waiting: Numbers of trials that wait for an unfinished one with their parameters, so that no rung waits for
            them; where trials pause only.
        more: Whether trials are still to be added; where trials pause only.
        ended: What is kept of ended trials that `trials` does not have.
    """

    def __init__(
        self,
        trials: Sequence[FrozenTrial],
        rungs: Rungs,
        compared: Comparison,
        round_size: int | None = None,
        number: int = 0,
        waiting: Container[int] = (),
        more: bool = False,
        ended: EndedKeys | None = None,
    ) -> None:
        self._ended = ended
        self._rungs, self._compared = rungs, compared
        self._pauses = rungs.pauses and round_size is None
        mates = list(trials) if self._pauses else []
        if round_size is not None:
            trials = [t for t in trials if t.number // round_size <= number // round_size]
            mates = [t for t in trials if t.number // round_size == number // round_size]
        trained = [t for t in trials if rungs.in_bracket(t) and "duplicate_of" not in t.user_attrs]
        self._curves = {t.number: compared.curve(t) for t in trained}
        self._keys = {n: rungs.values(curve) for n, curve in self._curves.items()}
        self._duplicates = set() if self._pauses else {t.number for t in mates if is_duplicate(t, mates)}
        late = (t.number for t in mates if not t.state.is_finished() and t.number in self._keys)
        reached = (len(self._keys[n]) for n in late if n not in self._duplicates and n not in waiting)
        self._slowest = 0 if more else min(reached, default=math.inf)
        self._at: dict[int, list[Key]] = {}  # rung -> the keys there without those of duplicates, the best first

    def judge(self, number: int, step: int) -> Judged | None:
        """Return the decision for a trial after its evaluation at a step; None if that has reached no rung.

        Later reports of the trial do not count for it.
        """
        tie, judged = None, None
        for rung in self._rungs.reached(self._curves[number], step):
            judged = self._judge(number, rung)
            tie = judged.why if judged.why in TIED else tie
            if judged.decision is not Decision.GO_ON:
                break
        return judged and replace(judged, why=judged.why or tie)

    def waits(self, number: int) -> bool:
        """Return whether a paused trial has to wait: it is not among the best, and more may reach its rung."""
        rung = len(self._keys[number]) - 1
        if rung < 0 or self._slowest > rung:
            return False
        keys = self._keys_at(rung)
        return bisect_left(keys, self._keys[number][rung]) >= self._rungs.places(len(keys), more=True)

    def rank(self, number: int) -> tuple[int, Key]:
        """Return what orders trials that are promoted together: from the highest rung, and the best of it, first."""
        keys = self._keys[number]
        return -len(keys), keys[-1] if keys else ()

    def _judge(self, number: int, rung: int) -> Judged:
        """Return the decision at one rung for a trial that has reached it."""
        more = self._slowest <= rung  # trials may still reach it
        if more and not self._pauses:
            return Judged(Decision.WAIT)
        own, keys = self._keys[number][rung], self._keys_at(rung)
        if number in self._duplicates:
            keys = sorted([*keys, own])
        places = self._rungs.places(len(keys), more)
        few = len(keys) <= self._rungs.bootstrap or places == 0
        promoted = not few and bisect_left(keys, own) < places
        decision = Decision.GO_ON if promoted else Decision.WAIT if more else Decision.PRUNE
        needed = None if few or math.isinf(keys[places - 1][0]) else self._compared.value_of(keys[places - 1])
        why = "few" if few else _why(keys, own, places)
        return Judged(decision, self._compared.value_of(own), len(keys) - 1, needed, why)

    def _keys_at(self, rung: int) -> list[Key]:
        if rung not in self._at:
            every = (keys[rung] for n, keys in self._keys.items() if len(keys) > rung and n not in self._duplicates)
            self._at[rung] = sorted([*(self._ended.at[rung] if self._ended else ()), *every])
        return self._at[rung]


def _why(keys: Sequence[Key], own: Key, places: int) -> str | None:
    """Return what decides beside the value: that the trial is beyond a limit, or how a tie was decided.

    In a tie, trials of equal value are on both sides of the limit between promoted and others, and the trial is one of
    them.
    """
    if math.isinf(own[0]):
        return "limit"
    value = itemgetter(0)
    if not bisect_left(keys, own[0], key=value) < places < bisect_right(keys, own[0], key=value):
        return None
    return "all" if bisect_left(keys, own) < places < bisect_right(keys, own) else "loss"


def is_duplicate(trial: FrozenTrial, mates: Sequence[FrozenTrial]) -> bool:
    """Return whether an earlier trial of the round has the same parameters."""
    return any(other.number < trial.number and other.params == trial.params != {} for other in mates)
