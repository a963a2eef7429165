"""Confidence intervals of the difference between two models: a paired bootstrap over their common test rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from hpo.tasks.classification import Outputs
from hpo.tasks.metrics import METRICS, score

Array = np.ndarray[Any, Any]

RESAMPLES = 2000
CONFIDENCE = 0.95
FEWEST_ROWS = 10  # rows, or groups of rows, below which resampling tells nothing about other rows
FEWEST_OF_A_CLASS = 5  # rows of a class that the metric depends on
UNDEFINED = 0.05  # share of resamples without a score, above which the others are a biased selection


def intervals(
    metric: str,
    models: Sequence[Outputs],
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
        models: Outputs of two models or more on the same n rows.
        labels: Names of the classes, by index.
        groups: [n] group of each row. A group is drawn as a whole, as its rows are not independent. None: no groups.
        seed: Seeds the resampling.

    Returns:
        (low, high) with low < high; or the reason why the rows allow no interval.
    """
    if reason := too_few(metric, models[0], labels, groups):
        return [reason] * (len(models) - 1)
    scores = resampled(metric, models, groups, seed)
    return [_interval(scores[:, 0] - scores[:, number]) for number in range(1, len(models))]


def resampled(metric: str, models: Sequence[Outputs], groups: Array | None = None, seed: int = 0) -> Array:
    """Return the scores on every resample, [RESAMPLES, models]; NaN where undefined. Arguments as of `intervals`."""
    draws, entry = _draws(len(models[0].targets), groups, seed), METRICS[metric]
    if entry.rows is not None:
        each = np.stack([entry.rows(model) for model in models])
        return np.array([each[:, rows].mean(axis=1) for rows in draws])
    if entry.resampled is not None:
        scorers = [entry.resampled(model) for model in models]
        return np.array([[scorer(rows) for scorer in scorers] for rows in draws])
    return np.array([[score(metric, model.take(rows)) for model in models] for rows in draws])


def too_few(metric: str, outputs: Outputs, labels: Sequence[str] = (), groups: Array | None = None) -> str | None:
    """Return why there are too few rows to compare models by this metric, or None. Arguments as of `intervals`."""
    count = len(outputs.targets)
    if count < FEWEST_ROWS:
        return f"there are {count} test rows"
    if groups is not None and (found := len(np.unique(groups))) < FEWEST_ROWS:
        return f"the {count} test rows are of {found} group{'s' if found > 1 else ''}"
    if needs := METRICS[metric].needs:
        counts = _class_counts(outputs, len(labels))
        rarest = len(counts) - 1 if needs == "positive" else int(counts.argmin())
        if counts[rarest] < FEWEST_OF_A_CLASS:
            name = repr(labels[rarest]) if labels else f"class {rarest}"
            return f"{counts[rarest]} of {count} test rows are {name}, on which {metric} depends"
    elif outputs.task == "multi_label" and (total := int(outputs.targets.sum())) < FEWEST_OF_A_CLASS:
        return f"the {count} test rows have {total} labels in all"
    return None


def _class_counts(outputs: Outputs, classes: int) -> Array:
    """Return the rows of each class; with several labels a row, the rows with or without each label, the fewer."""
    if outputs.task == "single_label":
        return np.bincount(outputs.targets, minlength=max(classes, outputs.logits.shape[1]))
    having = outputs.targets.sum(axis=0).astype(int)
    return np.asarray(np.minimum(having, len(outputs.targets) - having))


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


def _interval(differences: Array) -> tuple[float, float] | str:
    defined = differences[np.isfinite(differences)]
    if len(defined) < (1 - UNDEFINED) * len(differences):
        return f"{len(differences) - len(defined)} of {len(differences)} resamples of the test rows have no score"
    tail = (1 - CONFIDENCE) / 2
    low, high = (float(end) for end in np.quantile(defined, [tail, 1 - tail]))
    if math.isclose(low, high, rel_tol=1e-9, abs_tol=1e-12):
        return "almost every resample of the test rows gives the same difference"
    return low, high
