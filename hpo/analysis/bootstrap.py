"""Confidence intervals of the difference between two models: a paired bootstrap over their common test rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from hpo.core.seeds import derived_seed
from hpo.tasks.metric import Metric
from hpo.tasks.metrics import METRICS, WEIGHTED_MEAN, score
from hpo.tasks.multitask.predictions import MultiPredictions
from hpo.tasks.registry import TASKS
from hpo.tasks.task import Predictions

Array = np.ndarray[Any, Any]

RESAMPLES = 2000
CONFIDENCE = 0.95
FEWEST_ROWS = 10  # rows, or groups of rows, below which resampling tells nothing about other rows
UNDEFINED = 0.05  # share of resamples without a score, above which the others are a biased selection


def intervals(
    metric: str,
    models: Sequence[Predictions],
    labels: Sequence[str] = (),
    groups: Array | None = None,
    seed: int = 0,
) -> list[tuple[float, float] | str]:
    """Return an interval of score(first model) - score(other), for each of the others, in the metric's own direction.

    Rows are drawn with replacement, the same rows for all models, so that the difficulty of rows cancels
    (Efron and Tibshirani, 1993, percentile method, `RESAMPLES` resamples, `CONFIDENCE` coverage). The interval covers
    other rows of the same kind; it does not cover other seeds of the training.

    Args:
        metric: Name in `METRICS`.
        models: Predictions of two models or more for the same n rows.
        labels: Names of the classes, by index.
        groups: [n] group of each row. A group is drawn as a whole, as its rows are not independent. None: no groups.
        seed: Seeds the resampling.

    Returns:
        (low, high) with low < high; or the reason why the rows allow no interval.
    """
    if reason := too_few(metric, models[0], labels, groups):
        return [reason] * (len(models) - 1)
    return _intervals(resampled(metric, models, groups, seed))


def intervals_of_counts(metric: str, counts: Sequence[Array], groups: Array | None) -> list[tuple[float, float] | str]:
    """Return the intervals of models of which only the counts of a metric are known, each [n, k]; see `intervals`."""
    entry = METRICS[metric]
    reason = _few_rows(len(counts[0]), groups)
    if reason is None and entry.too_few is not None:
        reason = entry.too_few(counts[0].sum(axis=0))
    if reason:
        return [reason] * (len(counts) - 1)
    return _intervals(_of_counts(entry, counts, groups, seed=0))


def resampled(metric: str, models: Sequence[Predictions], groups: Array | None = None, seed: int = 0) -> Array:
    """Return the scores on every resample, [RESAMPLES, models]; NaN where undefined. Arguments as of `intervals`."""
    if metric == WEIGHTED_MEAN:
        return _resampled_mean(models, groups, seed)
    entry = METRICS[metric]
    if entry.counts is not None:
        return _of_counts(entry, [entry.counts(model) for model in models], groups, seed)
    draws = _draws(len(models[0]), groups, seed)
    if entry.resampled is not None:
        scorers = [entry.resampled(model) for model in models]
        return np.array([[scorer(rows) for scorer in scorers] for rows in draws])
    return np.array([[score(metric, model.take(rows)) for model in models] for rows in draws])


def _of_counts(metric: Metric, counts: Sequence[Array], groups: Array | None, seed: int) -> Array:
    """Return the scores of models on every resample from their counts, each [n, k]."""
    each = np.stack(counts, axis=1)  # [n, models, k]
    sums = (each[rows].sum(axis=0) for rows in _draws(len(each), groups, seed))
    return np.array([[metric.value(of_model) for of_model in of_models] for of_models in sums])


def _resampled_mean(models: Sequence[Any], groups: Array | None, seed: int) -> Array:
    """Return the weighted means on every resample, in which the examples of each task are drawn apart."""
    total = np.zeros((RESAMPLES, len(models)))
    for name, place in models[0].places.items():
        first = models[0].parts[name]
        own = None if groups is None else groups[place]
        predictions = [model.parts[name].predictions for model in models]
        total += first.share * resampled(first.metric, predictions, own, derived_seed(seed, name))
    return total


def too_few(
    metric: str, predictions: Predictions, labels: Sequence[str] = (), groups: Array | None = None
) -> str | None:
    """Return why there are too few rows to compare models by this metric, or None. Arguments as of `intervals`."""
    if isinstance(predictions, MultiPredictions):
        return _too_few_of_a_task(predictions, groups)
    entry = METRICS[metric]
    if reason := _few_rows(len(predictions), groups) or TASKS[predictions.task].too_few(metric, predictions, labels):
        return reason
    if entry.counts is None or entry.too_few is None:
        return None
    return entry.too_few(entry.counts(predictions).sum(axis=0))


def _few_rows(count: int, groups: Array | None) -> str | None:
    if count < FEWEST_ROWS:
        return f"there are {count} test rows"
    if groups is not None and (found := len(np.unique(groups))) < FEWEST_ROWS:
        return f"the {count} test rows are of {found} group{'s' if found > 1 else ''}"
    return None


def _too_few_of_a_task(predictions: MultiPredictions, groups: Array | None) -> str | None:
    for name, place in predictions.places.items():
        part = predictions.parts[name]
        own = None if groups is None else groups[place]
        if reason := too_few(part.metric, part.predictions, part.labels, own):
            return f"of task {name}, {reason}"
    return None


def _draws(count: int, groups: Array | None, seed: int) -> Iterator[Array]:
    """Yield the row numbers of each resample."""
    rng = np.random.default_rng(seed)
    if groups is None:
        yield from (rng.integers(0, count, count) for _ in range(RESAMPLES))
        return
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(sizes) == count:
        yield from _draws(count, None, seed)
        return
    order, starts = np.argsort(group, kind="stable"), np.cumsum(sizes) - sizes
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, len(sizes), len(sizes))
        lengths = sizes[drawn]
        before = np.cumsum(lengths) - lengths  # rows of this resample before each drawn group
        yield order[np.repeat(starts[drawn] - before, lengths) + np.arange(lengths.sum())]


def _intervals(scores: Array) -> list[tuple[float, float] | str]:
    """Return the interval of the first model's score minus each other's, from their scores [resamples, models]."""
    return [_interval(scores[:, 0] - scores[:, number]) for number in range(1, scores.shape[1])]


def _interval(differences: Array) -> tuple[float, float] | str:
    defined = differences[np.isfinite(differences)]
    if len(defined) < (1 - UNDEFINED) * len(differences):
        return f"{len(differences) - len(defined)} of {len(differences)} resamples of the test rows have no score"
    tail = (1 - CONFIDENCE) / 2
    low, high = (float(end) for end in np.quantile(defined, [tail, 1 - tail]))
    if math.isclose(low, high, rel_tol=1e-9, abs_tol=1e-12):
        return "almost every resample of the test rows gives the same difference"
    return low, high
