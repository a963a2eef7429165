"""A classifier's score taken apart: precision, recall and F1 of each class, and what it takes for what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hpo.tasks.classification import Outputs

LISTED = 100  # classes of which each has a line; of more, the most frequent
MATRIX = 20  # classes up to which the confusion matrix is kept whole
MISTAKES = 20  # most frequent mistakes, in place of a larger matrix


def by_class(outputs: Outputs, labels: Sequence[str]) -> dict[str, Any] | None:
    """Return a classifier's performance class by class, as JSON values.

    Args:
        outputs: What it says of n rows.
        labels: Names of the classes, by index.

    Returns:
        None for regression, else:

        - `count`: how many classes there are;
        - `classes`: `label`, `precision`, `recall`, `f1`, `support` (rows of the class) and `predicted` (rows that are
          said to be of it); None where it is not defined: the precision of what is never predicted, the recall of what
          no row is. Of more than `LISTED` classes, those with the largest support;
        - `never_predicted`: classes that rows are of and that are never predicted; `absent`: those that no row is of;
        - `collapsed`: whether all rows got the same answer though they are not of one class;
        - with one label a row, `confusion` [classes, classes], rows of the true class, columns of the predicted one; of
          more than `MATRIX` classes instead `mistakes`: the most frequent, as [true, predicted, rows].
    """
    if outputs.task == "regression":
        return None
    from sklearn.metrics import precision_recall_fscore_support

    targets, said, index = outputs.targets.astype(int), outputs.predicted, range(len(labels))
    scores = precision_recall_fscore_support(targets, said, labels=index, zero_division=np.nan)
    counts = np.bincount(said, minlength=len(labels)) if said.ndim == 1 else said.sum(axis=0)
    support = scores[3]
    names = ("precision", "recall", "f1")
    listed = sorted(np.argsort(-support, kind="stable")[:LISTED].tolist())
    return {
        "count": len(labels),
        "classes": [
            {"label": labels[i]}
            | {name: _defined(values[i]) for name, values in zip(names, scores[:3], strict=True)}
            | {"support": int(support[i]), "predicted": int(counts[i])}
            for i in listed
        ],
        "never_predicted": [labels[i] for i in index if support[i] and not counts[i]],
        "absent": [labels[i] for i in index if not support[i]],
        "collapsed": outputs.collapsed,
        **(_confusion(targets, said, labels) if outputs.task == "single_label" else {}),
    }


def _confusion(targets: Any, said: Any, labels: Sequence[str]) -> dict[str, Any]:
    from sklearn.metrics import confusion_matrix

    if len(labels) <= MATRIX:
        return {"confusion": confusion_matrix(targets, said, labels=range(len(labels))).tolist()}
    wrong = targets != said
    pairs, counts = np.unique(np.stack([targets[wrong], said[wrong]], axis=1), axis=0, return_counts=True)
    most = np.argsort(-counts, kind="stable")[:MISTAKES]
    return {"mistakes": [[labels[pairs[i][0]], labels[pairs[i][1]], int(counts[i])] for i in most]}


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
