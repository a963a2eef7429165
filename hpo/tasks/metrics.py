"""The metrics: scikit-learn's and SciPy's, each with its direction and its tasks. Add one to `METRICS`."""

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

Array = np.ndarray[Any, Any]
CLASSES = ("single_label", "multi_label")
LEAST_OF_A_GROUP = 10  # rows


@dataclass(frozen=True)
class Metric:
    """A score of a model's outputs.

    Attributes:
        score: Outputs of a split -> the score.
        tasks: The tasks it is defined for.
        direction: Which way is better.
        rows: Outputs of n rows -> a score of each [n], where the metric is their mean: resampled in one operation.
        resampled: Outputs -> a function of row numbers -> the score of these rows: the same as `score`, prepared once
            for many resamples, and a hundred times faster.
        needs: Classes of which there have to be rows, for the score to say something: the `positive` one, or `every`.
        also: Names that other programs have for it, for an error's "did you mean".
    """

    score: Callable[[Outputs], float]
    tasks: tuple[str, ...] = CLASSES
    direction: Direction = "maximize"
    rows: Callable[[Outputs], Array] | None = None
    resampled: Callable[[Outputs], Callable[[Array], float]] | None = None
    needs: Literal["", "positive", "every"] = ""
    also: tuple[str, ...] = ()


def _labels(name: str, **options: Any) -> Callable[[Outputs], float]:
    """Return a scikit-learn metric of (targets, predictions) as one of outputs."""

    def score(outputs: Outputs) -> float:
        import sklearn.metrics

        return float(getattr(sklearn.metrics, name)(outputs.targets, outputs.predicted, **options))

    return score


Average = Literal["macro", "micro", "weighted", "binary"]

# Rows of each class that are hit, predicted and there -> numerator and denominator of its score.
RATIOS: dict[str, Callable[[Array, Array, Array], tuple[Array, Array]]] = {
    "f1": lambda hit, predicted, there: (2 * hit, predicted + there),
    "precision": lambda hit, predicted, there: (hit, predicted),
    "recall": lambda hit, predicted, there: (hit, there),
}


def _averaged(name: str, average: Average, tasks: tuple[str, ...] = CLASSES, also: tuple[str, ...] = ()) -> Metric:
    """Return the metric `name` of `RATIOS`, averaged over the classes."""
    needs: dict[Average, Literal["", "positive", "every"]] = {"binary": "positive", "macro": "every"}
    score = _labels(f"{name}_score", average=average, zero_division=0)
    return Metric(score, tasks, resampled=_counted(name, average), needs=needs.get(average, ""), also=also)


def _counted(name: str, average: Average) -> Callable[[Outputs], Callable[[Array], float]]:
    """Return what scikit-learn computes from targets and predictions, from how many rows are of each class."""

    def score(hit: Array, predicted: Array, there: Array, counts: Array) -> float:
        above, below = RATIOS[name](hit, predicted, there)
        if average == "micro":
            above, below = above.sum(keepdims=True), below.sum(keepdims=True)
        each = np.divide(above, below, out=np.zeros(len(above)), where=below > 0)
        if average == "weighted":
            return float(each @ there / max(1, there.sum()))
        if average == "binary":
            return float(each[1])
        return float(each[counts].mean() if average == "macro" else each[0])

    def resampled(outputs: Outputs) -> Callable[[Array], float]:
        counts = _counter(outputs)
        return lambda rows: score(*counts(rows))

    return resampled


def _counter(outputs: Outputs) -> Callable[[Array], tuple[Array, Array, Array, Array]]:
    """Return a function of row numbers, which counts the rows of each class that are hit, predicted and there.

    The last of what it returns [classes] is which classes an average is over: with one label a row, as in
    scikit-learn, those that any row is of or is said to be of.
    """
    targets, predicted = outputs.targets.astype(np.int64), outputs.predicted
    hit = targets == predicted
    if outputs.task == "multi_label":
        both, every = targets * predicted, np.ones(targets.shape[1], dtype=bool)
        return lambda rows: (*(each[rows].sum(axis=0) for each in (both, predicted, targets)), every)
    count = outputs.logits.shape[1]

    def counts(rows: Array) -> tuple[Array, Array, Array, Array]:
        true, said = targets[rows], predicted[rows]
        hits, predictions, there = (np.bincount(each, minlength=count) for each in (true[hit[rows]], said, true))
        return hits, predictions, there, predictions + there > 0

    return counts


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


