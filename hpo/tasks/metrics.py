"""The metrics of all tasks, by name. To add one, add it to the `METRICS` of its task."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpo.core.errors import DataError, nearest
from hpo.tasks.classification import metrics as classification
from hpo.tasks.language import metrics as language
from hpo.tasks.language import text_metrics
from hpo.tasks.metric import Metric, summed
from hpo.tasks.multitask import predictions as multitask
from hpo.tasks.question_answering import metrics as question_answering
from hpo.tasks.task import Predictions
from hpo.tasks.token_classification import metrics as token_classification

Array = np.ndarray[Any, Any]
SMALLEST_GROUP = 10  # rows


def _loss(predictions: Predictions) -> float:
    """Return the mean loss of a unit; each sum is of one array, as rounding depends on the layout."""
    return float(predictions.losses.sum() / max(1, predictions.units.sum()))


WEIGHTED_MEAN = "weighted_mean"


def _weighted_mean(predictions: Any) -> float:
    """Return the weighted mean of the metrics of several tasks."""
    return math.fsum(part.share * score(part.metric, part.predictions) for part in predictions.parts.values())


ALL_TASKS = (
    *classification.CLASSES,
    "regression",
    "token_classification",
    "question_answering",
    "multiple_choice",
    *language.TASKS,
    multitask.TASK,
)

METRICS: dict[str, Metric] = {
    **classification.METRICS,
    **token_classification.METRICS,
    **question_answering.METRICS,
    **language.METRICS,
    "token_accuracy": summed(
        lambda predictions: predictions.token_counts.astype(float),
        lambda sums: float(sums[0] / max(1, sums[1])),
        ("token_classification", *language.TASKS),
        aliases=("overall_accuracy",),
    ),
    "exact_match": summed(
        lambda predictions: predictions.exact_matches,
        lambda sums: float(sums[0] / sums[1]),
        (question_answering.TASK, *text_metrics.TASKS),
        aliases=("em", "squad_em"),
        generated=text_metrics.TASKS,
    ),
    "loss": Metric(
        _loss,
        ALL_TASKS,
        "minimize",
        counts=lambda predictions: np.stack([predictions.losses, predictions.units], axis=1),
        aliases=("cross_entropy", "log_loss", "mse", "mean_squared_error"),
    ),
    WEIGHTED_MEAN: Metric(_weighted_mean, (multitask.TASK,)),
}


def suggested(name: str, task: str = "auto") -> str:
    """Return `; did you mean X?` for a name that is no metric, or all metrics of a task where none is close."""
    tasks = {task} if task in ALL_TASKS else {*classification.CLASSES, "regression"}
    offered = {metric: entry for metric, entry in METRICS.items() if tasks & {*entry.tasks}}
    asked = name.casefold().replace("-", "_").removeprefix("eval_").removesuffix("_score")
    found = [metric for metric, entry in offered.items() if asked == metric or asked in entry.aliases]
    found = found or [metric for metric in offered if metric.startswith(f"{asked}_")]  # f1, precision, recall
    found = found or [metric for metric in offered if sorted(metric.split("_")) == sorted(asked.split("_"))]  # macro_f1
    return f"; did you mean {' or '.join(found)}?" if found else nearest(name, offered)


def chosen(metric: str | None, task: str, default: str) -> str:
    """Return a study's metric: the one that its file names, or the task's default.

    Raises:
        DataError: The metric is not defined for the task.
    """
    metric = metric or default
    if task not in METRICS[metric].tasks:
        offered = ", ".join(searchable(task))
        raise DataError(f"metric {metric!r} is not defined for {task}, which the labels are; one of {offered}")
    if reason := refused(metric, task):
        raise DataError(f"metric {reason}")
    return metric


def searchable(task: str) -> list[str]:
    """Return the metrics by which a study of a task can be searched."""
    return [name for name, entry in METRICS.items() if task in entry.tasks and task not in entry.generated]


def of_generated_text(task: str) -> list[str]:
    """Return the metrics of generated text of a task."""
    return [name for name, entry in METRICS.items() if task in entry.generated]


def refused(metric: str, task: str) -> str | None:
    """Return why a study cannot be searched by a metric that is defined for its task, or None."""
    if task not in METRICS[metric].generated:
        return None
    return (
        f"{metric!r} is a score of generated text, and a study cannot be searched by it: generating is too slow for "
        f"every evaluation. Search by one of {', '.join(searchable(task))}, and write generate: {{}}, which measures "
        f"it at the end of each trial and on the test split; second_metric: {metric} then forms a front with the metric"
    )


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


def worst_group(metric: str, predictions: Predictions, groups: Sequence[str]) -> GroupScore | None:
    """Return the group on which a model scores worst (worst-group performance, Sagawa et al., 2020).

    Groups of fewer than `SMALLEST_GROUP` rows are left out, as chance would decide which of them is the worst. Groups
    with equal targets are left out too, unless the metric adds up over rows, as other metrics are not defined there.

    Args:
        metric: Name in `METRICS`.
        predictions: Predictions on n rows.
        groups: The group of each row, n of them.

    Returns:
        The worst group, the first by name of equally bad ones; None if there are no two groups that can be scored.
    """
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    found = []
    for name, rows in sorted(members.items()):
        part = predictions.take(np.array(rows))
        defined = METRICS[metric].counts is not None or part.varied
        if len(rows) >= SMALLEST_GROUP and defined and math.isfinite(value := score(metric, part)):
            found.append((value, name, len(rows)))
    if len(found) < 2:
        return None
    sign = -1 if METRICS[metric].direction == "minimize" else 1
    value, name, count = min(found, key=lambda each: sign * each[0])
    return GroupScore(name, value, count, len(found))


def score(metric: str, predictions: Predictions) -> float:
    """Return a metric of a model's predictions; NaN where it is not defined for these targets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return METRICS[metric].score(predictions)
        except ValueError:
            return float("nan")
