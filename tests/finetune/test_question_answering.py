"""Question answering through every engine: windows as rows, outputs about tokens, a threshold with the weights."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import architectures
import example_loop
import numpy as np
import pytest
import squad_rows
import tiny
import torch
from transformers import AutoModelForQuestionAnswering
from trials import (
    EXACT,
    NARROW,
    TRIALS,
    advanced_beside_nan,
    assert_adapters_of_one_slot,
    assert_separate,
    assert_side_by_side,
    curves,
    open_array,
    run,
    same,
)

from hpo.core.errors import ModelError
from hpo.core.trainer import TrialSpec
from hpo.finetune.folded import engine, equivalence, program_builder
from hpo.finetune.lora.adapters import Lora
from hpo.finetune.sharded.array import ShardedArray
from hpo.tasks.metrics import score

opened = partial(open_array, study=squad_rows.study, space=NARROW)


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack tokens although windows have nearly the same length."""
    monkeypatch.setattr(program_builder, "WORTH_PACKING", 10.0)


# ---------------------------------------------------------------- models


HEADS = architectures.heads(AutoModelForQuestionAnswering)
LEFT_TO_RIGHT = ("gpt2", "qwen3")


def test_gemma_and_models_that_only_write_text_have_no_head_for_question_answering() -> None:
    lacking = {kind for kind, _, _ in architectures.ARCHITECTURES.values()} - {
        name.rpartition("-")[0] for name in HEADS
    }
    assert lacking == {"gemma", "marian", "encoder-decoder"}


@pytest.mark.parametrize("name", HEADS)
def test_every_model_with_a_head_folds(name: str) -> None:
    kind, config = HEADS[name]
    assert equivalence.check(kind, config) is None
    if "deberta" not in name:  # with adapters it does not fold for classification either
        assert equivalence.check(kind, config, Lora(("all_linear",), 3)) is None


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "electra", "modernbert", "gpt2", "qwen3"])
def test_models_that_pack_for_classification_pack_here(name: str) -> None:
    kind, config = next(head for key, head in HEADS.items() if key.startswith(f"{name}-"))
    assert equivalence.check(kind, config, packed=True) is None


@pytest.mark.parametrize("kind", list(tiny.SIZES))
def test_every_tiny_model_trains(tmp_path: Path, kind: str) -> None:
    tiny.save_model(tmp_path / "model", kind)
    if kind in LEFT_TO_RIGHT:
        squad_rows.write(tmp_path / "questions.jsonl", squad_rows.topics(160, unanswerable=0))
    found = curves(opened(tmp_path, slots=2), EXACT[1:3])
    assert all(np.isfinite(point[1]) for curve in found.values() for point in curve[:-1]), found


@pytest.mark.parametrize("kind", list(tiny.SIZES))
def test_a_model_that_reads_from_left_to_right_cannot_learn_that_there_is_no_answer(tmp_path: Path, kind: str) -> None:
    tiny.save_model(tmp_path / "model", kind)
    if kind not in LEFT_TO_RIGHT:
        assert opened(tmp_path).setup.data.splits["train"].unanswerable
        return
    with pytest.raises(
        ModelError, match=r"reads from left to right, .* as \d+ of 100 of train have none. Choose a model"
    ):
        opened(tmp_path)


# ---------------------------------------------------------------- folded and separate


@pytest.mark.usefixtures("packed")
@pytest.mark.parametrize("slots", [2, 5])
def test_a_trial_is_to_the_bit_the_same_whatever_its_neighbours(tmp_path: Path, slots: int) -> None:
    first = opened(tmp_path, slots=1)
    assert first.facts["program"] == "packed"
    alone, together = curves(first, TRIALS), curves(opened(tmp_path, slots=slots), TRIALS, order=[4, 2, 0, 1, 3])
    assert [number for number in alone if not same(alone[number], together[number])] == []


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("worth", [10.0, 0.0], ids=["packed", "padded"])
def test_folded_trials_are_separate_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worth: float) -> None:
    """All steps of five trials, clipped, scheduled, smoothed: scores and weights in float64, to 1e-9."""
    monkeypatch.setattr(program_builder, "WORTH_PACKING", worth)
    folded, plain = opened(tmp_path, slots=3), opened(tmp_path, fold=False)
    plain.engine.window = engine.FoldedEngine.window
    assert folded.facts["program"] == ("packed" if worth else "folded")
    assert_separate(curves(folded, EXACT), curves(plain, EXACT))


