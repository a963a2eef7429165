"""Sequence to sequence through every engine: two lengths a row, losses of tokens, a head of the whole vocabulary."""

import json
from functools import partial
from pathlib import Path

import example_loop
import numpy as np
import paired
import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)
from trials import (
    ADAPTERS,
    MIXED,
    SPACE,
    advanced_beside_nan,
    assert_goes_on_from_its_checkpoint,
    assert_separate,
    curves,
    run,
    same,
)

from hpo.config import study_spec
from hpo.core.trainer import TrialSpec
from hpo.execution import trial_arrays
from hpo.finetune.folded.engine import FoldedEngine
from hpo.finetune.lora.adaptation import LoraAdaptation
from hpo.finetune.plain import PlainEngine
from hpo.tasks.metrics import score, searchable
from hpo.tasks.registry import TASKS
from hpo.tasks.rows import IGNORED

TASK = TASKS["seq2seq"]
STILL = [{**each, "dropout": 0.0} for each in MIXED]


def opened(folder, kind="t5", **overrides):
    raw = paired.study(folder, kind, **{"space": SPACE, **overrides})
    return trial_arrays.open_array(study_spec.build(raw, "test", folder))


# ---------------------------------------------------------------- engines


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("kind", paired.KINDS)
def test_folded_trials_are_separate_trials(tmp_path, kind):
    """All steps of five trials, clipped, scheduled, smoothed: losses and weights in float64, to 1e-9."""
    folded, plain = opened(tmp_path, kind, fold=True, slots=3), opened(tmp_path, kind, fold=False)
    assert (type(folded.engine), type(plain.engine)) == (FoldedEngine, PlainEngine)
    plain.engine.window = FoldedEngine.window
    assert_separate(curves(folded, STILL), curves(plain, STILL), ("k_proj.bias", "key.bias"))


@pytest.mark.parametrize("kind", ["t5", "encoder-decoder"])
def test_a_trial_is_to_the_bit_the_same_whatever_its_neighbours(tmp_path, kind):
    for settings in ({"fold": False, "threads": 2}, {"fold": True}):
        alone = curves(opened(tmp_path, kind, slots=1, **settings | {"threads": 1}), MIXED[:3])
        together = curves(opened(tmp_path, kind, slots=2, **settings), MIXED[:3], order=[2, 0, 1])
        assert [number for number in alone if not same(alone[number], together[number])] == []


