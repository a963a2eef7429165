"""Which parameter sets one group of trials apart from another, by ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

import numpy as np
from optuna.trial import FrozenTrial

CHANCE = 0.05  # of naming a parameter, whichever, where groups differ in none
APART = 0.75  # chance that a value of the one group is beyond one of the other, from which on they are apart


@dataclass(frozen=True)
class Separation:
    """A parameter that sets one group of trials apart.

    Attributes:
        name: The parameter's.
        theirs: Its median in the group.
        others: Its median in the others.
    """

    name: str
    theirs: float
    others: float

    @property
    def better(self) -> str:
        """Where the others' values are: `lower` or `higher`."""
        return "lower" if self.others < self.theirs else "higher"


def separating(group: Sequence[FrozenTrial], others: Sequence[FrozenTrial]) -> Separation | None:
    """Return the parameter that sets a group of trials apart most clearly, None if it cannot be told.

    A parameter with numbers for values does so if the rank-sum test (Mann & Whitney, 1947; normal approximation with
    ties, two-sided) of the groups is below `CHANCE`, divided by the number of parameters that are tried, and if a value
    of the one group is beyond one of the other with a chance of at least `APART`.

    Args:
        group: The trials that something happened to.
        others: Those to which it did not.
    """
    names = dict.fromkeys(name for trial in (*group, *others) for name in trial.params)
    tried = []
    for name in names:
        theirs, rest = _numbers(group, name), _numbers(others, name)
        if len(theirs) > 1 and len(rest) > 1 and len({*theirs, *rest}) > 1:
            tried.append((*_rank_sum(theirs, rest), name, median(theirs), median(rest)))
    if not tried:
        return None
    chance, beyond, name, middle, middle_of_rest = min(tried)
    apart = max(beyond, 1 - beyond) >= APART and (middle > middle_of_rest) == (beyond > 0.5)
    if chance >= CHANCE / len(tried) or not apart or middle == middle_of_rest:
        return None
    return Separation(name, middle, middle_of_rest)


def _numbers(trials: Sequence[FrozenTrial], name: str) -> list[float]:
    """Return the values of a parameter, none if one of them is no number."""
    values = [trial.params[name] for trial in trials if name in trial.params]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return [float(value) for value in values] if numeric else []


def _rank_sum(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Return the p-value of the rank-sum test, and the chance that a value of `one` is above one of `other`."""
    pooled = np.array([*one, *other])
    _, places, counts = np.unique(pooled, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    pairs, total = len(one) * len(other), len(pooled)
    above = float(ranks[: len(one)].sum()) - len(one) * (len(one) + 1) / 2
    ties = float((counts.astype(float) ** 3 - counts).sum()) / (total * (total - 1))
    deviation = math.sqrt(pairs / 12 * (total + 1 - ties))
    distance = max(0.0, abs(above - pairs / 2) - 0.5) / deviation
    return 2 * (1 - NormalDist().cdf(distance)), above / pairs
