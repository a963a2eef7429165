"""Which hyperparameter separates one group of trials from another, by ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

import numpy as np
from optuna.trial import FrozenTrial

CHANCE = 0.05  # chance of naming any parameter where the groups differ in none
APART = 0.75  # two groups are apart if a value of one is beyond a value of the other with at least this chance


@dataclass(frozen=True)
class Separation:
    """A hyperparameter that separates one group of trials from the others.

    Attributes:
        name: Name of the hyperparameter.
        theirs: Its median in the group.
        others: Its median in the other trials.
    """

    name: str
    theirs: float
    others: float

    @property
    def better(self) -> str:
        """On which side the others' values are: `lower` or `higher`."""
        return "lower" if self.others < self.theirs else "higher"


def separating(group: Sequence[FrozenTrial], others: Sequence[FrozenTrial]) -> Separation | None:
    """Return the hyperparameter that separates a group of trials most clearly; None if there is none.

    Only hyperparameters with numbers for values are tried. One separates the groups if the p-value of the rank-sum test
    (Mann & Whitney, 1947; normal approximation with ties, two-sided) is below `CHANCE`, divided by the number that are
    tried, and if a value of the one group is beyond one of the other with a chance of at least `APART`.

    Args:
        group: The trials with an outcome, such as a collapse.
        others: The trials without it.
    """
    if len(group) < 2 or len(others) < 2:
        return None
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
    """Return the values of a hyperparameter; none if one of them is not a number."""
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