def _ranked(outputs: Outputs) -> Callable[[Array], float]:
    """Return what `_roc_auc` computes, from ranks that are found once; NaN where a class is missing.

    The area is the share of pairs of a row that is of the class and one that is not in which the former ranks higher,
    ties being half (Hanley and McNeil, 1982).
    """
    probabilities, targets = outputs.probabilities, outputs.targets
    if outputs.task == "single_label":
        classes = range(probabilities.shape[1]) if probabilities.shape[1] > 2 else [1]
        of, scores = [targets == label for label in classes], [probabilities[:, label] for label in classes]
    else:
        of, scores = list(targets.T == 1), list(probabilities.T)
    ranks = [np.unique(each, return_inverse=True)[1] for each in scores]

    def area(rows: Array, is_of: Array, rank: Array) -> float:
        yes = np.bincount(rank[rows], is_of[rows])
        no = np.bincount(rank[rows]) - yes
        pairs = yes.sum() * no.sum()
        return float(yes @ (np.cumsum(no) - no / 2) / pairs) if pairs else math.nan

    return lambda rows: float(np.mean([area(rows, *each) for each in zip(of, ranks, strict=True)]))


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
    "accuracy": Metric(_labels("accuracy_score"), rows=_right, also=("acc", "exact_match")),
    "f1_macro": _averaged("f1", "macro"),
    "f1_micro": _averaged("f1", "micro"),
    "f1_weighted": _averaged("f1", "weighted"),
    "f1_binary": _averaged("f1", "binary", ("single_label",)),
    "precision_macro": _averaged("precision", "macro"),
    "precision_micro": _averaged("precision", "micro"),
    "precision_weighted": _averaged("precision", "weighted"),
    "precision_binary": _averaged("precision", "binary", ("single_label",)),
    "recall_macro": _averaged("recall", "macro", also=("balanced_accuracy", "uar")),
    "recall_micro": _averaged("recall", "micro"),
    "recall_weighted": _averaged("recall", "weighted"),
    "recall_binary": _averaged("recall", "binary", ("single_label",)),
    "matthews": Metric(_labels("matthews_corrcoef"), ("single_label",), needs="every", also=("mcc",)),
    "roc_auc": Metric(_roc_auc, resampled=_ranked, needs="every", also=("auc", "auroc")),
    "pearson": Metric(_correlation("pearsonr"), ("regression",)),
    "spearman": Metric(_correlation("spearmanr"), ("regression",)),
    "loss": Metric(
        _loss,
        ("single_label", "multi_label", "regression"),
        "minimize",
        _losses,
        also=("cross_entropy", "log_loss", "mse", "mean_squared_error"),
    ),
}


def suggested(name: str) -> str:
    """Return `; did you mean X?` for a name that is no metric, or all metrics where none is close."""
    asked = name.casefold().replace("-", "_").removeprefix("eval_").removesuffix("_score")
    same = [metric for metric, entry in METRICS.items() if asked == metric or asked in entry.also]
    same = same or [metric for metric in METRICS if metric.startswith(f"{asked}_")]  # f1, precision, recall
    same = same or [metric for metric in METRICS if sorted(metric.split("_")) == sorted(asked.split("_"))]  # macro_f1
    return f"; did you mean {' or '.join(same)}?" if same else nearest(name, METRICS)


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
    validation = splits.get("validation")
    rises = METRICS[metric].direction == "maximize"
    if rises and validation is not None and score(metric, _right_outputs(task, validation, labels)) == 0:
        raise DataError(
            f"metric {metric!r} is 0 on the validation split even where every row is right, as its rows have no "
            "positive label, or all one label: there is nothing to choose by. Choose another metric, or a larger split"
        )
    return metric


def _right_outputs(task: str, targets: Array, labels: int) -> Outputs:
    """Return outputs that predict the targets."""
    if task == "regression":
        return Outputs(task, targets, targets[:, None])
    return Outputs(task, targets, np.eye(labels)[targets] if task == "single_label" else 2 * targets - 1)


@dataclass(frozen=True)
class GroupScore:
    """The score of one group of rows.

    Attributes:
        name: The group.
        score: Of its rows.
        rows: How many they are.
        compared: How many groups were compared.
    """

    name: str
    score: float
    rows: int
    compared: int


def worst_group(metric: str, outputs: Outputs, groups: Sequence[str]) -> GroupScore | None:
    """Return the group on which a model scores worst (worst-group performance, Sagawa et al., 2020).

    Groups of fewer than `LEAST_OF_A_GROUP` rows are left out, as the worst of them would be so by chance; so are groups
    whose targets are all equal, unless the metric is a mean over rows, as it would not be defined.

    Args:
        metric: Name in `METRICS`.
        outputs: Outputs on n rows.
        groups: The group of each row, n of them.

    Returns:
        The worst group, of equals the first by name; None if no group can be scored.
    """
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    found = []
    for name, rows in sorted(members.items()):
        part = outputs.take(np.array(rows))
        told_apart = METRICS[metric].rows is not None or not bool((part.targets == part.targets[:1]).all())
        if len(rows) >= LEAST_OF_A_GROUP and told_apart and math.isfinite(value := score(metric, part)):
            found.append((value, name, len(rows)))
    if not found:
        return None
    sign = -1 if METRICS[metric].direction == "minimize" else 1
    value, name, count = min(found, key=lambda each: sign * each[0])
    return GroupScore(name, value, count, len(found))


def score(metric: str, outputs: Outputs) -> float:
    """Return one metric of a model's outputs; NaN where it is not defined for these targets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return METRICS[metric].score(outputs)
        except ValueError:
            return float("nan")
