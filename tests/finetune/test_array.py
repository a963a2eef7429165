import copy
import gc
import math
import weakref
from contextlib import nullcontext

import numpy as np
import pytest
import tiny
import torch
from torch import nn
from trials import run

from hpo.config import study_spec
from hpo.core.errors import DataError, DivergedError, OutOfMemoryError
from hpo.core.trainer import TrialSpec
from hpo.execution import trial_arrays
from hpo.finetune import trial_start
from hpo.finetune.folded.program import Program
from hpo.finetune.optimizer import build
from hpo.finetune.plain import PlainEngine
from hpo.finetune.setup import Setup
from hpo.finetune.slot import Slot
from hpo.recipe.hyperparameters import DEFAULTS
from hpo.recipe.schedules import multiplier
from hpo.tasks.metrics import score


def open_array(folder, **overrides):
    return trial_arrays.open_array(study_spec.build(tiny.study(folder, **overrides), "test", folder))


def values(evaluations):
    return [(e.value, e.at, dict(e.metrics)) for e in evaluations]


@pytest.mark.parametrize("fold", [False, True])
def test_the_memory_of_an_unloaded_trial_is_free_at_once(tmp_path, fold):
    """A trial has copies of weights, and Python looks for cycles of references seldom."""
    array = open_array(tmp_path, fold=fold)
    array.load(0, TrialSpec(0, DEFAULTS, 5))
    array.advance()
    slot = weakref.ref(array.engine.occupied[0])
    assert slot().best_weights
    gc.disable()
    try:
        array.unload(0)
        assert slot() is None
    finally:
        gc.enable()


def test_same_seed_same_evaluations_and_another_seed_others(tmp_path):
    array = open_array(tmp_path)
    first = run(array)
    array.unload(0)
    assert values(run(array)) == values(first)
    array.unload(0)
    assert values(run(array, seed=2)) != values(first)


@pytest.mark.parametrize("fold", [False, True])
def test_progress_is_visible_within_a_segment(tmp_path, monkeypatch, fold):
    array = open_array(tmp_path, fold=fold, evaluations_per_epoch=1)
    assert array.seen(0) is None
    step, seen = "_micro_step" if fold else "_step", []
    within = getattr(array.engine, step)
    monkeypatch.setattr(array.engine, step, lambda *given: (seen.append(array.seen(0)), within(*given))[1])
    array.load(0, TrialSpec(0, {"learning_rate": 1e-3, "epochs": 2, "batch_size": 8}, 0))
    assert array.seen(0) == (0, 120)
    assert array.advance()[0].at == 60
    assert seen == [(8 * n, 120) for n in range(8)]
    assert array.seen(0) == (60, 120)
    array.unload(0)
    assert array.seen(0) is None


def test_a_trial_does_not_depend_on_its_neighbour(tmp_path):
    alone = values(run(open_array(tmp_path)))
    array = open_array(tmp_path, slots=2)
    array.load(1, TrialSpec(7, {"learning_rate": 1e-2, "epochs": 5, "batch_size": 8, "dropout": 0.5}, 9))
    assert values(run(array)) == alone


def test_trials_side_by_side_get_what_they_get_alone(tmp_path):
    params = [{"learning_rate": 1e-3 * (i + 1), "epochs": 2, "batch_size": 8} for i in range(3)]
    alone, curves = open_array(tmp_path), []
    for i, each in enumerate(params):
        curves.append(values(run(alone, each, seed=i)))
        alone.unload(0)
    array, together = open_array(tmp_path, slots=3), [[], [], []]
    assert array.engine._side_by_side
    for i, each in enumerate(params):
        array.load(i, TrialSpec(i, each, i))
    for _ in range(4):
        for i, evaluation in array.advance().items():
            together[i].append(evaluation)
    assert [values(evaluations) for evaluations in together] == curves


def test_a_model_that_calls_dropout_itself_trains_side_by_side_too(tmp_path):
    tiny.save_model(tmp_path / "model", "bart")
    alone = open_array(tmp_path, slots=1)
    expected = values(run(alone, {"dropout": 0.2}))
    array = open_array(tmp_path, slots=2)
    assert array.engine._side_by_side
    array.load(1, TrialSpec(7, {"learning_rate": 1e-3, "epochs": 5, "batch_size": 8, "dropout": 0.5}, 9))
    assert values(run(array, {"dropout": 0.2})) == expected


