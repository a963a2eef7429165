from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers.loss.loss_utils import ForSequenceClassificationLoss

from hpo.tasks.classification.predictions import KINDS, LabelPredictions
from hpo.tasks.metrics import METRICS

SMOOTHINGS = [0.0, 0.1, 0.5]


def batch(task: str, seed: int = 0, n: int = 12, width: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, 1 if task == "regression" else width, generator=draw, dtype=torch.float64)
    targets = {
        "single_label": torch.randint(width, (n,), generator=draw),
        "multi_label": torch.randint(2, (n, width), generator=draw).double(),
        "regression": torch.randn(n, generator=draw, dtype=torch.float64),
    }
    return logits, targets[task]


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_single_label_loss_is_torchs_cross_entropy(smoothing: float) -> None:
    logits, targets = batch("single_label")
    each = KINDS["single_label"].loss(logits, targets, smoothing)
    assert each.shape == targets.shape
    torch.testing.assert_close(each.mean(), F.cross_entropy(logits, targets, label_smoothing=smoothing))


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_multi_label_loss_is_torchs_on_softened_targets(smoothing: float) -> None:
    logits, targets = batch("multi_label")
    each = KINDS["multi_label"].loss(logits, targets, smoothing)
    softened = torch.where(targets == 1, 1 - smoothing / 2, smoothing / 2).double()
    assert each.shape == (12,)
    torch.testing.assert_close(each.mean(), F.binary_cross_entropy_with_logits(logits, softened))


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_regression_loss_is_the_squared_error_whatever_the_smoothing(smoothing: float) -> None:
    logits, targets = batch("regression")
    each = KINDS["regression"].loss(logits, targets, smoothing)
    torch.testing.assert_close(each.mean(), F.mse_loss(logits.squeeze(-1), targets))


@pytest.mark.parametrize("task", KINDS)
def test_the_loss_is_the_one_transformers_takes_for_the_problem_type(task: str) -> None:
    logits, targets = batch(task, seed=1)
    config = type("Config", (), {"problem_type": KINDS[task].problem_type, "num_labels": logits.shape[1]})()
    theirs = ForSequenceClassificationLoss(targets, logits, config)
    torch.testing.assert_close(KINDS[task].loss(logits, targets, 0.0).mean(), theirs)


@pytest.mark.parametrize("task", KINDS)
def test_predictions_have_the_shape_of_the_targets(task: str) -> None:
    logits, targets = batch(task)
    outputs = LabelPredictions(task, targets.numpy(), logits.numpy())
    assert outputs.predicted.shape == outputs.targets.shape
    assert KINDS[task].metric in METRICS
    assert task in METRICS[KINDS[task].metric].tasks


@given(st.lists(st.lists(st.floats(-800, 800, width=32), min_size=3, max_size=3), min_size=1, max_size=5))
def test_probabilities_are_torchs_even_for_huge_logits(rows: list[list[float]]) -> None:
    logits = np.array(rows, dtype=np.float32)
    softmax = torch.softmax(torch.from_numpy(logits), -1).numpy()
    sigmoid = torch.sigmoid(torch.from_numpy(logits)).numpy()
    with np.errstate(over="raise"):
        np.testing.assert_allclose(KINDS["single_label"].probabilities(logits), softmax, atol=1e-6)
        np.testing.assert_allclose(KINDS["multi_label"].probabilities(logits), sigmoid, atol=1e-6)


def test_a_label_is_predicted_where_its_probability_is_above_one_half() -> None:
    logits = np.array([[-0.1, 0.1, 0.0], [5.0, -5.0, 2.0]])
    assert KINDS["multi_label"].predicted(logits).tolist() == [[0, 1, 0], [1, 0, 1]]
    assert KINDS["single_label"].predicted(logits).tolist() == [1, 0]
    assert KINDS["regression"].predicted(logits[:, :1]).tolist() == [-0.1, 5.0]


@pytest.mark.parametrize(
    ("task", "targets", "logits", "collapsed"),
    [
        ("single_label", [0, 1, 1], [[0, 1], [0, 2], [0, 3]], True),
        ("single_label", [0, 1, 1], [[1, 0], [0, 2], [0, 3]], False),
        ("single_label", [1, 1, 1], [[0, 1], [0, 2], [0, 3]], False),  # one prediction is right for one class
        ("multi_label", [[0, 1], [1, 1]], [[3, 1], [2, 2]], True),
        ("multi_label", [[0, 1], [1, 1]], [[-3, 1], [2, 2]], False),
        ("regression", [0.1, 0.2], [[0.3], [0.3]], True),
        ("regression", [0.1, 0.2], [[0.3], [0.4]], False),
    ],
)
def test_collapsed_is_one_prediction_for_targets_that_differ(
    task: str, targets: list[float], logits: list[list[float]], collapsed: bool
) -> None:
    assert LabelPredictions(task, np.array(targets), np.array(logits, dtype=float)).collapsed is collapsed