@pytest.mark.parametrize("kind", paired.KINDS)
def test_adapters_train_folded_and_are_those_of_peft(tmp_path, kind):
    trials = [{"learning_rate": 1e-2, "epochs": 2, "batch_size": 8, "lora_rank": rank} for rank in (2, 4)]
    array = opened(tmp_path, kind, slots=2, space=ADAPTERS)
    assert type(array.adaptation) is LoraAdaptation
    alone, together = curves(opened(tmp_path, kind, slots=1, space=ADAPTERS), trials), curves(array, trials)
    assert all(same(alone[number], together[number]) for number in alone)
    array.load(0, TrialSpec(0, trials[0], 1))
    outcome = array.advance()[0]
    array.save_weights(0, tmp_path / "kept")
    assert json.loads((tmp_path / "kept" / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    kept = array.predictions_of(tmp_path / "kept", "validation")
    assert score("loss", kept) == pytest.approx(outcome.value, rel=1e-5)


@pytest.mark.parametrize("kind", paired.KINDS)
@pytest.mark.parametrize("fold", [False, True])
def test_trials_in_bf16_come_near_those_in_float32(tmp_path, kind, fold):
    exact, rounded = (
        curves(opened(tmp_path, kind, fold=fold, slots=2, precision=precision), STILL[:2])
        for precision in ("fp32", "bf16")
    )
    for number, curve in exact.items():
        values = [[value for _, value, _ in each[:-1]] for each in (rounded[number], curve)]
        assert values[0] != values[1]
        assert values[0] == pytest.approx(values[1], rel=0.02)


@pytest.mark.usefixtures("in_float64")
def test_micro_batches_add_up(tmp_path):
    """A batch's loss is divided by its tokens, not by its rows."""
    whole, parts = (curves(opened(tmp_path, fold=False, micro_batch=size), STILL[:1])[0] for size in (64, 3))
    assert [value for _, value, _ in parts[:-1]] == pytest.approx([value for _, value, _ in whole[:-1]], rel=1e-7)


@pytest.mark.parametrize("settings", [{"fold": False}, {"fold": True, "slots": 2}])
def test_a_trial_goes_on_from_its_checkpoint_to_the_bit(tmp_path, settings):
    assert_goes_on_from_its_checkpoint(partial(opened, tmp_path, **settings))


def test_outputs_that_are_not_finite_end_the_trial_alone(tmp_path):
    outcomes = advanced_beside_nan(opened(tmp_path, fold=True, slots=3))
    assert [type(outcome).__name__ for outcome in outcomes.values()] == ["Evaluation", "DivergedError", "Evaluation"]


# ---------------------------------------------------------------- transformers


@pytest.mark.parametrize("kind", paired.KINDS)
def test_the_best_weights_give_their_score_to_transformers_trainer(tmp_path, kind):
    """What is saved is loaded by its `AutoModel`, and `Seq2SeqTrainer` computes the same loss for the same pairs."""
    array = opened(tmp_path, kind, fold=False)
    array.load(0, TrialSpec(0, STILL[0], 3))
    values = [array.advance()[0].value]
    while len(values) < 4:
        values.append(array.advance()[0].value)
    array.save_weights(0, tmp_path / "kept")
    kept = array.predictions_of(tmp_path / "kept", "validation")
    assert score("loss", kept) == pytest.approx(min(values), rel=1e-6)
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "kept")
    tokenizer = paired.tokenizer(of_encoder=kind == "encoder-decoder")
    split = array.setup.data.splits["validation"]
    rows = [
        {"input_ids": tokenizer(source)["input_ids"], "labels": tokenizer(text_target=target)["input_ids"]}
        for source, target in zip(split.sources, split.targets, strict=True)
    ]
    trainer = Seq2SeqTrainer(
        model,
        Seq2SeqTrainingArguments(str(tmp_path), per_device_eval_batch_size=30, use_cpu=True, report_to=[]),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
    )
    assert trainer.evaluate(rows)["eval_loss"] == pytest.approx(min(values), rel=1e-5)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_trial_is_that_of_transformers_example(tmp_path, smoothing):
    """Losses and steps as in `run_translation.py`, on the same batches: weights in float64."""
    array = opened(tmp_path, "marian", fold=False)
    slot, batches = example_loop.loaded(array, {**example_loop.PARAMS, "label_smoothing": smoothing})
    split = array.setup.data.splits["train"]
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model", dtype=torch.float64)
    tokenizer, collated = paired.tokenizer(), DataCollatorForSeq2Seq(paired.tokenizer(), model=model)

    def loss(batch):
        rows = collated(
            [
                {"input_ids": tokenizer(split.sources[row])["input_ids"]}
                | {"labels": tokenizer(text_target=split.targets[row])["input_ids"]}
                for row in batch
            ]
        )
        inputs = {name: rows[name] for name in ("input_ids", "attention_mask", "labels")}
        logits = model.eval()(**inputs).logits  # no dropout
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), rows["labels"].flatten(), ignore_index=IGNORED, label_smoothing=smoothing
        )

    example_loop.train(model, batches, loss)

    while not array.advance()[0].last:
        pass
    example_loop.assert_same_weights(slot, model, ("k_proj.bias",))


# ---------------------------------------------------------------- learning and scoring


@pytest.mark.parametrize("metric", searchable("seq2seq"))
def test_every_metric_of_tokens_is_computed(tmp_path, metric):
    array = opened(tmp_path, fold=False, metric=metric)
    assert np.isfinite(run(array, {"epochs": 1})[-1].value)


def test_a_tiny_model_learns_to_translate_words(tmp_path):
    """Without reading the source, the end token and a sixth of the words would be right: less than a half."""
    paired.write_jsonl(tmp_path / "pairs.jsonl", paired.pairs(300, low=1, high=4, words=6))
    array = opened(tmp_path, fold=False, metric="token_accuracy", evaluations_per_epoch=1)
    evaluations = run(array, {"learning_rate": 5e-3, "epochs": 8, "batch_size": 8, "dropout": 0.0})
    assert max(each.value for each in evaluations) > 0.6


def test_scores_of_a_split_are_in_its_order(tmp_path):
    """Rows are computed by length, the decoder's included, and told in their own order."""
    array = opened(tmp_path, fold=False)
    setup = array.setup
    model = setup.model.train(False)
    found = setup.predict(model, "validation")
    assert list(found.expected) == setup.data.splits["validation"].targets
    tokens = setup.tokens["validation"]
    for row in range(5):
        inputs, targets = tokens.batch(np.array([row]))
        with torch.no_grad():
            wanted = setup.outputs(model, inputs, targets)[0][..., 0].sum().item()
        assert found.losses[row] == pytest.approx(wanted, rel=1e-5)
        assert found.units[row] == len(paired.tokenizer()(text_target=found.expected[row])["input_ids"])
    assert found.bytes.tolist() == [len(text.encode()) for text in found.expected]


def test_rows_that_are_shown_have_their_target(tmp_path):
    rows = opened(tmp_path, fold=False).setup.rows["train"]
    assert TASK.marked(rows, 0, ["a"], ()).startswith("a -> [[")
    assert [len(each) for each in rows.decoder_inputs.values()] == [3]


def test_data_beyond_the_positions_of_the_model_is_cut(tmp_path: Path) -> None:
    array = opened(tmp_path, "encoder-decoder", fold=False, max_length=500)
    assert array.setup.max_length == 64
