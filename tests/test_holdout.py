import numpy as np
import pytest

from hpo.bootstrap import intervals
from hpo.finetune.metrics import score
from hpo.finetune.tasks import Outputs
from hpo.verdict import sentence


def outputs(targets, right):
    """Return outputs of a two-class model that is right where `right` says so."""
    predicted = np.where(right, targets, 1 - targets)
    return Outputs("single_label", targets, np.eye(2)[predicted])


def interval(*arguments, **given):
    """Return the one interval between two models, or why there is none."""
    metric, *models = arguments
    return intervals(metric, models, **given)[0]


def test_the_interval_of_a_real_difference_leaves_out_zero():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 400)
    low, high = interval("accuracy", outputs(targets, rng.random(400) < 0.9), outputs(targets, rng.random(400) < 0.7))
    assert 0.1 < low < 0.2 < high < 0.3


def test_the_interval_is_paired():
    """A hard row is drawn for both: the interval is far narrower than that of two models on different rows."""
    rng = np.random.default_rng(5)
    targets, right = np.arange(400) % 2, rng.random(400) < 0.7
    better = right | (np.arange(400) < 40)
    low, high = interval("accuracy", outputs(targets, better), outputs(targets, right))
    low_apart, high_apart = interval("accuracy", outputs(targets, better), outputs(targets, rng.permutation(right)))
    assert 0 < low < high < 0.06
    assert high_apart - low_apart > 2 * (high - low)


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro", "matthews", "roc_auc", "loss"])
def test_the_interval_is_that_of_scoring_the_rows_of_every_resample(monkeypatch, metric):
    monkeypatch.setattr("hpo.bootstrap.RESAMPLES", 30)
    rng = np.random.default_rng(2)
    targets = rng.integers(0, 3, 50)
    models = [
        Outputs("single_label", targets, rng.normal(size=(50, 3)) + spread * np.eye(3)[targets]) for spread in (2, 1)
    ]
    rng, differences = np.random.default_rng(0), []
    for _ in range(30):
        rows = rng.integers(0, 50, 50)
        best, baseline = (score(metric, model.take(rows)) for model in models)
        differences.append(best - baseline)
    assert interval(metric, *models) == pytest.approx(np.quantile(differences, [0.025, 0.975]))


def test_the_interval_covers_the_true_difference_about_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr("hpo.bootstrap.RESAMPLES", 200)
    rng, covered = np.random.default_rng(1), 0
    for _ in range(40):
        targets = rng.integers(0, 2, 150)
        shared = rng.random(150)
        low, high = interval("accuracy", outputs(targets, shared < 0.8), outputs(targets, shared < 0.7))
        covered += low <= 0.1 <= high
    assert 33 <= covered <= 40


BASE = {"metric": "accuracy", "examples": 500, "confidence": 0.95, "best": {"number": 3, "score": 0.8}}
COMPARED = {**BASE, "baseline": {"number": 0, "score": 0.78}, "difference": 0.02, "low": -0.01, "high": 0.05}


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (
            {**COMPARED, "shown": False},
            "+0.02 (-0.01 to +0.05, 95% confidence; it covers other test rows, not other training seeds): no difference",
        ),
        ({**COMPARED, "low": 0.01, "shown": True}, "the best trial is better"),
        ({**COMPARED, "metric": "loss", "low": 0.01, "shown": True}, "the best trial is worse"),
        ({**COMPARED, "baseline": BASE["best"], "shown": False}, "is the best trial: no difference shown"),
        ({**BASE, "baseline": None, "shown": False}, "no published default to compare"),
    ],
)
def test_a_verdict_says_no_more_than_was_shown(verdict, words):
    assert words in sentence(verdict)