def test_a_model_that_draws_its_own_masks_trains_one_trial_after_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr("hpo.finetune.models.dropout.install", lambda model: None)
    monkeypatch.setattr("hpo.finetune.models.dropout.OwnFunction", nullcontext)
    assert not open_array(tmp_path, slots=2).engine._side_by_side


@pytest.fixture
def three_threads():
    """As on a computer with three cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def threads_of_steps(array, monkeypatch, trials):
    """Return the numbers of threads with which a number of trials step and are scored."""
    seen = set()

    def watched(inner):
        return lambda *given: (seen.add(torch.get_num_threads()), inner(*given))[1]

    with monkeypatch.context() as patch:
        for cls, name in ((Slot, "update"), (Setup, "predict"), (Program, "step")):
            patch.setattr(cls, name, watched(getattr(cls, name)))
        for slot in range(trials):
            array.load(slot, TrialSpec(slot, {"batch_size": 30, "epochs": 1}, slot))
        array.advance()
        for slot in range(trials):
            array.unload(slot)
    return seen


@pytest.mark.parametrize(
    ("changes", "threads"),
    [
        ({}, 3),
        ({"threads": 2}, 2),
        ({"slots": 2}, 1),
        ({"slots": 4}, 1),
        ({"slots": 2, "threads": 4}, 2),
        ({"slots": "auto"}, 1),
        ({"slots": "auto", "threads": 4}, 1),
        ({"slots": 2, "fold": True}, 3),
    ],
)
def test_a_trial_has_the_same_threads_however_many_others_there_are(
    tmp_path, monkeypatch, three_threads, changes, threads
):
    array = open_array(tmp_path, **{"threads": None, **changes})
    assert array.engine.threads == array.facts["threads"] == threads
    if changes.get("slots") == "auto":
        assert array.fastest_slots(99) == (changes.get("threads") or 3)
        array.slots = 2
    total = torch.get_num_threads()
    for trials in range(1, array.slots + 1):
        assert threads_of_steps(array, monkeypatch, trials) == {threads}
    assert torch.get_num_threads() == total


def test_a_model_that_draws_its_own_masks_trains_with_all_threads(tmp_path, monkeypatch, three_threads):
    monkeypatch.setattr(Setup, "_draws_all_masks", lambda self: False)
    array = open_array(tmp_path, slots=2, threads=None)
    assert array.engine.threads == array.facts["threads"] == 3
    assert threads_of_steps(array, monkeypatch, 2) == {3}


def test_a_study_goes_on_with_the_threads_a_trial_that_it_was_begun_with(tmp_path, monkeypatch, three_threads):
    here = open_array(tmp_path, slots=3, threads=None)
    begun = open_array(tmp_path, slots=2, threads=4)
    assert begun.facts != here.facts
    here.resume_with(begun.facts)
    assert here.facts == begun.facts
    assert here.notes == ("trials have 2 threads each, as the study was begun (not 1)",)
    assert threads_of_steps(here, monkeypatch, 3) == {2}
    torch.set_num_threads(8)
    assert [here.fastest_slots(most) for most in (99, 3)] == [4, 3]


@pytest.mark.parametrize("facts", [{}, {"threads": None}, {"threads": "2"}, {"threads": 0}, {"threads": 1}])
def test_facts_that_say_nothing_new_of_threads_change_nothing(tmp_path, facts):
    array = open_array(tmp_path)
    before = dict(array.facts)
    array.resume_with(facts)
    assert (array.facts, array.engine.threads, array.notes) == (before, 1, ())
    assert array.facts["numerics"] == 4


def test_evaluations_are_at_the_same_examples_for_every_batch_size(tmp_path):
    array = open_array(tmp_path, evaluations_per_epoch=3)
    points = {}
    for size in (7, 8, 60):
        points[size] = [e.at for e in run(array, {"batch_size": size})]
        array.unload(0)
    assert points[7] == points[8] == points[60] == [20, 40, 60, 80, 100, 120]
    assert array.segment == 20
    assert array.horizon == 120


def test_a_tiny_model_overfits_eight_rows(tmp_path):
    tiny.write_csv(tmp_path / "eight.csv", 8, seed=3)
    data = {"train": "eight.csv", "validation": "eight.csv", "test": "eight.csv"}
    array = open_array(tmp_path, data=data, evaluations_per_epoch=1)
    last = run(array, {"epochs": 40, "batch_size": 8, "learning_rate": 5e-3, "dropout": 0.0})[-1]
    assert last.value == 1.0
    assert last.metrics["loss"] < 0.01


def test_training_is_a_plain_loop_of_adamw_steps(tmp_path):
    """Reference: the array's batches through transformers' model, padded, with its own loss."""
    array = open_array(tmp_path)
    params = {**DEFAULTS, "learning_rate": 1e-3, "epochs": 1, "batch_size": 8, "dropout": 0.0}
    array.load(0, TrialSpec(0, params, 5))
    slot = array.engine.occupied[0]
    reference = copy.deepcopy(slot.model).train()
    optimizer = build(dict(reference.named_parameters()), array.setup.head, slot.params)
    for step, rows in enumerate(list(trial_start.batches(array.setup, slot, array.engine.window))[:4]):
        inputs, targets = array.setup.tokens["train"].batch(rows)
        loss = reference(**inputs, labels=targets["labels"]).loss
        loss.backward()
        nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * multiplier(step, slot.total_steps, slot.params)
        optimizer.step()
        optimizer.zero_grad()
        assert array.engine._step(slot, next(slot.batches)).item() == pytest.approx(loss.item(), abs=1e-6)
    for ours, theirs in zip(slot.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("slots", [1, 2])
def test_moments_of_rows_that_no_batch_has_end_as_zero_not_as_denormal_numbers(tmp_path, slots):
    array = open_array(tmp_path, slots=slots)
    for slot in range(slots):
        array.load(slot, TrialSpec(slot, {"learning_rate": 1e-3, "epochs": 2, "batch_size": 8}, slot))
    array.advance()
    moments = [array.engine.occupied[slot].moments(array.setup.vocabulary.name)["exp_avg"] for slot in range(slots)]
    for moment in moments:
        moment.view(torch.int32).fill_(3)  # 4e-45, of which nine tenths are 4e-45
    array.advance()
    for moment in moments:
        bits = moment.view(torch.int32).abs()
        assert (bits == 0).any()
        assert not ((bits > 0) & (bits < 1 << 23)).any()
    assert float("1e-300") * float("1e-10") > 0  # the caller's thread still has denormal numbers


def test_micro_batches_add_up_to_the_batch(tmp_path):
    whole = run(open_array(tmp_path), {"dropout": 0.0})
    parts = run(open_array(tmp_path, micro_batch=3), {"dropout": 0.0})
    np.testing.assert_allclose([e.metrics["loss"] for e in parts], [e.metrics["loss"] for e in whole], rtol=1e-4)


# ---------------------------------------------------------------- written weights


def test_written_weights_are_those_of_the_best_evaluation_and_load_with_the_whole_vocabulary(tmp_path):
    array = open_array(tmp_path, evaluations_per_epoch=1)
    assert array.setup.vocabulary.rows is not None, "the table of 200 rows should have been cut"
    evaluations = run(array, {"weight_decay": 0.5, "epochs": 4, "batch_size": 8})
    slot = array.engine.occupied[0]
    assert array.save_weights(0, tmp_path / "kept")
    best = max(range(len(evaluations)), key=lambda i: evaluations[i].value)
    outputs = array.predictions_of(tmp_path / "kept", "validation")
    assert float((outputs.predicted == outputs.targets).mean()) == evaluations[best].value

    from transformers import AutoModelForSequenceClassification

    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "kept")
    table = whole.get_input_embeddings().weight
    assert table.shape[0] == 200
    unused = np.setdiff1d(np.arange(200), array.setup.vocabulary.rows.numpy())
    pretrained = array.setup.vocabulary.whole[unused]
    torch.testing.assert_close(table.detach()[unused], pretrained * slot.best_decay)
    assert slot.best_decay < 1.0


def test_a_cut_table_trains_as_the_whole_one_does(tmp_path, monkeypatch):
    params = {"weight_decay": 0.3, "dropout": 0.0}
    cut = open_array(tmp_path)
    curve = run(cut, params)
    cut.save_weights(0, tmp_path / "cut")
    monkeypatch.setattr("hpo.finetune.models.vocabulary.MOST_KEPT", -1)
    whole = open_array(tmp_path)
    assert whole.setup.vocabulary.rows is None
    np.testing.assert_allclose(
        [e.metrics["loss"] for e in run(whole, params)], [e.metrics["loss"] for e in curve], rtol=1e-5
    )
    whole.save_weights(0, tmp_path / "whole")
    from safetensors.torch import load_file

    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("cut", "whole"))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", sorted(set(tiny.SIZES) - {"bert"}))
def test_other_architectures_train_and_are_written(tmp_path, kind):
    tiny.save_model(tmp_path / "model", kind)
    array = open_array(tmp_path)
    evaluations = run(array)
    array.save_weights(0, tmp_path / "kept")
    outputs = array.predictions_of(tmp_path / "kept", "validation")
    assert float((outputs.predicted == outputs.targets).mean()) == max(e.value for e in evaluations)


# ---------------------------------------------------------------- tasks


def test_regression_pairs_and_many_labels_learn(tmp_path):
    rng = np.random.default_rng(0)
    lines = {"regression": ["text,label"], "pairs": ["text,other,label"], "many": ["text,good,bad"]}
    for _ in range(150):
        label, other = rng.choice(["good", "bad"], 2)
        text, second = tiny.sentence(rng, label), tiny.sentence(rng, other)
        lines["regression"].append(f"{text},{0.25 + 2.5 * (label == 'good')}")
        lines["pairs"].append(f"{text},{second},{'same' if label == other else 'other'}")
        lines["many"].append(f"{text} {second},{int('good' in (label, other))},{int('bad' in (label, other))}")
    for name, rows in lines.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(rows))
    params = {"epochs": 6, "learning_rate": 5e-3, "batch_size": 8}

    numbers = open_array(tmp_path, data={"train": "regression.csv"})
    assert (numbers.setup.data.task, numbers.setup.metric) == ("regression", "spearman")
    assert max(e.value for e in run(numbers, params)) > 0.7

    many = open_array(tmp_path, data={"train": "many.csv", "label": ["good", "bad"]})
    assert (many.setup.data.task, many.setup.metric) == ("multi_label", "f1_micro")
    assert max(e.value for e in run(many, params)) > 0.85

    pairs = open_array(tmp_path, data={"train": "pairs.csv", "text_pair": "other"})
    inputs, _ = pairs.setup.tokens["train"].batch(np.arange(4))
    assert "token_type_ids" in inputs
    assert set(inputs["token_type_ids"].unique().tolist()) == {0, 1}
    assert len(run(pairs, params)) == 12


def test_bf16_trains_to_a_close_loss(tmp_path):
    exact, rounded = open_array(tmp_path), open_array(tmp_path, precision="bf16")
    a = run(exact, {"dropout": 0.0})[-1].metrics["loss"]
    b = run(rounded, {"dropout": 0.0})[-1].metrics["loss"]
    assert b == pytest.approx(a, rel=0.2)
    assert b != a


# ---------------------------------------------------------------- trials that go wrong


def test_a_diverged_trial_is_named_and_the_slot_is_as_new(tmp_path):
    array = open_array(tmp_path)
    expected = values(run(array))
    array.unload(0)
    array.load(0, TrialSpec(0, {"batch_size": 16}, 1))
    with torch.no_grad():
        array.engine.occupied[0].model.classifier.weight.fill_(math.inf)
    outcome = array.advance()[0]
    assert isinstance(outcome, DivergedError)
    assert "not finite after 32 examples" in str(outcome)
    array.unload(0)
    assert values(run(array)) == expected


def test_a_collapsed_model_is_named(tmp_path):
    last = run(open_array(tmp_path), {"learning_rate": 1e-9})[-1]
    assert dict(last.notes) == {"collapsed": True}


def test_a_model_that_learns_is_said_not_to_have_collapsed(tmp_path):
    evaluations = run(open_array(tmp_path), {"epochs": 8, "batch_size": 8})
    assert [dict(e.notes) for e in evaluations] == [{"collapsed": e.value == 0.5} for e in evaluations]
    assert (evaluations[0].value, evaluations[-1].value) == (0.5, 1.0)  # it recovered


def limited(monkeypatch, array, most):
    """Let forward passes of more than `most` rows run out of memory."""
    inner = type(array.setup.model).forward

    def forward(self, input_ids, **inputs):
        if self.training and len(input_ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return inner(self, input_ids, **inputs)

    monkeypatch.setattr(type(array.setup.model), "forward", forward)


def test_out_of_memory_halves_the_micro_batch_and_the_trial_goes_on(tmp_path, monkeypatch):
    expected = run(open_array(tmp_path), {"dropout": 0.0})
    array = open_array(tmp_path)
    limited(monkeypatch, array, 5)
    found = run(array, {"dropout": 0.0})
    assert array.engine.micro_batch == 4
    np.testing.assert_allclose([e.metrics["loss"] for e in found], [e.metrics["loss"] for e in expected], rtol=1e-4)


def test_a_trial_that_fits_at_no_micro_batch_is_out_of_memory(tmp_path, monkeypatch):
    array = open_array(tmp_path)
    limited(monkeypatch, array, 0)
    with pytest.raises(OutOfMemoryError, match="one example"):
        run(array)


def test_the_time_of_an_example_is_measured_without_a_trace(tmp_path):
    array = open_array(tmp_path)
    before = {name: t.clone() for name, t in array.setup.model.state_dict().items()}
    assert 0 < array.seconds_per_example() < 10
    assert math.isfinite(array.seconds_per_example())
    assert all(torch.equal(before[name], t) for name, t in array.setup.model.state_dict().items())


def test_a_real_failed_allocation_is_out_of_memory(tmp_path, monkeypatch):
    array, inner = open_array(tmp_path), PlainEngine._accumulate

    def greedy(self, *given):
        if self.micro_batch > 2:
            torch.empty(10**16)
        return inner(self, *given)

    monkeypatch.setattr(PlainEngine, "_accumulate", greedy)
    assert run(array)[-1].last
    assert array.engine.micro_batch == 2


def test_outputs_that_are_not_finite_end_the_trial_even_if_its_loss_was(tmp_path):
    array = open_array(tmp_path)
    array.load(0, TrialSpec(0, {"batch_size": 64, "epochs": 1}, 1))
    step = array.engine._step

    def last_step(slot, rows):
        loss = step(slot, rows)
        with torch.no_grad():
            slot.model.classifier.bias.fill_(math.nan)
        return loss

    array.engine._step = last_step
    outcome = array.advance()[0]
    assert isinstance(outcome, DivergedError)
    assert "outputs are not finite" in str(outcome)


def test_a_metric_that_a_split_cannot_define_is_refused_before_training(tmp_path):
    tiny.write_csv(tmp_path / "train.csv", 40)
    (tmp_path / "one.csv").write_text("text,label\nw1 fine,good\nw2 warm,good\n")
    with pytest.raises(DataError, match="'roc_auc' is not defined on the validation split"):
        open_array(tmp_path, data={"train": "train.csv", "validation": "one.csv", "test": 10}, metric="roc_auc")


@pytest.mark.parametrize("fold", [False, True])
def test_limited_metrics_are_measured_at_every_evaluation_and_change_nothing_else(tmp_path, fold):
    plain = run(open_array(tmp_path, fold=fold, metric="accuracy"))
    array = open_array(
        tmp_path, fold=fold, metric="accuracy", limits={"f1_macro": 0.5, "device_seconds": 9}, second_metric="matthews"
    )
    found = run(array)
    assert [list(evaluation.metrics) for evaluation in found] == [["loss", "f1_macro", "matthews"]] * len(plain)
    for with_more, without in zip(found, plain, strict=True):
        assert (with_more.value, with_more.metrics["loss"]) == (without.value, without.metrics["loss"])
    array.save_weights(0, tmp_path / "best")
    best = max(found, key=lambda evaluation: evaluation.value)
    predictions = array.predictions_of(tmp_path / "best", "validation")
    assert {name: score(name, predictions) for name in ("f1_macro", "matthews")}.items() <= dict(best.metrics).items()


def test_a_limit_on_a_metric_of_another_task_is_refused_once_the_labels_are_read(tmp_path):
    with pytest.raises(DataError, match="metric 'pearson' is not defined for single_label"):
        open_array(tmp_path, task="auto", limits={"pearson": 0.5})