@pytest.mark.usefixtures("packed")
def test_adapters_in_several_slots_are_those_of_one(tmp_path: Path) -> None:
    assert_adapters_of_one_slot(partial(opened, tmp_path))


def test_side_by_side_is_one_by_one(tmp_path: Path) -> None:
    assert_side_by_side(partial(opened, tmp_path))


@pytest.mark.slow
def test_a_divided_trial_is_the_trial_of_one_process(tmp_path: Path) -> None:
    overrides = {"fold": False, "metric": "loss"}
    single, sharded = opened(tmp_path, **overrides), opened(tmp_path, **overrides, shards=2, micro_batch=6)
    assert isinstance(sharded, ShardedArray)
    assert sharded.horizon == single.horizon > 2 * len(single.setup.data.splits["train"])
    try:
        params = {"dropout": 0.0, "epochs": 2}
        alone, together = (run(array, params) for array in (single, sharded))
        assert [each.value for each in together] == pytest.approx([each.value for each in alone], abs=1e-5)
        found = []
        for name, array in (("alone", single), ("together", sharded)):
            assert array.save_weights(0, tmp_path / name)
            array.unload(0)
            found.append(array.predictions_of(tmp_path / name, "test"))
        np.testing.assert_allclose(found[1].losses, found[0].losses, atol=1e-4)
        assert found[1].threshold == pytest.approx(found[0].threshold, abs=1e-4)
    finally:
        sharded.close()


# ---------------------------------------------------------------- transformers' example


def _words(text: str) -> list[str]:
    return [word for word in text.lower().split() if word not in ("a", "an", "the")]


def _f1(predicted: str, gold: str) -> float:
    one, other = _words(predicted), _words(gold)
    if not one or not other:
        return float(one == other)
    common = sum(min(one.count(word), other.count(word)) for word in set(one))
    return 2 * common / (len(one) + len(other))


@pytest.mark.usefixtures("in_float64")
def test_a_trial_is_that_of_transformers_example(tmp_path: Path) -> None:
    """Features, loss, steps, answers and SQuAD 2.0's best F1 as in `run_qa.py`; rows have one length, so no padding."""
    rows = squad_rows.topics(120)
    for row in rows:
        row["context"] += " w59" * (14 - len(row["context"].split()))
    squad_rows.write(tmp_path / "questions.jsonl", rows)
    array = opened(tmp_path, fold=False, max_length=40)
    (slot, batches), splits = example_loop.loaded(array), array.setup.data.splits
    model = example_loop.without_dropout(AutoModelForQuestionAnswering, tmp_path / "model")
    model.qa_outputs.load_state_dict(slot.model.qa_outputs.state_dict())
    tokenizer = tiny.tokenizer()

    def features(questions: Any) -> Any:
        texts = [each.question for each in questions], [each.context for each in questions]
        return tokenizer(
            *texts, truncation="only_second", max_length=40, return_tensors="pt", return_offsets_mapping=True
        )

    def places(question: Any, feature: Any, number: int) -> tuple[int, int]:
        if not question.answers:
            return 0, 0
        text, start = question.answers[0]
        tokens = [feature.char_to_token(number, at, 1) for at in (start, start + len(text) - 1)]
        return tokens[0], tokens[1]

    def loss(batch: Any) -> torch.Tensor:
        questions = [splits["train"].questions[row] for row in batch]
        feature = features(questions)
        spans = torch.tensor([places(each, feature, number) for number, each in enumerate(questions)])
        inputs = {name: feature[name] for name in tokenizer.model_input_names}
        return model(**inputs, start_positions=spans[:, 0], end_positions=spans[:, 1]).loss

    example_loop.train(model, batches, loss)

    questions = splits["validation"].questions
    feature = features(questions)
    with torch.no_grad():
        result = model.eval()(**{name: feature[name] for name in tokenizer.model_input_names})
    scored = []
    for number, question in enumerate(questions):
        start, end = result.start_logits[number], result.end_logits[number]
        of_context = [part == 1 for part in feature.sequence_ids(number)]
        candidates = [
            (float(start[first] + end[last]), first, last)
            for first in start.argsort(descending=True)[:20].tolist()
            for last in end.argsort(descending=True)[:20].tolist()
            if of_context[first] and of_context[last] and first <= last < first + 30
        ]
        best, first, last = max(candidates)
        text = question.context[
            feature["offset_mapping"][number, first, 0] : feature["offset_mapping"][number, last, 1]
        ]
        golds = [gold for gold, _ in question.answers] or [""]
        scored.append((float(start[0] + end[0]) - best, max(_f1(text, gold) for gold in golds), not question.answers))
    thresholds = [-1e9, *(difference for difference, *_ in scored)]
    expected = max(
        np.mean([f1 if difference <= limit else none for difference, f1, none in scored]) for limit in thresholds
    )

    evaluations = [array.advance()[0] for _ in range(2)]
    assert evaluations[-1].last
    assert evaluations[-1].value == pytest.approx(expected)
    example_loop.assert_same_weights(slot, model)


