"""Token classification through every engine: the same numbers, whatever trains."""

import json
import os
from functools import partial

import architectures
import numpy as np
import pytest
import tagged
import tiny
import torch
from transformers import AutoConfig, AutoModelForTokenClassification
from trials import MIXED, SPACE, assert_goes_on_from_its_checkpoint, assert_separate, curves, run, same

from hpo.config import study_spec
from hpo.core.errors import ModelError
from hpo.core.trainer import TrialSpec
from hpo.execution import trial_arrays
from hpo.finetune.folded import equivalence, program_builder
from hpo.finetune.folded.engine import FoldedEngine
from hpo.finetune.folded.model import fold, load_slot
from hpo.finetune.lora.adaptation import LoraAdaptation
from hpo.finetune.plain import PlainEngine
from hpo.finetune.sharded.array import ShardedArray
from hpo.tasks.metrics import score
from hpo.tasks.registry import TASKS

TASK = TASKS["token_classification"]
WITH_HEAD = [
    name
    for name, (_, task, _) in architectures.ARCHITECTURES.items()
    if task is architectures.CLASSIFY and name != "bart"  # transformers has no such head of BART
]
STILL = [{**each, "dropout": 0.0} for each in MIXED]


@pytest.fixture(autouse=True)
def packed(monkeypatch):
    """Pack tokens although these rows have nearly the same length."""
    monkeypatch.setattr(program_builder, "WORTH_PACKING", 10.0)


def open_array(folder, **overrides):
    raw = tagged.study(folder, **{"space": SPACE, "max_length": 12, "data": {"stride": 3}, **overrides})
    return trial_arrays.open_array(study_spec.build(raw, "test", folder))


def separate(folder, trials, **overrides):
    """Return the curves of trials that train one after the other, on the batches that folded ones have."""
    plain = open_array(folder, fold=False, **overrides)
    assert type(plain.engine) is PlainEngine
    plain.engine.window = FoldedEngine.window
    return curves(plain, trials)


# ---------------------------------------------------------------- architectures


@pytest.mark.parametrize("name", WITH_HEAD)
def test_folded_slots_are_separate_models(monkeypatch, name):
    """Logits about all tokens but padding, and gradients: float64, to 1e-9."""
    kind, _, settings = architectures.ARCHITECTURES[name]
    monkeypatch.setitem(architectures.ARCHITECTURES, name, (kind, AutoModelForTokenClassification, settings))
    alone = architectures.models(name, 3, torch.float64)
    together = fold(alone[0], 3)
    for slot, model in enumerate(alone):
        load_slot(together, slot, model.state_dict())
    inputs = architectures.rows(alone[0], 3)
    real = inputs["attention_mask"].bool()
    logits = together(**architectures.flat(inputs)).logits.view(*real.shape, -1)
    logits[real].square().sum().backward()
    folded = dict(together.named_parameters())
    for slot, model in enumerate(alone):
        expected = model(**{key: value[slot] for key, value in inputs.items()}).logits[real[slot]]
        expected.square().sum().backward()
        assert (logits[slot][real[slot]] - expected).norm() <= 1e-9 * expected.norm()
        gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        largest = max(gradient.norm() for gradient in gradients.values())
        for key, gradient in gradients.items():  # that of key biases is rounding only
            off = (folded[key].grad[slot].view_as(gradient) - gradient).norm()
            assert off <= 1e-9 * max(gradient.norm(), 1e-3 * largest), key


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "modernbert", "qwen3", "distilbert"])
def test_a_padded_token_has_no_part_in_the_check_of_packing(name):
    kind, _, settings = architectures.ARCHITECTURES[name]
    config = AutoConfig.for_model(kind, num_labels=5, **settings)
    model = AutoModelForTokenClassification.from_config(config)
    assert equivalence.check(type(model), config, packed=True) is None


@pytest.mark.parametrize("kind", [kind for kind in tiny.SIZES if kind != "bart"])
def test_every_family_trains_folded(tmp_path, kind):
    tiny.save_model(tmp_path / "model", kind)
    array = open_array(tmp_path, slots=2, fold=True)
    assert type(array.engine) is FoldedEngine, array.notes
    found = curves(array, [MIXED[0], MIXED[1]])
    assert all(np.isfinite(metrics["loss"]) for *curve, _ in found.values() for _, _, metrics in curve)


def test_a_family_without_such_a_head_is_refused(tmp_path):
    tiny.save_model(tmp_path / "model", "bart")
    with pytest.raises(ModelError, match="BartConfig"):
        open_array(tmp_path)


# ---------------------------------------------------------------- engines


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("line", [True, False])
def test_folded_trials_are_separate_trials(tmp_path, monkeypatch, line):
    """Steps with windows, batches of several micro-batches, clipping, decay and schedules: float64, to 1e-9."""
    monkeypatch.setattr(program_builder, "WORTH_PACKING", 10.0 if line else 0.0)
    array = open_array(tmp_path, slots=3, fold=True)
    assert array.facts["program"] == ("packed" if line else "folded")
    assert array.setup.train_rows > len(array.setup.data.splits["train"])
    trials = [{**each, "class_weights": "balanced" if i % 2 else "none"} for i, each in enumerate(STILL)]
    assert_separate(curves(array, trials), separate(tmp_path, trials), scores=1e-6)  # answers are in float32


@pytest.mark.bits
def test_side_by_side_and_folded_trials_do_not_depend_on_their_neighbours(tmp_path):
    for settings in ({"fold": False, "threads": 3}, {"fold": True}):
        alone = curves(open_array(tmp_path, slots=1, **settings | {"threads": 1}))
        together = curves(open_array(tmp_path, slots=3, **settings), order=[2, 4, 1, 0, 3])
        assert [number for number in alone if not same(alone[number], together[number])] == []


