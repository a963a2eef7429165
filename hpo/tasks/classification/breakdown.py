"""A classifier's score by class: precision, recall and F1 of each class, and the confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hpo.tasks.classification.predictions import LabelPredictions

LISTED = 100  # classes that are listed at most, the most frequent ones
MATRIX = 20  # classes up to which the whole confusion matrix is returned
MISTAKES = 20  # most frequent mistakes, returned instead of a larger matrix


def by_class(outputs: LabelPredictions, labels: Sequence[str]) -> dict[str, Any] | None:
    """Return a classifier's performance by class, as JSON values.

    Args:
        outputs: The classifier's outputs for n rows.
        labels: Names of the classes, by index.

    Returns:
        None for regression, else:

        - `count`: how many classes there are;
        - `classes`: `label`, `precision`, `recall`, `f1`, `support` (rows of the class) and `predicted` (rows predicted
          as the class). A value is None where it is undefined: the precision of a class that is never predicted, the
          recall of a class without rows. Of more than `LISTED` classes, those with the largest support;
        - `never_predicted`: classes with rows that are never predicted; `absent`: classes without rows;
        - `collapsed`: whether all rows got the same prediction though they are of several classes;
        - with one label a row, `confusion` [true classes, predicted classes]; with more than `MATRIX` classes instead
          `mistakes`: the most frequent, as [true, predicted, rows].
    """
    if outputs.task == "regression":
        return None
    from sklearn.metrics import precision_recall_fscore_support

    targets, predicted, index = outputs.targets.astype(int), outputs.predicted, range(len(labels))
    scores = precision_recall_fscore_support(targets, predicted, labels=index, zero_division=np.nan)
    counts = np.bincount(predicted, minlength=len(labels)) if predicted.ndim == 1 else predicted.sum(axis=0)
    support = scores[3]
    names = ("precision", "recall", "f1")
    listed = sorted(np.argsort(-support, kind="stable")[:LISTED].tolist())
    return {
        "count": len(labels),
        "classes": [
            {"label": labels[i]}
            | {name: _none_if_nan(values[i]) for name, values in zip(names, scores[:3], strict=True)}
            | {"support": int(support[i]), "predicted": int(counts[i])}
            for i in listed
        ],
        "never_predicted": [labels[i] for i in index if support[i] and not counts[i]],
        "absent": [labels[i] for i in index if not support[i]],
        "collapsed": outputs.collapsed,
        **(_confusion(targets, predicted, labels) if outputs.task == "single_label" else {}),
    }


def _confusion(targets: Any, predicted: Any, labels: Sequence[str]) -> dict[str, Any]:
    from sklearn.metrics import confusion_matrix

    if len(labels) <= MATRIX:
        return {"confusion": confusion_matrix(targets, predicted, labels=range(len(labels))).tolist()}
    wrong = targets != predicted
    pairs, counts = np.unique(np.stack([targets[wrong], predicted[wrong]], axis=1), axis=0, return_counts=True)
    most = np.argsort(-counts, kind="stable")[:MISTAKES]
    return {"mistakes": [[labels[pairs[i][0]], labels[pairs[i][1]], int(counts[i])] for i in most]}


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