# ---------------------------------------------------------------- the threshold


def test_the_threshold_of_the_best_evaluation_goes_with_its_weights(tmp_path: Path) -> None:
    """Through a checkpoint, into the configuration, and unchanged onto the test split."""
    array = opened(tmp_path, fold=False)
    params = {"learning_rate": 3e-3, "epochs": 3, "batch_size": 16}
    array.load(0, TrialSpec(0, params, 1))
    values = [array.advance()[0].value for _ in range(2)]
    checkpoint = array.save(0)
    fitted = dict(array.engine.occupied[0].fitted)
    array.unload(0)
    json.dumps(checkpoint.state, allow_nan=False)
    array.load(0, TrialSpec(0, params, 1, checkpoint))
    held = array.engine.occupied[0]
    assert held.fitted == fitted
    values.append(array.advance()[0].value)
    assert array.save_weights(0, tmp_path / "kept")
    threshold = json.loads((tmp_path / "kept" / "config.json").read_text())["no_answer_threshold"]
    assert threshold == held.fitted["no_answer_threshold"]
    array.unload(0)
    validation, test = (array.predictions_of(tmp_path / "kept", split) for split in ("validation", "test"))
    assert validation.threshold == test.threshold == threshold
    assert score("answer_f1", validation) == max(values)


def test_a_model_that_has_seen_only_answers_always_answers(tmp_path: Path) -> None:
    squad_rows.write(tmp_path / "questions.jsonl", squad_rows.topics(160, unanswerable=0))
    array = opened(tmp_path, fold=False)
    array.setup.model.config.no_answer_threshold = -100.0  # as a model that was fine-tuned before may have it
    run(array)
    assert array.save_weights(0, tmp_path / "kept")
    found = array.predictions_of(tmp_path / "kept", "test")
    assert found.answered.all()
    assert json.loads((tmp_path / "kept" / "config.json").read_text()).get("no_answer_threshold") is None


def test_a_threshold_of_the_study_file_is_not_fitted(tmp_path: Path) -> None:
    data = {**squad_rows.study(tmp_path)["data"], "no_answer_threshold": 0.25}
    array = opened(tmp_path, fold=False, data=data)
    run(array)
    assert array.save_weights(0, tmp_path / "kept")
    assert array.predictions_of(tmp_path / "kept", "test").threshold == 0.25


def test_outputs_that_are_not_finite_end_the_trial_alone(tmp_path: Path) -> None:
    outcomes = advanced_beside_nan(opened(tmp_path, slots=3, space=NARROW | {"layer_decay": [1.0, 0.8]}))
    assert [type(outcome).__name__ for outcome in outcomes.values()] == ["Evaluation", "DivergedError", "Evaluation"]