def test_a_batchs_loss_is_that_of_transformers(tmp_path):
    """The mean over the labelled tokens of the batch, as `run_ner.py` trains on."""
    array = open_array(tmp_path, fold=False)
    setup, rows = array.setup, np.arange(16)
    setup.initial.start(setup.model, 1, 0.0)
    inputs, targets = setup.tokens["train"].batch(rows)
    with torch.no_grad():
        expected = setup.model(**inputs, labels=targets["labels"]).loss.item()
        found = setup.task.loss(setup.outputs(setup.model, inputs, targets), targets, 0.0, None).sum().item()
    assert found / setup.tokens["train"].units[rows].sum() == pytest.approx(expected, rel=1e-6)


@pytest.mark.usefixtures("in_float64")
def test_micro_batches_add_up(tmp_path, monkeypatch):
    """Batches are divided by their labelled words, not by their rows."""
    whole = separate(tmp_path, STILL[:1], micro_batch=64)
    parts = separate(tmp_path, STILL[:1], micro_batch=3)
    assert_separate(parts, whole, scores=1e-6)


def test_adapters_train_folded_and_are_a_token_classifier_of_peft(tmp_path):
    space = {**SPACE, "lora_rank": [2, 4]}
    array = open_array(tmp_path, slots=2, space=space)
    assert type(array.adaptation) is LoraAdaptation
    trials = [{"learning_rate": 1e-2, "epochs": 2, "batch_size": 8, "lora_rank": rank} for rank in (2, 4)]
    alone = curves(open_array(tmp_path, slots=1, space=space), trials)
    together = curves(array, trials)
    assert all(same(alone[number], together[number]) for number in alone)
    array.load(0, TrialSpec(0, trials[0], 1))
    outcome = array.advance()[0]
    array.save_weights(0, tmp_path / "kept")
    assert json.loads((tmp_path / "kept" / "adapter_config.json").read_text())["task_type"] == "TOKEN_CLS"
    kept = array.predictions_of(tmp_path / "kept", "validation")
    assert score("entity_f1", kept) == pytest.approx(outcome.value, abs=1e-6)
    assert score("loss", kept) == pytest.approx(outcome.metrics["loss"], rel=1e-4)


@pytest.mark.slow
def test_a_divided_trial_is_the_trial_of_one_process(tmp_path):
    params = {**STILL[1], "class_weights": "balanced"}
    alone = run(open_array(tmp_path, fold=False, metric="loss"), params)
    array = open_array(tmp_path, shards=2, micro_batch=6, metric="loss")
    assert isinstance(array, ShardedArray)
    try:
        together = run(array, params)
    finally:
        array.close()
    np.testing.assert_allclose([e.value for e in together], [e.value for e in alone], atol=1e-5)


@pytest.mark.parametrize("settings", [{"fold": False}, {"fold": True, "slots": 2}])
def test_a_trial_goes_on_from_its_checkpoint_to_the_bit(tmp_path, settings):
    assert_goes_on_from_its_checkpoint(partial(open_array, tmp_path, **settings))


def test_the_best_weights_give_their_score_again(tmp_path):
    array = open_array(tmp_path, fold=False)
    array.load(0, TrialSpec(0, STILL[0], 3))
    best = -1.0
    while not (outcome := array.advance()[0]).last:
        best = max(best, outcome.value)
    array.save_weights(0, tmp_path / "kept")
    assert score("entity_f1", array.predictions_of(tmp_path / "kept", "validation")) == max(best, outcome.value)
    assert os.listdir(tmp_path / "kept")
    config = json.loads((tmp_path / "kept" / "config.json").read_text())
    assert config["architectures"] == ["BertForTokenClassification"]
    assert config["id2label"] == {"0": "O", "1": "B-BAD", "2": "I-BAD", "3": "B-GOOD", "4": "I-GOOD"}


def with_roles(folder, **overrides):
    """Return the array of a study of sentences whose predicate is marked."""
    (folder / "roles.conll").write_text(tagged.roles(160))
    data = {"train": str(folder / "roles.conll"), "predicate_column": 2, "stride": 3}
    return open_array(folder, data=data, **{"max_length": 16, **overrides})


@pytest.mark.usefixtures("in_float64")
def test_folded_trials_with_predicates_are_separate_trials(tmp_path, monkeypatch):
    array = with_roles(tmp_path, slots=3, fold=True)
    plain = with_roles(tmp_path, fold=False)
    plain.engine.window = FoldedEngine.window
    assert_separate(curves(array, STILL[:3]), curves(plain, STILL[:3]), scores=1e-6)


def test_the_marked_predicate_tells_which_of_two_verbs_is_meant(tmp_path):
    """Of two words of one topic one is the predicate: without the mark, half of the verbs would be wrong."""
    array = with_roles(tmp_path, fold=False, max_length=24)
    evaluations = run(array, {"learning_rate": 1e-2, "epochs": 8, "batch_size": 8, "dropout": 0.0})
    assert max(each.value for each in evaluations) > 0.8


def test_a_collapsed_trial_names_its_tag(tmp_path):
    array = open_array(tmp_path, fold=False)
    array.load(0, TrialSpec(0, STILL[0], 1))
    with torch.no_grad():
        array.engine.occupied[0].model.classifier.bias[0] = 100.0  # O, and its rate moves it by 0.1 at most
    outcome = array.advance()[0]
    assert outcome.value == 0.0
    assert outcome.notes == {"collapsed": True, "collapse": "gives every word the tag 'O'"}
    array.unload(0)
    assert run(array, {"learning_rate": 1e-2, "epochs": 4, "batch_size": 8})[-1].notes == {"collapsed": False}
