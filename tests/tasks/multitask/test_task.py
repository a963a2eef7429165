"""Several tasks as one task: rows, losses, predictions and the weighted mean."""

import numpy as np
import pytest
import several
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpo.analysis.bootstrap import intervals, resampled
from hpo.config import study_spec
from hpo.core.errors import DataError
from hpo.core.seeds import derived_seed
from hpo.tasks.classification.predictions import LabelPredictions
from hpo.tasks.metrics import METRICS, score
from hpo.tasks.multitask import loading
from hpo.tasks.multitask.keys import TOGETHER
from hpo.tasks.multitask.predictions import MultiPredictions, PartPredictions
from hpo.tasks.multitask.rows import OF_TASK, SHARE, named
from hpo.tasks.registry import TASKS
from hpo.tasks.rows import IGNORED

LENGTH = 16


@pytest.fixture
def data(tmp_path):
    study = study_spec.build(several.study(tmp_path), "x", tmp_path)
    return loading.load(study.config.tasks, 0, tmp_path)


@pytest.fixture
def rows(data):
    task = TASKS["multitask"].for_data(data)
    return task, task.encode(data.splits["train"], data.keys, tiny.tokenizer(), LENGTH)


# ---------------------------------------------------------------- rows


def test_rows_are_those_of_the_tasks_one_after_the_other(data, rows):
    found = rows[1]
    first = 0
    for number, (name, part) in enumerate(data.parts.items()):
        own = part.task.encode(part.data.splits["train"], part.data.keys, tiny.tokenizer(), LENGTH)
        place = slice(first, first + len(own.units))
        first = place.stop
        assert (found.row_targets[OF_TASK][place] == number).all()
        assert list(map(list, found.inputs["input_ids"][place])) == list(map(list, own.inputs["input_ids"]))
        for target, values in own.row_targets.items():
            np.testing.assert_array_equal(found.row_targets[f"{name}.{target}"][place], values)
        for target, values in own.token_targets.items():
            every = found.token_targets[f"{name}.{target}"]
            assert list(map(list, every[place])) == list(map(list, values))
            assert all(set(each) == {IGNORED} for each in every[: place.start])
    assert first == len(found.units) == len(found.example)
    assert (np.diff(found.example) >= 0).all()
    assert found.example[-1] + 1 == len(data.splits["train"])


def test_a_row_of_every_task_has_one_unit_on_average(rows):
    task, found = rows
    for number in range(len(task.parts)):
        assert found.units[found.row_targets[OF_TASK] == number].mean() == pytest.approx(1, abs=1e-6)


# ---------------------------------------------------------------- losses


def test_the_loss_of_a_row_is_that_of_its_own_head(data, rows):
    """In every head at once, and its gradient reaches no other head."""
    task, found = rows
    generator = torch.Generator().manual_seed(0)
    batch = [
        0,
        1,
        *np.flatnonzero(found.row_targets[OF_TASK] == 1)[:2],
        *np.flatnonzero(found.row_targets[OF_TASK] == 2)[:2],
    ]
    tokens = {name: [list(values[i]) for i in batch] for name, values in found.token_targets.items()}
    targets = {name: torch.from_numpy(values[batch]) for name, values in found.row_targets.items()}
    targets |= {
        name: torch.tensor([row + [IGNORED] * (LENGTH - len(row)) for row in every]) for name, every in tokens.items()
    }
    labels = len(data.parts["entities"].data.labels)
    shapes = [(6, 2), (6, LENGTH, labels), (6, LENGTH), (6, LENGTH)]
    outputs = tuple(torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes)
    losses = task.loss(outputs, targets, 0.1, None)
    apart = {"sentiment": outputs[:1], "entities": outputs[1:2], "questions": outputs[2:]}
    for number, (name, part) in enumerate(data.parts.items()):
        own = targets[OF_TASK] == number
        expected = part.task.loss(apart[name], named(targets, name), 0.1, None) * targets[SHARE]
        assert torch.equal(losses[own], expected[own])
    losses.sum().backward()
    for name, number in (("sentiment", 0), ("entities", 1), ("questions", 2)):
        for output in apart[name]:
            assert output.grad[targets[OF_TASK] != number].abs().sum() == 0
            assert output.grad[targets[OF_TASK] == number].abs().sum() > 0
            assert output.grad.isfinite().all()


