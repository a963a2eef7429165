"""Whether a metric can be computed, and compared, on the rows of a split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hpo.core.errors import DataError
from hpo.tasks.classification.predictions import LabelPredictions
from hpo.tasks.dataset import Dataset
from hpo.tasks.metrics import METRICS, score

Array = np.ndarray[Any, Any]

FEWEST_OF_A_CLASS = 5  # rows of a class that the metric depends on


def refuse_metric(metric: str, task: str, data: Dataset) -> None:
    """Refuse a metric that there is nothing to choose by.

    Args:
        metric: Name in `METRICS`.
        task: Name in `KINDS`.
        data: The study's data.

    Raises:
        DataError: The metric is not defined on a split, or is 0 even for perfect predictions.
    """
    labels = len(data.labels)
    for name in ("validation", "test"):
        targets = data.splits[name].targets
        logits = np.random.default_rng(0).normal(size=(len(targets), max(labels, 1)))
        if not math.isfinite(score(metric, LabelPredictions(task, targets, logits))):
            raise DataError(
                f"metric {metric!r} is not defined on the {name} split: it may lack a class, or the metric may be for "
                "two labels only. Choose another metric, or a larger split"
            )
    maximized = METRICS[metric].direction == "maximize"
    if maximized and score(metric, _perfect(task, data.splits["validation"].targets, labels)) == 0:
        raise DataError(
            f"metric {metric!r} is 0 on the validation split even where every row is right, as its rows have no "
            "positive label, or all one label: there is nothing to choose by. Choose another metric, or a larger split"
        )


def _perfect(task: str, targets: Array, labels: int) -> LabelPredictions:
    """Return predictions that are the targets."""
    if task == "regression":
        return LabelPredictions(task, targets, targets[:, None])
    return LabelPredictions(task, targets, np.eye(labels)[targets] if task == "single_label" else 2 * targets - 1)


def too_few(metric: str, predictions: LabelPredictions, labels: Sequence[str] = ()) -> str | None:
    """Return why there are too few rows of a class to compare models by a metric, or None.

    Args:
        metric: Name in `METRICS`.
        predictions: Predictions for the test rows.
        labels: Names of the classes, by index.
    """
    count = len(predictions)
    if needs := METRICS[metric].needs:
        counts = _class_counts(predictions, len(labels))
        rarest = len(counts) - 1 if needs == "positive" else int(counts.argmin())
        if counts[rarest] < FEWEST_OF_A_CLASS:
            name = repr(labels[rarest]) if labels else f"class {rarest}"
            return f"{counts[rarest]} of {count} test rows are {name}, on which {metric} depends"
    elif predictions.task == "multi_label" and (total := int(predictions.targets.sum())) < FEWEST_OF_A_CLASS:
        return f"the {count} test rows have {total} labels in all"
    return None


def _class_counts(predictions: LabelPredictions, classes: int) -> Array:
    """Return the rows of each class; with several labels a row, the rows with or without each label, the fewer."""
    if predictions.task == "single_label":
        return np.bincount(predictions.targets, minlength=max(classes, predictions.logits.shape[1]))
    having = predictions.targets.sum(axis=0).astype(int)
    return np.asarray(np.minimum(having, len(predictions) - having))
