"""The metrics, each with its direction and its tasks, as scikit-learn and SciPy define them. Add one to `METRICS`.

Each scores rows that count several times, for many such countings at once: a bootstrap is one call and not
thousands, and no library warns, which could only be hushed for all threads together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hpo.finetune.tasks import TASKS, Outputs

Array = np.ndarray[Any, Any]
Direction = Literal["maximize", "minimize"]
Scores = Callable[[Outputs, Array], Array]

CLASSES = ("single_label", "multi_label")


@dataclass(frozen=True)
class Metric:
    """A score of a model's outputs.

    Attributes:
        score: (outputs of n rows, how often each counts [b, n]) -> scores [b].
        tasks: The tasks it is defined for.
        direction: Which way is better.
    """

    score: Scores
    tasks: tuple[str, ...] = CLASSES
    direction: Direction = "maximize"


def _ratio(part: Array, whole: Array) -> Array:
    """Return part / whole, 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole != 0)


def _mean(of: Callable[[Outputs], Array]) -> Scores:
    return lambda outputs, counts: counts @ of(outputs) / counts.sum(axis=1)


# ---------------------------------------------------------------- rows


def _right(outputs: Outputs) -> Array:
    """Return whether each of n rows is right, in all of its labels."""
    right = outputs.predicted == outputs.targets
    return np.asarray(right if right.ndim == 1 else right.all(axis=1), dtype=float)


def _losses(outputs: Outputs) -> Array:
    """Return the loss of each of n rows that training minimises, without label smoothing."""
    import torch

    logits, targets = torch.as_tensor(outputs.logits, dtype=torch.float64), torch.as_tensor(outputs.targets)
    targets = targets if outputs.task == "single_label" else targets.double()
    return np.asarray(TASKS[outputs.task].loss(logits, targets, 0.0).numpy())


# ---------------------------------------------------------------- labels


def _hot(outputs: Outputs, rows: Array) -> Array:
    """Return the classes or labels of n rows as 0.0 and 1.0, [n, labels]."""
    return np.eye(outputs.logits.shape[1])[rows] if outputs.task == "single_label" else rows.astype(float)


def _found(outputs: Outputs, counts: Array) -> tuple[Array, Array, Array]:
    """Return how often each label was predicted rightly, was predicted, and was true, [b, labels] each."""
    said, true = _hot(outputs, outputs.predicted), _hot(outputs, outputs.targets)
    return counts @ (said * true), counts @ said, counts @ true


def _averaged(kind: Literal["f1", "precision", "recall"], average: str) -> Scores:
    def score(outputs: Outputs, counts: Array) -> Array:
        hits, said, true = found = _found(outputs, counts)
        if average == "binary":
            if hits.shape[1] != 2:
                return np.full(len(counts), np.nan)
            hits, said, true = (of[:, 1:] for of in found)
        elif average == "micro":
            hits, said, true = (of.sum(axis=1, keepdims=True) for of in found)
        scores = _ratio(hits, {"f1": (said + true) / 2, "precision": said, "recall": true}[kind])
        weights = true if average == "weighted" else np.ones_like(true)
        if average == "macro" and outputs.task == "single_label":  # a class that does not occur is none
            weights = np.asarray(said + true > 0, dtype=float)
        return _ratio((scores * weights).sum(axis=1), weights.sum(axis=1))

    return score


def _matthews(outputs: Outputs, counts: Array) -> Array:
    """Correlation of predicted and true class (Gorodkin, 2004); 0 where either is always the same."""
    hits, said, true = _found(outputs, counts)
    rows = counts.sum(axis=1)
    spread = (rows**2 - (said**2).sum(axis=1)) * (rows**2 - (true**2).sum(axis=1))
    return _ratio(hits.sum(axis=1) * rows - (said * true).sum(axis=1), np.sqrt(spread))


# ---------------------------------------------------------------- ranks