# ---------------------------------------------------------------- predictions


def predictions(seed, right, sizes=(40, 60), weights=(0.25, 0.75)):
    rng = np.random.default_rng(seed)
    parts = {}
    for name, size, weight in zip("ab", sizes, weights, strict=True):
        targets = rng.integers(0, 2, size)
        logits = np.where(rng.random((size, 1)) < right, np.eye(2)[targets], np.eye(2)[1 - targets])
        parts[name] = PartPredictions(LabelPredictions("single_label", targets, logits), "accuracy", weight, ("n", "y"))
    return MultiPredictions(parts)


def test_the_mean_is_weighted():
    found = predictions(0, 0.8)
    each = [score("accuracy", found.parts[name].predictions) for name in "ab"]
    assert score("weighted_mean", found) == pytest.approx(0.25 * each[0] + 0.75 * each[1])


@given(st.lists(st.integers(0, 99), min_size=1, max_size=50))
def test_examples_are_taken_from_their_tasks(chosen):
    found = predictions(0, 0.8)
    taken = found.take(np.array(chosen))
    first = [i for i in chosen if i < 40]
    second = [i - 40 for i in chosen if i >= 40]
    assert len(taken) == len(chosen)
    for name, own in (("a", first), ("b", second)):
        np.testing.assert_array_equal(taken.parts[name].predictions.targets, found.parts[name].predictions.targets[own])


def test_the_loss_is_the_mean_of_the_tasks_by_their_rows():
    found = predictions(0, 0.8)
    each = [score("loss", found.parts[name].predictions) for name in "ab"]
    assert score("loss", found) == pytest.approx((40 * each[0] + 60 * each[1]) / 100)


def test_the_examples_of_each_task_are_drawn_apart():
    models = [predictions(0, 0.9), predictions(0, 0.6)]
    drawn = resampled("weighted_mean", models, np.arange(100))
    apart = [
        resampled("accuracy", [model.parts[name].predictions for model in models], None, derived_seed(0, name))
        for name in "ab"
    ]
    np.testing.assert_allclose(drawn, 0.25 * apart[0] + 0.75 * apart[1])
    assert abs(np.corrcoef(apart[0][:, 0], apart[1][:, 0])[0, 1]) < 0.1
    ((low, high),) = intervals("weighted_mean", models, groups=np.arange(100))
    difference = score("weighted_mean", models[0]) - score("weighted_mean", models[1])
    assert low < difference < high


def test_the_interval_covers_the_truth():
    """Of two models whose accuracies are known, in about 95 of 100 samples of test examples."""
    covered = 0
    for seed in range(40):
        ((low, high),) = intervals("weighted_mean", [predictions(seed, 0.9), predictions(seed + 1000, 0.7)])
        covered += low <= 0.2 <= high
    assert covered >= 34


def test_too_few_examples_of_a_task_are_said():
    models = [predictions(0, 0.9, sizes=(5, 60)), predictions(0, 0.6, sizes=(5, 60))]
    (reason,) = intervals("weighted_mean", models)
    assert reason == "of task a, there are 5 test rows"


# ---------------------------------------------------------------- data


def test_an_error_in_data_names_the_task(tmp_path):
    raw = several.study(tmp_path)
    (tmp_path / "data.conll").write_text("Ann B-PER\nleft\n")
    study = study_spec.build(raw, "x", tmp_path)
    with pytest.raises(DataError, match=r"^task entities: "):
        loading.load(study.config.tasks, 0, tmp_path)


def test_the_digest_is_of_all_tasks_and_their_names(tmp_path):
    keys = study_spec.build(several.study(tmp_path), "x", tmp_path).config.tasks
    digests = {
        loading.load(tasks, seed, tmp_path).digest
        for tasks, seed in (
            (keys, 0),
            (keys, 1),
            ({"sentiment": keys["sentiment"]}, 0),
            ({"mood": keys["sentiment"]}, 0),
        )
    }
    assert len(digests) == 4


def test_every_task_that_goes_together_has_a_metric_of_which_more_is_better():
    assert all(METRICS[TASKS[name].metric].direction == "maximize" for name in TOGETHER)
