"""Several tasks on one encoder, through every engine: the numbers are those of each task."""

import json
from functools import partial

import numpy as np
import pytest
import several
import tiny
import torch
from transformers import AutoTokenizer, pipeline
from trials import MIXED, SPACE, assert_goes_on_from_its_checkpoint, assert_separate, curves, run, same

from hpo.config import study_spec
from hpo.core.errors import ModelError
from hpo.core.trainer import TrialSpec
from hpo.execution import trial_arrays
from hpo.finetune.data.encoded import on_device
from hpo.finetune.folded import program_builder
from hpo.finetune.folded.engine import FoldedEngine
from hpo.finetune.lora.adaptation import LoraAdaptation
from hpo.finetune.models import token_head
from hpo.finetune.plain import PlainEngine
from hpo.finetune.predictor import Predictor
from hpo.finetune.task_files import divide
from hpo.tasks.metrics import score

STILL = [{**each, "dropout": 0.0} for each in MIXED]


def open_array(folder, names=several.TASKS, **overrides):
    raw = several.study(folder, names, **{"space": SPACE, **overrides})
    return trial_arrays.open_array(study_spec.build(raw, "test", folder))


# ---------------------------------------------------------------- engines


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("line", [True, False])
def test_folded_trials_are_separate_trials(tmp_path, monkeypatch, line):
    """Batches of rows of all tasks, windows, clipping, decay, schedules, and other mixtures: float64, to 1e-9."""
    monkeypatch.setattr(program_builder, "WORTH_PACKING", 10.0 if line else 0.0)
    trials = [{**each, "sampling_temperature": 1.0 + i} for i, each in enumerate(STILL[:3])]
    array = open_array(tmp_path, slots=3, fold=True)
    assert type(array.engine) is FoldedEngine, array.notes
    assert array.facts["program"] == ("packed" if line else "folded")
    plain = open_array(tmp_path, fold=False)
    assert type(plain.engine) is PlainEngine
    plain.engine.window = FoldedEngine.window
    rounding = ("key.bias", "qa_outputs.bias")
    assert_separate(curves(array, trials), curves(plain, trials), rounding, scores=1e-6)  # answers are in float32


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "electra", "deberta-v2", "albert", "mpnet", "modernbert"])
def test_families_train_folded(tmp_path, kind):
    tiny.save_model(tmp_path / "model", kind)
    array = open_array(tmp_path, ["sentiment", "entities"], slots=2, fold=True)
    assert type(array.engine) is FoldedEngine, array.notes
    found = curves(array, [MIXED[0], MIXED[1]])
    assert all(np.isfinite(metrics["loss"]) for *curve, _ in found.values() for _, _, metrics in curve)


def test_a_family_whose_tasks_have_different_encoders_is_refused(tmp_path):
    tiny.save_model(tmp_path / "model", "t5")
    with pytest.raises(ModelError, match="cannot share an encoder"):
        open_array(tmp_path, ["sentiment", "entities"])


def test_a_head_that_cannot_learn_its_task_is_refused(tmp_path):
    """Only a model that reads from left to right, and only for questions without an answer."""
    open_array(tmp_path, ["sentiment", "questions"])
    tiny.save_model(tmp_path / "model", "gpt2")
    with pytest.raises(ModelError, match=r"reads from left to right, .* of train have none"):
        open_array(tmp_path, ["sentiment", "questions"])


@pytest.mark.parametrize("settings", [{"fold": False, "threads": 2}, {"fold": True}])
def test_trials_do_not_depend_on_their_neighbours(tmp_path, settings):
    alone = curves(open_array(tmp_path, slots=1, **settings | {"threads": 1}), MIXED[:3])
    together = curves(open_array(tmp_path, slots=2, **settings), MIXED[:3], order=[2, 1, 0])
    assert [number for number in alone if not same(alone[number], together[number])] == []


@pytest.mark.parametrize("name", several.TASKS)
def test_one_task_is_the_study_of_that_task(tmp_path, name):
    """Head, batches, masks, loss and scores; those of texts to the bit."""
    together = open_array(tmp_path, [name])
    part = several.tasks(tmp_path, [name])[name]
    raw = tiny.study(tmp_path, space=SPACE, max_length=16, task=part["task"], data=part["data"])
    alone = trial_arrays.open_array(study_spec.build(raw, "test", tmp_path))
    params = {"epochs": 1, "dropout": 0.1, "label_smoothing": 0.1}
    exact = 0.0 if name == "sentiment" else 1e-4
    for found, expected in zip(run(together, params), run(alone, params), strict=True):
        assert (found.at, found.of) == (expected.at, expected.of)
        assert found.value == pytest.approx(expected.value, abs=exact)
        assert found.metrics["loss"] == pytest.approx(expected.metrics["loss"], rel=exact)


def test_frozen_layers_are_given_to_all_heads(tmp_path):
    params = {**STILL[0], "frozen_layers": 1}
    whole = open_array(tmp_path, space={**SPACE, "frozen_layers": 1})
    values = [(e.value, e.metrics["loss"]) for e in run(whole, params)]
    assert whole.setup.frozen is not None
    assert np.isfinite(values).all()