def _ranks(values: Array, counts: Array) -> Array:
    """Return each row's rank, [b, n]: from 1, the mean one where values are equal; NaN if a value is NaN."""
    if np.isnan(values).any():
        return np.full(counts.shape, np.nan)
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    last = np.flatnonzero(np.diff(group[order], append=-1))  # of each group of equal values
    upto = counts[:, order].cumsum(axis=1)[:, last]
    before = np.pad(upto[:, :-1], ((0, 0), (1, 0)))
    return np.asarray(((before + upto + 1) / 2)[:, group])


def _roc_auc(outputs: Outputs, counts: Array) -> Array:
    """Area under the ROC curve; macro average, one against the rest, for more than two classes."""
    positive, scores = _hot(outputs, outputs.targets), outputs.probabilities
    if outputs.task == "single_label" and positive.shape[1] == 2:
        positive, scores = positive[:, 1:], scores[:, 1:]
    areas = []
    for yes, values in zip(positive.T, scores.T, strict=True):
        some = counts @ yes
        above = (counts * _ranks(values, counts)) @ yes - some * (some + 1) / 2  # Mann-Whitney's U
        areas.append(above / (some * (counts.sum(axis=1) - some)))
    return np.asarray(np.mean(areas, axis=0))


def _correlation(x: Array, y: Array, counts: Array) -> Array:
    """Return Pearson's correlation of x and y, [n] or [b, n]; 0 where one is constant."""
    first, rows = np.argmax(counts > 0, axis=1)[:, None], counts.sum(axis=1, keepdims=True)
    centred = []
    for values in (x, y):
        values = np.broadcast_to(values.astype(float), counts.shape)
        values = values - np.take_along_axis(values, first, axis=1)  # a constant is now exactly 0
        centred.append(values - (counts * values).sum(axis=1, keepdims=True) / rows)
    x, y = centred
    spread = np.sqrt((counts * x * x).sum(axis=1) * (counts * y * y).sum(axis=1))
    return np.clip(_ratio((counts * x * y).sum(axis=1), spread), -1, 1)


def _pearson(outputs: Outputs, counts: Array) -> Array:
    return _correlation(outputs.targets, outputs.predicted, counts)


def _spearman(outputs: Outputs, counts: Array) -> Array:
    return _correlation(_ranks(outputs.targets, counts), _ranks(outputs.predicted, counts), counts)


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_mean(_right)),
    "f1_macro": Metric(_averaged("f1", "macro")),
    "f1_micro": Metric(_averaged("f1", "micro")),
    "f1_weighted": Metric(_averaged("f1", "weighted")),
    "f1_binary": Metric(_averaged("f1", "binary"), ("single_label",)),
    "precision_macro": Metric(_averaged("precision", "macro")),
    "precision_micro": Metric(_averaged("precision", "micro")),
    "precision_weighted": Metric(_averaged("precision", "weighted")),
    "precision_binary": Metric(_averaged("precision", "binary"), ("single_label",)),
    "recall_macro": Metric(_averaged("recall", "macro")),
    "recall_micro": Metric(_averaged("recall", "micro")),
    "recall_weighted": Metric(_averaged("recall", "weighted")),
    "recall_binary": Metric(_averaged("recall", "binary"), ("single_label",)),
    "matthews": Metric(_matthews, ("single_label",)),
    "roc_auc": Metric(_roc_auc),
    "pearson": Metric(_pearson, ("regression",)),
    "spearman": Metric(_spearman, ("regression",)),
    "loss": Metric(_mean(_losses), ("single_label", "multi_label", "regression"), "minimize"),
}


def scores(metric: str, outputs: Outputs, counts: Array) -> Array:
    """Return one metric of a model's outputs for several countings of its rows, e.g. the samples of a bootstrap.

    Args:
        metric: Name in `METRICS`.
        outputs: What the model said of n rows.
        counts: How often each row counts, [b, n].

    Returns:
        [b]; NaN where the metric is not defined for these targets.
    """
    with np.errstate(all="ignore"):
        return METRICS[metric].score(outputs, counts.astype(float))


def score(metric: str, outputs: Outputs) -> float:
    """Return one metric of a model's outputs; NaN where it is not defined for these targets."""
    return float(scores(metric, outputs, np.ones((1, len(outputs.targets))))[0])
