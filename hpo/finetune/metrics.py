"""The metrics: scikit-learn's and SciPy's, each with its direction and its tasks. Add one to `METRICS`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hpo.errors import DataError
from hpo.finetune.tasks import TASKS, Outputs

Array = np.ndarray[Any, Any]
Direction = Literal["maximize", "minimize"]

CLASSES = ("single_label", "multi_label")


@dataclass(frozen=True)
class Metric:
    """A score of a model's outputs.

    Attributes:
        score: Outputs of a split -> the score.
        tasks: The tasks it is defined for.
        direction: Which way is better.
        rows: Outputs of n rows -> a score of each [n], where the metric is their mean: resampled in one operation.
        needs: Classes of which there have to be rows, for the score to say something: the `positive` one, or `every`.
    """

    score: Callable[[Outputs], float]
    tasks: tuple[str, ...] = CLASSES
    direction: Direction = "maximize"
    rows: Callable[[Outputs], Array] | None = None
    needs: Literal["", "positive", "every"] = ""


def _labels(name: str, **options: Any) -> Callable[[Outputs], float]:
    """Return a scikit-learn metric of (targets, predictions) as one of outputs."""

    def score(outputs: Outputs) -> float:
        import sklearn.metrics

        return float(getattr(sklearn.metrics, name)(outputs.targets, outputs.predicted, **options))

    return score


def _averaged(name: str, average: str) -> Callable[[Outputs], float]:
    return _labels(name, average=average, zero_division=0)


def _roc_auc(outputs: Outputs) -> float:
    """Area under the ROC curve; macro average, one against the rest, for more than two classes."""
    import sklearn.metrics

    probabilities = outputs.probabilities
    if outputs.task == "single_label":
        if probabilities.shape[1] == 2:
            return float(sklearn.metrics.roc_auc_score(outputs.targets, probabilities[:, 1]))
        return float(
            sklearn.metrics.roc_auc_score(
                outputs.targets, probabilities, multi_class="ovr", labels=range(probabilities.shape[1])
            )
        )
    return float(sklearn.metrics.roc_auc_score(outputs.targets, probabilities))


def _correlation(name: str) -> Callable[[Outputs], float]:
    def score(outputs: Outputs) -> float:
        import scipy.stats

        if np.ptp(outputs.predicted) == 0 or np.ptp(outputs.targets) == 0:
            return 0.0  # a constant is correlated with nothing; SciPy would say NaN
        return float(getattr(scipy.stats, name)(outputs.targets, outputs.predicted).statistic)

    return score


def _right(outputs: Outputs) -> Array:
    """Return whether each row is right, in all of its labels."""
    right = outputs.predicted == outputs.targets
    return np.asarray(right if right.ndim == 1 else right.all(axis=1), dtype=float)


def _losses(outputs: Outputs) -> Array:
    """Return the loss of each row that training minimises, without label smoothing."""
    import torch

    logits, targets = torch.as_tensor(outputs.logits, dtype=torch.float64), torch.as_tensor(outputs.targets)
    targets = targets if outputs.task == "single_label" else targets.double()
    return np.asarray(TASKS[outputs.task].loss(logits, targets, 0.0).numpy())


def _loss(outputs: Outputs) -> float:
    return float(_losses(outputs).mean())


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_labels("accuracy_score"), rows=_right),
    "f1_macro": Metric(_averaged("f1_score", "macro"), needs="every"),
    "f1_micro": Metric(_averaged("f1_score", "micro")),
    "f1_weighted": Metric(_averaged("f1_score", "weighted")),
    "f1_binary": Metric(_averaged("f1_score", "binary"), ("single_label",), needs="positive"),
    "precision_macro": Metric(_averaged("precision_score", "macro"), needs="every"),
    "precision_micro": Metric(_averaged("precision_score", "micro")),
    "precision_weighted": Metric(_averaged("precision_score", "weighted")),
    "precision_binary": Metric(_averaged("precision_score", "binary"), ("single_label",), needs="positive"),
    "recall_macro": Metric(_averaged("recall_score", "macro"), needs="every"),
    "recall_micro": Metric(_averaged("recall_score", "micro")),
    "recall_weighted": Metric(_averaged("recall_score", "weighted")),
    "recall_binary": Metric(_averaged("recall_score", "binary"), ("single_label",), needs="positive"),
    "matthews": Metric(_labels("matthews_corrcoef"), ("single_label",), needs="every"),
    "roc_auc": Metric(_roc_auc, needs="every"),
    "pearson": Metric(_correlation("pearsonr"), ("regression",)),
    "spearman": Metric(_correlation("spearmanr"), ("regression",)),
    "loss": Metric(_loss, ("single_label", "multi_label", "regression"), "minimize", _losses),
}


def chosen(metric: str | None, task: str, labels: int, splits: Mapping[str, Array]) -> str:
    """Return a study's metric, the task's own if it names none, after a look at whether it can be computed.

    Args:
        metric: As in `METRICS`, or None.
        task: As in `TASKS`.
        labels: How many there are.
        splits: Name -> targets of the splits that are scored.

    Raises:
        DataError: It is not defined for the task, or on a split.
    """
    metric = metric or TASKS[task].metric
    if task not in METRICS[metric].tasks:
        fit = ", ".join(name for name, entry in METRICS.items() if task in entry.tasks)
        raise DataError(f"metric {metric!r} is not defined for {task}, which the labels are; one of {fit}")
    for name, targets in splits.items():
        logits = np.random.default_rng(0).normal(size=(len(targets), max(labels, 1)))
        if not math.isfinite(score(metric, Outputs(task, targets, logits))):
            raise DataError(
                f"metric {metric!r} is not defined on the {name} split: it may lack a class, or the metric may be for "
                "two labels only. Choose another metric, or a larger split"
            )
    return metric


def score(metric: str, outputs: Outputs) -> float:
    """Return one metric of a model's outputs; NaN where it is not defined for these targets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return METRICS[metric].score(outputs)
        except ValueError:
            return float("nan")