def test_adapters_train_and_are_added_to_the_encoder(tmp_path):
    space = {**SPACE, "lora_rank": [2, 4]}
    array = open_array(tmp_path, slots=2, space=space)
    assert type(array.adaptation) is LoraAdaptation
    trials = [{"learning_rate": 1e-2, "epochs": 1, "batch_size": 8, "lora_rank": rank} for rank in (2, 4)]
    alone = curves(open_array(tmp_path, slots=1, space=space), trials)
    together = curves(array, trials)
    assert all(same(alone[number], together[number]) for number in alone)
    array.load(0, TrialSpec(0, trials[0], 1))
    outcome = array.advance()[0]
    array.save_weights(0, tmp_path / "kept")
    kept = array.predictions_of(tmp_path / "kept", "validation")
    assert score("weighted_mean", kept) == pytest.approx(outcome.value, abs=1e-6)
    divide(tmp_path / "kept", tmp_path / "out", several.TASKS)
    assert_same_answers(tmp_path / "out", array, array.predictions_of(tmp_path / "kept", "test"))


@pytest.mark.parametrize("settings", [{"fold": False}, {"fold": True, "slots": 2}])
def test_a_trial_goes_on_from_its_checkpoint_to_the_bit(tmp_path, settings):
    params = {**MIXED[1], "sampling_temperature": 4.0, "epochs": 2}  # it goes on in the second epoch
    assert_goes_on_from_its_checkpoint(partial(open_array, tmp_path, **settings), params, before=3)


# ---------------------------------------------------------------- scores and files


def test_a_value_is_the_weighted_mean_of_the_metrics(tmp_path):
    outcome = run(open_array(tmp_path))[-1]
    assert list(outcome.metrics) == ["loss", "sentiment.accuracy", "entities.entity_f1", "questions.answer_f1"]
    _, accuracy, entity_f1, answer_f1 = outcome.metrics.values()
    assert outcome.value == pytest.approx((accuracy + 2 * entity_f1 + answer_f1) / 4)


def test_tasks_are_learned(tmp_path):
    """More than the majority's answer gives, on the two tasks that so small a model learns in some epochs."""
    params = {"epochs": 8, "learning_rate": 2e-3, "batch_size": 8}
    first, *_, last = run(open_array(tmp_path, evaluations_per_epoch=1), params)
    assert last.metrics["entities.entity_f1"] > 0.3 > first.metrics["entities.entity_f1"]
    assert last.metrics["questions.answer_f1"] > first.metrics["questions.answer_f1"]


def test_an_exported_model_answers_as_the_array_does(tmp_path):
    """Each folder is an ordinary model of its task, which a pipeline of transformers loads."""
    array = open_array(tmp_path, fold=False)
    array.load(0, TrialSpec(0, STILL[0], 3))
    while not array.advance()[0].last:
        pass
    array.save_weights(0, tmp_path / "kept")
    kept = array.predictions_of(tmp_path / "kept", "test")
    divide(tmp_path / "kept", tmp_path / "out", several.TASKS)
    assert_same_answers(tmp_path / "out", array, kept)
    kinds = {name: json.loads((tmp_path / "out" / name / "config.json").read_text()) for name in several.TASKS}
    heads = ["SequenceClassification", "TokenClassification", "QuestionAnswering"]
    assert [kind["architectures"] for kind in kinds.values()] == [[f"BertFor{head}"] for head in heads]
    assert not any("heads" in kind for kind in kinds.values())
    classify = pipeline("text-classification", str(tmp_path / "out" / "sentiment"))
    assert classify("w1 fine warm")[0]["label"] in ("good", "bad")
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / "entities").vocab_size == len(tiny.VOCABULARY)


def assert_same_answers(folder, array, predictions):
    """Compare exported models on the rows of test with the predictions of the array, task by task."""
    for name, part in array.setup.task.parts.items():
        split, model = part.data.splits["test"], Predictor(folder / name, 16, "fp32")
        rows = model.task.encode(split, part.data.keys, model.tokenizer, 16)

        def answer(inputs, targets, model=model):
            outputs = token_head.outputs(model.task, model.model, inputs, targets)
            return {key: tensor[None] for key, tensor in model.task.answers(outputs, targets).items()}

        with torch.no_grad():
            answers = on_device(rows, model.tokenizer.pad_token_id, model.device).answers(answer, 64)
        found = model.task.predictions(split, rows, {key: array[0] for key, array in answers.items()}, part.data.keys)
        found = model.task.with_fitted(found, model.model.config.to_dict())
        own = predictions.parts[name]
        assert model.labels == part.data.labels
        assert score(own.metric, found) == score(own.metric, own.predictions)
        np.testing.assert_allclose(found.losses, own.predictions.losses, rtol=1e-4, atol=1e-6)


def test_a_model_of_several_tasks_is_not_one_of_a_task(tmp_path):
    array = open_array(tmp_path, fold=False)
    array.load(0, TrialSpec(0, STILL[0], 3))
    array.advance()
    array.save_weights(0, tmp_path / "kept")
    raw = tiny.study(tmp_path, model=str(tmp_path / "kept"))
    with pytest.raises(ModelError, match="hpo export"):
        trial_arrays.open_array(study_spec.build(raw, "test", tmp_path))
    with torch.no_grad():
        assert array.predictions_of(tmp_path / "kept", "test").finite
