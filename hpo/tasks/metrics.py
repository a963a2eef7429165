"""The metrics, from scikit-learn and SciPy, each with its direction and its tasks. To add one, add it to `METRICS`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hpo.core.errors import DataError, nearest
from hpo.core.types import Direction
from hpo.tasks.classification import TASKS, Outputs
from hpo.tasks.resampling import Average, by_counts, by_ranks

Array = np.ndarray[Any, Any]
CLASSES = ("single_label", "multi_label")
SMALLEST_GROUP = 10  # rows


@dataclass(frozen=True)
class Metric:
    """A score of a model's outputs.

    Attributes:
        score: Outputs of a split -> the score.
        tasks: The tasks for which it is defined.
        direction: Whether more or less is better.
        rows: Outputs on n rows -> a score of each row [n], if the metric is their mean.
        resampled: Outputs -> a function of row numbers -> the score of these rows, as `score` gives it; see
            `hpo.tasks.resampling`.
        needs: Classes that must have enough rows for the score to be reliable: the `positive` one, or `every`.
        aliases: Names of it in other programs, for "did you mean" in an error.
    """

    score: Callable[[Outputs], float]
    tasks: tuple[str, ...] = CLASSES
    direction: Direction = "maximize"
    rows: Callable[[Outputs], Array] | None = None
    resampled: Callable[[Outputs], Callable[[Array], float]] | None = None
    needs: Literal["", "positive", "every"] = ""
    aliases: tuple[str, ...] = ()


def _labels(name: str, **options: Any) -> Callable[[Outputs], float]:
    """Return a scikit-learn metric of (targets, predictions) as a function of outputs."""

    def score(outputs: Outputs) -> float:
        import sklearn.metrics

        return float(getattr(sklearn.metrics, name)(outputs.targets, outputs.predicted, **options))

    return score


def _averaged(name: str, average: Average, tasks: tuple[str, ...] = CLASSES, aliases: tuple[str, ...] = ()) -> Metric:
    """Return the metric `name` of `RATIOS`, averaged over the classes."""
    needs: dict[Average, Literal["", "positive", "every"]] = {"binary": "positive", "macro": "every"}
    score = _labels(f"{name}_score", average=average, zero_division=0)
    return Metric(score, tasks, resampled=by_counts(name, average), needs=needs.get(average, ""), aliases=aliases)


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
            return 0.0  # SciPy returns NaN for a constant
        return float(getattr(scipy.stats, name)(outputs.targets, outputs.predicted).statistic)

    return score


def _right(outputs: Outputs) -> Array:
    """Return [n]: 1 where a row is predicted right, in all of its labels, else 0."""
    right = outputs.predicted == outputs.targets
    return np.asarray(right if right.ndim == 1 else right.all(axis=1), dtype=float)


def _losses(outputs: Outputs) -> Array:
    """Return [n]: the loss of each row as in training, but without label smoothing."""
    import torch

    logits, targets = torch.as_tensor(outputs.logits, dtype=torch.float64), torch.as_tensor(outputs.targets)
    targets = targets if outputs.task == "single_label" else targets.double()
    return np.asarray(TASKS[outputs.task].loss(logits, targets, 0.0).numpy())


def _loss(outputs: Outputs) -> float:
    return float(_losses(outputs).mean())


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_labels("accuracy_score"), rows=_right, aliases=("acc", "exact_match")),
    "f1_macro": _averaged("f1", "macro"),
    "f1_micro": _averaged("f1", "micro"),
    "f1_weighted": _averaged("f1", "weighted"),
    "f1_binary": _averaged("f1", "binary", ("single_label",)),
    "precision_macro": _averaged("precision", "macro"),
    "precision_micro": _averaged("precision", "micro"),
    "precision_weighted": _averaged("precision", "weighted"),
    "precision_binary": _averaged("precision", "binary", ("single_label",)),
    "recall_macro": _averaged("recall", "macro", aliases=("balanced_accuracy", "uar")),
    "recall_micro": _averaged("recall", "micro"),
    "recall_weighted": _averaged("recall", "weighted"),
    "recall_binary": _averaged("recall", "binary", ("single_label",)),
    "matthews": Metric(_labels("matthews_corrcoef"), ("single_label",), needs="every", aliases=("mcc",)),
    "roc_auc": Metric(_roc_auc, resampled=by_ranks, needs="every", aliases=("auc", "auroc")),
    "pearson": Metric(_correlation("pearsonr"), ("regression",)),
    "spearman": Metric(_correlation("spearmanr"), ("regression",)),
    "loss": Metric(
        _loss,
        ("single_label", "multi_label", "regression"),
        "minimize",
        _losses,
        aliases=("cross_entropy", "log_loss", "mse", "mean_squared_error"),
    ),
}


def suggested(name: str) -> str:
    """Return `; did you mean X?` for a name that is no metric, or all metrics where none is close."""
    asked = name.casefold().replace("-", "_").removeprefix("eval_").removesuffix("_score")
    found = [metric for metric, entry in METRICS.items() if asked == metric or asked in entry.aliases]
    found = found or [metric for metric in METRICS if metric.startswith(f"{asked}_")]  # f1, precision, recall
    found = found or [metric for metric in METRICS if sorted(metric.split("_")) == sorted(asked.split("_"))]  # macro_f1
    return f"; did you mean {' or '.join(found)}?" if found else nearest(name, METRICS)


def chosen(metric: str | None, task: str, labels: int, splits: Mapping[str, Array]) -> str:
    """Return a study's metric, the task's default if it names none, after checking that it is defined on the splits.

    Args:
        metric: As in `METRICS`, or None.
        task: As in `TASKS`.
        labels: Number of labels.
        splits: Name -> targets of each split that is scored.

    Raises:
        DataError: The metric is not defined for the task or on a split, or is 0 even for perfect predictions.
    """
    metric = metric or TASKS[task].metric
    if task not in METRICS[metric].tasks:
        defined = ", ".join(name for name, entry in METRICS.items() if task in entry.tasks)
        raise DataError(f"metric {metric!r} is not defined for {task}, which the labels are; one of {defined}")
    for name, targets in splits.items():
        logits = np.random.default_rng(0).normal(size=(len(targets), max(labels, 1)))
        if not math.isfinite(score(metric, Outputs(task, targets, logits))):
            raise DataError(
                f"metric {metric!r} is not defined on the {name} split: it may lack a class, or the metric may be for "
                "two labels only. Choose another metric, or a larger split"
            )
    validation = splits.get("validation")
    maximized = METRICS[metric].direction == "maximize"
    if maximized and validation is not None and score(metric, _perfect_outputs(task, validation, labels)) == 0:
        raise DataError(
            f"metric {metric!r} is 0 on the validation split even where every row is right, as its rows have no "
            "positive label, or all one label: there is nothing to choose by. Choose another metric, or a larger split"
        )
    return metric


def _perfect_outputs(task: str, targets: Array, labels: int) -> Outputs:
    """Return outputs that predict the targets."""
    if task == "regression":
        return Outputs(task, targets, targets[:, None])
    return Outputs(task, targets, np.eye(labels)[targets] if task == "single_label" else 2 * targets - 1)


@dataclass(frozen=True)
class GroupScore:
    """The score of one group of rows.

    Attributes:
        name: Name of the group.
        score: Score of its rows.
        rows: Number of its rows.
        compared: Number of groups that were compared.
    """

    name: str
    score: float
    rows: int
    compared: int


def worst_group(metric: str, outputs: Outputs, groups: Sequence[str]) -> GroupScore | None:
    """Return the group on which a model scores worst (worst-group performance, Sagawa et al., 2020).

    Groups of fewer than `SMALLEST_GROUP` rows are left out, as chance would decide which of them is the worst. Groups
    with equal targets are left out too, unless the metric is a mean over rows, as other metrics are not defined there.

    Args:
        metric: Name in `METRICS`.
        outputs: Outputs on n rows.
        groups: The group of each row, n of them.

    Returns:
        The worst group, the first by name of equally bad ones; None if no group can be scored.
    """
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    found = []
    for name, rows in sorted(members.items()):
        part = outputs.take(np.array(rows))
        defined = METRICS[metric].rows is not None or not bool((part.targets == part.targets[:1]).all())
        if len(rows) >= SMALLEST_GROUP and defined and math.isfinite(value := score(metric, part)):
            found.append((value, name, len(rows)))
    if not found:
        return None
    sign = -1 if METRICS[metric].direction == "minimize" else 1
    value, name, count = min(found, key=lambda each: sign * each[0])
    return GroupScore(name, value, count, len(found))


def score(metric: str, outputs: Outputs) -> float:
    """Return a metric of a model's outputs; NaN where it is not defined for these targets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return METRICS[metric].score(outputs)
        except ValueError:
            return float("nan")
