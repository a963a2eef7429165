"""The metrics of classification and regression, from scikit-learn and SciPy. To add one, add it to `METRICS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from hpo.tasks.classification.predictions import LabelPredictions
from hpo.tasks.classification.resampling import Average, by_counts, by_ranks
from hpo.tasks.metric import Metric

Array = np.ndarray[Any, Any]
CLASSES = ("single_label", "multi_label")


def _labels(name: str, **options: Any) -> Callable[[LabelPredictions], float]:
    """Return a scikit-learn metric of (targets, predictions) as a function of outputs."""

    def score(outputs: LabelPredictions) -> float:
        import sklearn.metrics

        return float(getattr(sklearn.metrics, name)(outputs.targets, outputs.predicted, **options))

    return score


def _averaged(name: str, average: Average, tasks: tuple[str, ...] = CLASSES, aliases: tuple[str, ...] = ()) -> Metric:
    """Return the metric `name` of `RATIOS`, averaged over the classes."""
    needs: dict[Average, Literal["", "positive", "every"]] = {"binary": "positive", "macro": "every"}
    score = _labels(f"{name}_score", average=average, zero_division=0)
    return Metric(score, tasks, resampled=by_counts(name, average), needs=needs.get(average, ""), aliases=aliases)


def _roc_auc(outputs: LabelPredictions) -> float:
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


def _correlation(name: str) -> Callable[[LabelPredictions], float]:
    def score(outputs: LabelPredictions) -> float:
        import scipy.stats

        if np.ptp(outputs.predicted) == 0 or np.ptp(outputs.targets) == 0:
            return 0.0  # SciPy returns NaN for a constant
        return float(getattr(scipy.stats, name)(outputs.targets, outputs.predicted).statistic)

    return score


def _right(outputs: LabelPredictions) -> Array:
    """Return [n, 2]: 1 where a row is predicted right, in all of its labels, else 0; and 1."""
    right = outputs.predicted == outputs.targets
    right = right if right.ndim == 1 else right.all(axis=1)
    return np.stack([right, np.ones(len(outputs))], axis=1).astype(float)


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_labels("accuracy_score"), (*CLASSES, "multiple_choice"), counts=_right, aliases=("acc",)),
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
    "roc_auc": Metric(_roc_auc, CLASSES, resampled=by_ranks, needs="every", aliases=("auc", "auroc")),
    "pearson": Metric(_correlation("pearsonr"), ("regression",)),
    "spearman": Metric(_correlation("spearmanr"), ("regression",)),
}
