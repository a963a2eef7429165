from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.metrics as sk

from hpo.tasks.classification.predictions import LabelPredictions
from hpo.tasks.metrics import METRICS, score, suggested
from hpo.tasks.registry import TASKS

draw = np.random.default_rng(3)
LOGITS = draw.normal(size=(80, 4))
CLASSES = draw.integers(4, size=80)
BINARY = LabelPredictions("single_label", draw.integers(2, size=80), draw.normal(size=(80, 2)))
OUTPUTS = {
    "single_label": LabelPredictions("single_label", CLASSES, LOGITS + np.eye(4)[CLASSES]),
    "multi_label": LabelPredictions("multi_label", draw.integers(2, size=(80, 4)), LOGITS),
    "regression": LabelPredictions("regression", LOGITS[:, 0] ** 3 + draw.normal(size=80), LOGITS[:, :1]),
}


def f(name: str, average: str) -> Callable[[LabelPredictions], Any]:
    return lambda o: getattr(sk, name)(o.targets, o.predicted, average=average, zero_division=0)


REFERENCE: dict[str, Callable[[LabelPredictions], Any]] = {
    "accuracy": lambda o: sk.accuracy_score(o.targets, o.predicted),
    "matthews": lambda o: sk.matthews_corrcoef(o.targets, o.predicted),
    "pearson": lambda o: np.corrcoef(o.targets, o.predicted)[0, 1],
    "spearman": lambda o: np.corrcoef(scipy.stats.rankdata(o.targets), scipy.stats.rankdata(o.predicted))[0, 1],
    **{
        f"{kind}_{average}": f(f"{kind}_score", average)
        for kind in ("f1", "precision", "recall")
        for average in ("macro", "micro", "weighted", "binary")
    },
    "roc_auc": lambda o: (
        np.mean([sk.roc_auc_score(o.targets[:, i], o.logits[:, i]) for i in range(o.logits.shape[1])])
        if o.task == "multi_label"
        else np.mean([sk.roc_auc_score(o.targets == i, o.probabilities[:, i]) for i in range(o.logits.shape[1])])
    ),
    "loss": lambda o: {
        "single_label": lambda: sk.log_loss(o.targets, scipy.special.softmax(o.logits, -1)),
        "multi_label": lambda: np.mean(
            [sk.log_loss(o.targets[:, i], scipy.special.expit(o.logits[:, i])) for i in range(o.logits.shape[1])]
        ),
        "regression": lambda: sk.mean_squared_error(o.targets, o.logits[:, 0]),
    }[o.task](),
}
CASES = [(metric, task) for metric, entry in METRICS.items() for task in entry.tasks if task in OUTPUTS]


def test_every_metric_has_a_reference() -> None:
    assert set(REFERENCE) == {metric for metric, _ in CASES}
    assert all(set(entry.tasks) <= set(TASKS) for entry in METRICS.values())


@pytest.mark.parametrize(("metric", "task"), CASES)
def test_equals_scikit_learn_and_scipy(metric: str, task: str) -> None:
    outputs = BINARY if metric.endswith("_binary") else OUTPUTS[task]
    value = score(metric, outputs)
    assert type(value) is float
    assert value == pytest.approx(float(REFERENCE[metric](outputs)), abs=1e-12)


def test_the_area_of_two_classes_is_that_of_the_second() -> None:
    assert score("roc_auc", BINARY) == pytest.approx(sk.roc_auc_score(BINARY.targets, BINARY.probabilities[:, 1]))


@pytest.mark.parametrize(("metric", "task"), CASES)
def test_the_direction_is_the_way_in_which_right_outputs_are_better(metric: str, task: str) -> None:
    outputs = BINARY if metric.endswith("_binary") else OUTPUTS[task]
    hot = np.eye(outputs.logits.shape[1])[outputs.targets] if task == "single_label" else outputs.targets
    logits = outputs.targets[:, None] if task == "regression" else 20.0 * hot - 10.0
    better, worse = score(metric, LabelPredictions(task, outputs.targets, logits)), score(metric, outputs)
    assert (better > worse) == (METRICS[metric].direction == "maximize")
    assert better != worse


@pytest.mark.parametrize(
    ("metric", "outputs"),
    [
        ("roc_auc", LabelPredictions("single_label", np.array([1, 1, 1]), np.eye(3)[:, :2])),  # one class only
        ("roc_auc", LabelPredictions("single_label", np.array([0, 1, 1]), np.eye(3))),  # a class of three is absent
        ("roc_auc", LabelPredictions("multi_label", np.array([[1, 0], [1, 1]]), np.eye(2))),
        ("f1_binary", OUTPUTS["single_label"]),  # four classes
        ("loss", LabelPredictions("regression", np.array([0.0, 1.0]), np.array([[math.nan], [1.0]]))),
    ],
)
def test_what_is_not_defined_is_nan_and_no_error(metric: str, outputs: LabelPredictions) -> None:
    assert math.isnan(score(metric, outputs))


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_a_constant_prediction_correlates_with_nothing(metric: str) -> None:
    assert score(metric, LabelPredictions("regression", np.arange(5.0), np.ones((5, 1)))) == 0.0
    assert math.isnan(
        score(metric, LabelPredictions("regression", np.arange(3.0), np.array([[1.0], [math.nan], [2.0]])))
    )


def test_a_class_that_is_never_predicted_scores_zero_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    outputs = LabelPredictions("single_label", np.array([0, 1, 2]), np.array([[1.0, 0, 0]] * 3))
    assert score("precision_macro", outputs) == pytest.approx(1 / 9)
    assert score("matthews", outputs) == 0.0
    assert not recwarn.list


RESAMPLED = [
    (name, task, width)
    for name, metric in METRICS.items()
    for task, width in (("single_label", 2), ("single_label", 5), ("multi_label", 3))
    if metric.resampled and task in metric.tasks and (width == 2 or not name.endswith("_binary"))
]


@pytest.mark.parametrize(("name", "task", "width"), RESAMPLED)
def test_what_is_prepared_for_resamples_is_what_scikit_learn_scores(name: str, task: str, width: int) -> None:
    """Few rows, so that classes are missing among the targets, the predictions or both."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, width, 40) if task == "single_label" else rng.integers(0, 2, (40, width))
    logits = rng.normal(size=(40, width)).round(1)  # with ties
    outputs = LabelPredictions(task, targets, logits)
    prepared = METRICS[name].resampled
    assert prepared is not None
    of_rows = prepared(outputs)
    for size in [1, 2, 3, 6, 40] * 8:
        rows = rng.integers(0, 40, size)
        assert of_rows(rows) == pytest.approx(score(name, outputs.take(rows)), abs=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("f1", "; did you mean f1_macro or f1_micro or f1_weighted or f1_binary?"),
        ("weighted_f1", "; did you mean f1_weighted?"),
        ("MCC", "; did you mean matthews?"),
        ("auc", "; did you mean roc_auc?"),
        ("balanced_accuracy_score", "; did you mean recall_macro?"),
        ("eval_loss", "; did you mean loss?"),
        ("spearmanr", "; did you mean spearman?"),
        ("bleu", "; one of accuracy, f1_binary, "),
    ],
)
def test_a_name_that_other_programs_have_leads_to_the_metric(name: str, said: str) -> None:
    assert suggested(name).startswith(said)


def test_a_metrics_other_names_are_no_metrics_and_belong_to_one() -> None:
    for task in TASKS:
        known = {name: entry.aliases for name, entry in METRICS.items() if task in entry.tasks}
        others = [alias for aliases in known.values() for alias in aliases]
        assert len(set(others)) == len(others)
        assert not set(others) & set(known)
