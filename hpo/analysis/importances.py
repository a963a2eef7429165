"""How much each parameter matters: its share of the value's variation, with an interval (fANOVA, Hutter et al., 2014).

A forest of regression trees predicts the value from the parameters. Of each tree, the variance of its prediction over
one parameter, averaged over all others, is divided by its variance over the whole space. A tree is constant in boxes,
so both are sums over pairs of boxes. Optuna walks through the tree at each point of a lattice instead, which takes
several times as long: too long for intervals, which need hundreds of trees.

An interval comes from forests of trials that are drawn again, with repetition, from those that have completed. What
parameters without any effect get comes from forests that have each parameter a second time, its values shuffled over
the trials; of the shuffled ones the one that gets most counts (Kursa and Rudnicki, 2010, "Feature Selection with the
Boruta Package"). A share whose interval reaches down to that cannot be told from 0.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from hpo.analysis.findings import ENOUGH
from hpo.storage.snapshot import Results

Array = np.ndarray[Any, np.dtype[Any]]

CONFIDENCE = 0.95
FOREST = 300  # trials that importances are computed from at most
DEPTH = 64  # of a tree, at most
TREES = 64  # of the forest that gives the shares
RESAMPLES, FEW_TREES = 50, 5  # forests that give the intervals, and trees of each


class TooSmallError(ValueError):
    """A study is too small for a plot. Any other error is a defect of the plot."""


@dataclass(frozen=True)
class Importance:
    """How much a parameter matters, as shares of all that the parameters explain alone.

    Attributes:
        share: The share that the completed trials give.
        low: The lower end of the interval for `CONFIDENCE`.
        high: The upper end.
        chance: What the luckiest of all parameters gets in the mean when their values are shuffled over the trials.
    """

    share: float
    low: float
    high: float
    chance: float

    @property
    def told(self) -> bool:
        """Whether the share can be told from 0."""
        return self.low > self.chance


@dataclass(frozen=True)
class _Table:
    """Completed trials as numbers.

    Attributes:
        inputs: [trials, columns] the parameters; of a choice, a column for each of its values, 0 or 1.
        values: [trials] what was measured.
        columns: Parameter -> its columns.
        ends: [2, columns] the range of each column.
    """

    inputs: Array
    values: Array
    columns: Mapping[str, Sequence[int]]
    ends: Array


@lru_cache(maxsize=1)  # two plots use them
def importances(results: Results) -> dict[str, float]:
    """Return parameter -> share of the importance, the highest first.

    Only completed trials count, and only parameters that all of them have: Optuna's own default also ranks
    conditional ones, and at 30 trials put one without any effect first in most studies of our test function.

    Raises:
        TooSmallError: There are not two parameters to compare, or all values are equal.
    """
    table = _table(results)
    parts = _parts(table, TREES, 0)
    if not parts.any():
        raise TooSmallError("all completed trials have the same value")
    shares = dict(zip(table.columns, (parts / parts.sum()).tolist(), strict=True))
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


@lru_cache(maxsize=1)
def intervals(results: Results) -> dict[str, Importance]:
    """Return parameter -> how much it matters, the most important first.

    Raises:
        TooSmallError: Fewer than `ENOUGH` trials have completed, or `importances` raises it.
    """
    shares = importances(results)
    if len(results.complete) < ENOUGH:
        raise TooSmallError(f"intervals need {ENOUGH} completed trials, and there are {len(results.complete)}")
    table = _table(results)
    again = _resampled(table)
    low, high = np.quantile(again, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2), axis=0)
    chance = _shuffled(table)
    found = {}
    for index, name in enumerate(table.columns):
        share = shares[name]
        ends = min(float(low[index]), share), max(float(high[index]), share)
        found[name] = Importance(share, *ends, chance)
    return {name: found[name] for name in shares}


def _resampled(table: _Table) -> Array:
    """Return [resamples, parameters] the shares in trials that are drawn again with repetition."""
    random, count = np.random.default_rng(0), len(table.values)
    found = []
    for seed in range(RESAMPLES):
        drawn = random.integers(count, size=count)
        parts = _parts(_Table(table.inputs[drawn], table.values[drawn], table.columns, table.ends), FEW_TREES, seed)
        found.append(parts / (parts.sum() or 1.0))
    return np.array(found)


def _shuffled(table: _Table) -> float:
    """Return the largest share of a parameter that is shuffled, beside those as they are, in the mean of shuffles."""
    random, width = np.random.default_rng(1), table.inputs.shape[1]
    doubled = {f"{name} ": [width + column for column in columns] for name, columns in table.columns.items()}
    found = []
    for seed in range(RESAMPLES):
        shuffled = table.inputs.copy()
        for columns in table.columns.values():
            shuffled[:, list(columns)] = table.inputs[random.permutation(len(shuffled))][:, list(columns)]
        both = _Table(
            np.hstack([table.inputs, shuffled]),
            table.values,
            {**table.columns, **doubled},
            np.hstack([table.ends, table.ends]),
        )
        real, fake = np.split(_parts(both, FEW_TREES, seed), 2)
        found.append(float(fake.max() / (real.sum() or 1.0)))
    return float(np.mean(found))


# ---------------------------------------------------------------- a forest


def _parts(table: _Table, trees: int, seed: int) -> Array:
    """Return [parameters] the part of the variance that each one explains alone, in the mean over trees."""
    from sklearn.ensemble import RandomForestRegressor  # takes a second to import

    forest = RandomForestRegressor(trees, max_depth=DEPTH, random_state=seed).fit(table.inputs, table.values)
    parts = [_explained(each.tree_, table) for each in forest.estimators_]
    known = [part for part in parts if part is not None]  # a tree of equal values explains nothing
    return np.mean(known, axis=0) if known else np.zeros(len(table.columns))


def _explained(tree: Any, table: _Table) -> Array | None:
    """Return [parameters] the part of a tree's variance that each one explains alone; None if it does not vary.

    With the value v of a box relative to the mean, and its size w as a share of the space's, the variance is the sum of
    v^2 w over the boxes. The variance over one parameter is, over pairs of boxes, the sum of v r v' r' o: r is a box's
    share in the other columns, o the share of the parameter's range in which both boxes are.
    """
    low, high = _boxes(tree, table.ends)
    extent = table.ends[1] - table.ends[0]
    shares = (high - low) / extent
    sizes = shares.prod(axis=1)
    values = tree.value[tree.feature < 0, 0, 0]
    values = values - values @ sizes
    variance = values**2 @ sizes
    if variance <= 0:
        return None
    found = []
    for columns in table.columns.values():
        weighted = values * np.delete(shares, columns, axis=1).prod(axis=1)
        overlap: Any = 1.0
        for column in columns:
            ends = np.minimum.outer(high[:, column], high[:, column]), np.maximum.outer(low[:, column], low[:, column])
            overlap = overlap * (np.maximum(ends[0] - ends[1], 0.0) / extent[column])
        found.append(max(float(weighted @ overlap @ weighted), 0.0) / variance)
    return np.array(found)


def _boxes(tree: Any, ends: Array) -> tuple[Array, Array]:
    """Return [boxes, columns] the lower and the upper ends of the boxes in which a tree is constant."""
    low, high = (np.repeat(end[None], tree.node_count, axis=0) for end in ends)
    feature, threshold, nodes = tree.feature, tree.threshold, np.array([0])
    while len(nodes := nodes[feature[nodes] >= 0]):  # those of one depth that are divided
        left, right = tree.children_left[nodes], tree.children_right[nodes]
        for child in (left, right):
            low[child], high[child] = low[nodes], high[nodes]
        high[left, feature[nodes]] = low[right, feature[nodes]] = threshold[nodes]
        nodes = np.concatenate([left, right])
    return low[feature < 0], high[feature < 0]


# ---------------------------------------------------------------- trials as numbers


@lru_cache(maxsize=1)
def _table(results: Results) -> _Table:
    """Return the completed trials as numbers; of many, a sample."""
    names = compared(results)
    if len(names) < 2:
        raise TooSmallError("it needs two parameters that all completed trials have, with values that differ")
    trials = _widened(results.sample(results.complete, FOREST), names)
    inputs: list[Array] = []
    ends: list[tuple[float, float]] = []
    columns: dict[str, Sequence[int]] = {}
    for name in names:
        known = trials[0].distributions[name]
        if any(trial.distributions[name] != known for trial in trials):
            raise TooSmallError(f"{name} was searched in several ranges")
        numbers = np.array([known.to_internal_repr(trial.params[name]) for trial in trials], dtype=float)
        if isinstance(known, CategoricalDistribution):
            new = [(numbers == choice).astype(float) for choice in range(len(known.choices))]
            ends += [(0.0, 1.0)] * len(new)
        else:
            assert isinstance(known, FloatDistribution | IntDistribution)
            new = [numbers]
            ends.append((known.low, known.high))
        columns[name] = range(len(inputs), len(inputs) + len(new))
        inputs += new
    values = np.array([trial.value for trial in trials], dtype=float)
    return _Table(np.column_stack(inputs), values, columns, np.array(ends, dtype=float).T)


def _widened(trials: Sequence[FrozenTrial], names: Sequence[str]) -> Sequence[FrozenTrial]:
    """Return the trials with ranges that contain all their values: a published default may lie outside its range.

    A box of a tree that is split at a value outside would have a negative size.
    """
    ranges: dict[str, BaseDistribution] = {}
    for name in names:
        known, values = trials[0].distributions[name], [trial.params[name] for trial in trials]
        if isinstance(known, FloatDistribution | IntDistribution):
            low, high = min(known.low, *values), max(known.high, *values)
            if (low, high) != (known.low, known.high):
                ranges[name] = type(known)(low, high, known.log)
    if not ranges:
        return trials
    copies = [copy.copy(trial) for trial in trials]
    for trial in copies:
        trial.distributions = {**trial.distributions, **ranges}
    return copies


def compared(results: Results) -> list[str]:
    """Return the parameters that all completed trials have, with values that differ, by name."""
    trials = [trial.params for trial in results.complete]
    shared = [name for name in sorted(searched(results)) if all(name in params for params in trials)]
    return [name for name in shared if len({repr(params[name]) for params in trials}) > 1]


def searched(results: Results) -> set[str]:
    """Return the parameters that a completed trial has."""
    return {name for trial in results.complete for name in trial.params}
