"""The cross-entropy method (Rubinstein, 1999): draws near the better third of the trials so far.

Each numeric parameter is drawn from a normal distribution with the mean and the standard deviation that the better
third has, on the parameter's own scale. Where the better third is narrow the parameter matters, and the draws are
narrow; where it is as wide as the range it does not, and they are wide. A choice is drawn as often as the better third
has it. `benchmarks/search_quality.py` compares it with other samplers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from hpo.storage.criteria import violation

FEWEST = 4
"""Completed trials from which there is a better third to draw near; with fewer, draws are uniform."""

BETTER = 3
"""One completed trial in `BETTER`, rounded up, is among the better ones."""

NARROWEST = 0.02
"""The least standard deviation, as a share of the range: a few equal values do not end the search."""

Numeric = FloatDistribution | IntDistribution


class CrossEntropySampler(BaseSampler):
    """Draws each parameter near the values that it has in the better third of the completed trials.

    Args:
        seed: Seed of the draws; from the operating system if None.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._random = np.random.default_rng(seed)
        self._better: tuple[int, Sequence[FrozenTrial]] | None = None  # number of a trial, and what it is drawn near

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return nothing: parameters are drawn one by one."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return nothing: parameters are drawn one by one."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one parameter."""
        if self._better is None or self._better[0] != trial.number:
            self._better = trial.number, better_third(study)
        values = [other.params[param_name] for other in self._better[1] if param_name in other.params]
        if isinstance(param_distribution, CategoricalDistribution):
            return _draw_choice(param_distribution, values, self._random)
        assert isinstance(param_distribution, Numeric)
        return _draw_number(param_distribution, values, self._random)


def better_third(study: optuna.Study) -> Sequence[FrozenTrial]:
    """Return the better third of the completed trials, rounded up; none of fewer than `FEWEST`.

    Trials that are beyond their constraints are worse than all others, the further the worse (Deb, 2000).
    """
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(completed) < FEWEST:
        return []
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
    ordered = sorted(completed, key=lambda trial: (violation(trial), sign * (trial.value or 0.0)))
    return ordered[: math.ceil(len(ordered) / BETTER)]


def _draw_choice(distribution: CategoricalDistribution, values: Sequence[Any], random: np.random.Generator) -> Any:
    """Draw a choice as often as it is among the values; each is counted once more, so that none is excluded."""
    counts = np.array([1.0 + sum(value == choice for value in values) for choice in distribution.choices])
    return distribution.choices[int(random.choice(len(counts), p=counts / counts.sum()))]


def _draw_number(distribution: Numeric, values: Sequence[float], random: np.random.Generator) -> float | int:
    """Draw a number near the values; anywhere in the range if there are fewer than two."""
    if len(values) < 2:
        return value_at(distribution, random.random())
    places = [place_of(distribution, value) for value in values]
    spread = max(float(np.std(places)), NARROWEST)
    return value_at(distribution, reflected(float(random.normal(np.mean(places), spread))))


def reflected(place: float) -> float:
    """Return a place in [0, 1]: one beyond an end is as far within it, so that draws do not pile up at the ends."""
    within = abs(place) % 2
    return 2 - within if within > 1 else within


def place_of(distribution: Numeric, value: float) -> float:
    """Return the place of a value in its range, from 0 to 1, on a logarithmic scale if the range has one.

    The published default may be outside the range; its place is the nearer end.
    """
    low, high = _ends(distribution)
    inside = min(max(value, low), high)
    if distribution.log:
        return math.log(inside / low) / math.log(high / low)
    return (inside - low) / (high - low)


def share_of(distribution: Numeric, spread: float) -> float:
    """Return a standard deviation as a share of the range; on a logarithmic scale it is given as a factor."""
    low, high = _ends(distribution)
    return math.log(spread) / math.log(high / low) if distribution.log else spread / (high - low)


def spread_at(distribution: Numeric, share: float) -> float:
    """Return a standard deviation that is given as a share of the range: the inverse of `share_of`."""
    low, high = _ends(distribution)
    return (high / low) ** share if distribution.log else share * (high - low)


def number_at(distribution: Numeric, place: float) -> float:
    """Return the number at a place of the range, also between the values of a range with steps."""
    low, high = _ends(distribution)
    number = low * (high / low) ** place if distribution.log else low + place * (high - low)
    return min(max(number, distribution.low), distribution.high)


def value_at(distribution: Numeric, place: float) -> float | int:
    """Return the value at a place of the range; the nearest one where the range has steps."""
    value = number_at(distribution, place)
    if distribution.step is not None:
        value = distribution.low + distribution.step * round((value - distribution.low) / distribution.step)
    value = min(max(value, distribution.low), distribution.high)
    return int(value) if isinstance(distribution, IntDistribution) else float(value)


def _ends(distribution: Numeric) -> tuple[float, float]:
    """Return the ends of a range; with steps, half a step further out, so that all values are equally wide."""
    half = (distribution.step or 0.0) / 2
    return distribution.low - half, distribution.high + half
