import csv

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from trials import curves, run, same

from hpo.config import study_spec
from hpo.core.errors import DataError
from hpo.execution import trial_arrays
from hpo.finetune.folded.engine import FoldedEngine
from hpo.finetune.plain import PlainEngine
from hpo.recipe.class_weights import CLASS_WEIGHTS
from hpo.tasks.classification.predictions import KINDS

LOSS = KINDS["single_label"].loss
SPACE = {"learning_rate": {"low": 1e-4, "high": 1e-2}, "batch_size": [8, 17], "epochs": [1, 2]}
SPACE |= {"class_weights": ["none", "balanced"]}
# Neighbours that differ in their class weights, batch sizes and smoothing.
TRIALS = [
    {"learning_rate": 1e-3, "epochs": 1, "batch_size": 8, "dropout": 0.0, "class_weights": "balanced"},
    {"learning_rate": 1e-3, "epochs": 1, "batch_size": 8, "dropout": 0.0},
    {"learning_rate": 2e-3, "epochs": 1, "batch_size": 17, "dropout": 0.0, "class_weights": "balanced"}
    | {"label_smoothing": 0.2},
    {"learning_rate": 2e-3, "epochs": 1, "batch_size": 17, "dropout": 0.0, "class_weights": "none"}
    | {"label_smoothing": 0.2},
]


def open_array(folder, **overrides):
    """Open an array on rows of which one in twenty is bad."""
    rng = np.random.default_rng(0)
    labels = [*["good"] * 19, "bad"] * 16
    with (folder / "skewed.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *((tiny.sentence(rng, label), label) for label in labels)])
    data = {"train": str(folder / "skewed.csv"), "validation": 50, "test": 20}
    raw = tiny.study(folder, **{"space": SPACE, "data": data, "metric": "f1_macro", **overrides})
    return trial_arrays.open_array(study_spec.build(raw, "test", folder))


# ---------------------------------------------------------------- the weights


def test_balanced_weights_are_those_of_scikit_learn():
    targets = np.repeat([0, 1, 2], [70, 25, 5])
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=targets)
    counts = np.bincount(targets)
    np.testing.assert_allclose(CLASS_WEIGHTS["balanced"](counts), wanted)
    assert CLASS_WEIGHTS["none"](counts).tolist() == [1, 1, 1]
    assert CLASS_WEIGHTS["balanced"](counts)[targets].mean() == pytest.approx(1)


def test_a_class_without_rows_weighs_one_and_is_not_counted():
    np.testing.assert_allclose(CLASS_WEIGHTS["balanced"](np.array([9, 0, 1])), [10 / 18, 1, 5])


def test_the_rows_counted_are_those_trained_on(tmp_path):
    array = open_array(tmp_path)
    counts = np.bincount(array.setup.data.splits["train"].targets)
    np.testing.assert_allclose(array.setup.class_weights["balanced"], counts.sum() / (2 * counts), rtol=1e-6)


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_weighted_loss_is_torchs_summed_over_the_rows(smoothing):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    targets, weights = torch.arange(12) % 3, torch.tensor([0.4, 1.0, 3.0], dtype=torch.float64)
    wanted = F.cross_entropy(logits, targets, weights, label_smoothing=smoothing, reduction="sum")
    alone = LOSS(logits, targets, smoothing, weights)
    folded = LOSS(logits, targets, torch.full((12,), smoothing), weights.expand(12, 3))
    assert alone.shape == folded.shape == (12,)
    torch.testing.assert_close(alone.sum(), wanted)
    torch.testing.assert_close(folded.sum(), wanted)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weights_of_one_leave_a_folded_loss_and_its_gradient_to_the_bit(smoothing):
    logits = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    targets, smoothings = torch.arange(64) % 5, torch.full((64,), smoothing)
    found = []
    for weights in (None, torch.ones(64, 5)):
        given = logits.clone().requires_grad_()
        if weights is None:  # the formula without weights
            towards_all = -F.log_softmax(given, dim=-1).mean(dim=-1)
            own = F.cross_entropy(given, targets, reduction="none")
            loss = (1 - smoothings) * own + smoothings * towards_all
        else:
            loss = LOSS(given, targets, smoothings, weights)
        loss.sum().backward()
        found.append((loss, given.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


# ---------------------------------------------------------------- trials


def test_none_is_the_default(tmp_path):
    array, found = open_array(tmp_path), []
    for setting in ({}, {"class_weights": "none"}, {"class_weights": "balanced"}):
        found.append([(e.value, e.metrics) for e in run(array, TRIALS[1] | setting)])
        array.unload(0)
    assert found[0] == found[1] != found[2]


@pytest.mark.bits
@pytest.mark.parametrize(("kind", "adapters"), [(FoldedEngine, {}), (FoldedEngine, {"lora_rank": [2, 4]})])
def test_folded_trials_of_different_weights_are_the_same_beside_each_other_and_alone(tmp_path, kind, adapters):
    space, trials = SPACE | adapters, [trial | dict.fromkeys(adapters, 2) for trial in TRIALS]
    one = curves(open_array(tmp_path, space=space, fold=True, slots=1), trials)
    array = open_array(tmp_path, space=space, fold=True, slots=4)
    assert type(array.engine) is kind
    together = curves(array, trials, order=[3, 0, 1, 2])
    assert [number for number in one if not same(one[number], together[number])] == []


def test_folded_trials_equal_separate_trials(tmp_path):
    folded = curves(open_array(tmp_path, fold=True, slots=4), TRIALS)
    plain = open_array(tmp_path, fold=False)
    assert type(plain.engine) is PlainEngine
    plain.engine.window = FoldedEngine.window
    for number, own in curves(plain, TRIALS).items():
        for name, weight in folded[number][-1].items():
            if "key.bias" not in name:  # its gradient is only rounding, which AdamW turns into steps
                torch.testing.assert_close(weight, own[-1][name], rtol=1e-3, atol=1e-4)


def test_balanced_weights_find_a_rare_class(tmp_path):
    array = open_array(tmp_path)
    params = {"learning_rate": 3e-3, "epochs": 6, "batch_size": 16}
    found = {}
    for setting in ("none", "balanced"):
        found[setting] = [e.value for e in run(array, {**params, "class_weights": setting})]
        array.unload(0)
    assert max(found["none"]) < 0.5  # only the frequent class is predicted
    assert found["balanced"][-1] > 0.8


# ---------------------------------------------------------------- where it is refused


@pytest.mark.parametrize("setting", ["balanced", ["none", "balanced"]])
@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_tasks_without_one_label_a_row_refuse_weights(tmp_path, task, setting):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [(f"w{i} fine", i % 2, i % 3 == 0) for i in range(60)]
    with (folder / "many.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "one", "two"), *((text, int(a), int(b)) for text, a, b in rows)])
    label = ["one", "two"] if task == "multi_label" else "one"
    data = {"train": str(folder / "many.csv"), "label": label, "validation": 15, "test": 15}
    raw = tiny.study(tmp_path, task=task, data=data, metric=None)
    refused = study_spec.build({**raw, "space": {**raw["space"], "class_weights": setting}}, "test", tmp_path)
    with pytest.raises(DataError, match=rf"class_weights: .*balanced needs one label a row.* is {task}; leave"):
        trial_arrays.open_array(refused)
    allowed = {**raw, "space": {**raw["space"], "class_weights": "none"}}
    assert trial_arrays.open_array(study_spec.build(allowed, "test", tmp_path)).setup.data.task == task
