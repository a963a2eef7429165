"""Masked language models through every engine: masks anew in every step, the same ones whatever the engine."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import documents
import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, pipeline
from trials import (
    ADAPTERS,
    EXACT,
    NARROW,
    TRIALS,
    advanced_beside_nan,
    assert_adapters_of_one_slot,
    assert_goes_on_from_its_checkpoint,
    assert_separate,
    assert_side_by_side,
    curves,
    open_array,
    run,
    same,
)

from hpo.finetune.folded import engine, program_builder
from hpo.tasks.rows import IGNORED

opened = partial(open_array, study=documents.study, space=NARROW)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("worth", [10.0, 0.0], ids=["packed", "padded"])
def test_folded_trials_are_separate_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worth: float) -> None:
    """All steps of five trials with the masks of each step: scores and weights in float64, to 1e-9."""
    monkeypatch.setattr(program_builder, "WORTH_PACKING", worth)
    folded, plain = opened(tmp_path, slots=3), opened(tmp_path, fold=False, micro_batch=5)
    plain.engine.window = engine.FoldedEngine.window
    assert folded.facts["program"] == ("packed" if worth else "folded")
    assert_separate(curves(folded, EXACT), curves(plain, EXACT))


@pytest.mark.parametrize("slots", [2, 5])
def test_a_trial_is_to_the_bit_the_same_whatever_its_neighbours(tmp_path: Path, slots: int) -> None:
    alone = curves(opened(tmp_path, slots=1), TRIALS)
    together = curves(opened(tmp_path, slots=slots), TRIALS, order=[4, 2, 0, 1, 3])
    assert [number for number in alone if not same(alone[number], together[number])] == []


def test_adapters_in_several_slots_are_those_of_one(tmp_path: Path) -> None:
    assert_adapters_of_one_slot(partial(opened, tmp_path))


def test_side_by_side_is_one_by_one(tmp_path: Path) -> None:
    assert_side_by_side(partial(opened, tmp_path))


@pytest.mark.parametrize("settings", [{"fold": False}, {"fold": True, "slots": 2}])
def test_a_trial_goes_on_from_its_checkpoint_with_the_masks_that_it_would_have_had(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    assert_goes_on_from_its_checkpoint(partial(opened, tmp_path, **settings), {**TRIALS[0], "epochs": 2})


def test_scores_of_two_trials_are_of_the_same_masks(tmp_path: Path) -> None:
    """Without a step of training, every evaluation of every trial scores the same."""
    array = opened(tmp_path, fold=False)
    values = [each.value for seed in (1, 2) for each in run_and_unload(array, {"learning_rate": 0.0}, seed)]
    assert len(values) == 4
    assert len(set(values)) == 1
    other = opened(tmp_path, fold=False, seed=1, data={"validation": str(tmp_path / "documents.jsonl")})
    same_rows = opened(tmp_path, fold=False, seed=2, data={"validation": str(tmp_path / "documents.jsonl")})
    losses = [run_and_unload(each, {"learning_rate": 0.0}, 1)[0].value for each in (other, same_rows)]
    assert losses[0] != losses[1]  # the masks are those of the study's seed


def run_and_unload(array: Any, params: dict[str, Any], seed: int) -> Any:
    found = run(array, params, seed)
    array.unload(0)
    return found


@pytest.mark.usefixtures("in_float64")
def test_the_loss_of_a_step_is_transformers_loss_of_the_masked_tokens(tmp_path: Path) -> None:
    array = opened(tmp_path, fold=False)
    tokens, rows = array.setup.tokens["train"], np.arange(16)
    inputs, targets = tokens.batch(rows, key=9)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "model", dtype=torch.float64).eval()
    expected = model(**inputs, labels=targets["labels"]).loss
    outputs = array.setup.outputs(array.setup.model.eval(), inputs, targets)
    losses = array.setup.task.loss(outputs, targets, 0.0, None)
    assert (targets["labels"] != IGNORED).sum() == tokens.units[rows].sum()
    torch.testing.assert_close(losses.sum() / tokens.units[rows].sum(), expected)


def test_a_tiny_model_learns_what_is_hidden_and_fills_it(tmp_path: Path) -> None:
    """Each document is one word, again and again: what is hidden is what stands beside it."""
    documents.write(tmp_path / "documents.jsonl", [" ".join([f"w{i % 20}"] * (4 + i % 7)) for i in range(400)])
    array = opened(tmp_path, fold=False)
    assert array.setup.vocabulary.rows is None
    params = {"epochs": 3, "batch_size": 8, "dropout": 0.0, "learning_rate": 1e-2}
    values = [each.metrics["loss"] for each in run(array, params)]
    assert values[-1] < 1.5 < 2 < values[0]  # of 20 words: chance is 3.0
    assert array.save_weights(0, tmp_path / "kept")
    array.unload(0)
    array.setup.tokenizer.save_pretrained(tmp_path / "kept")
    found = array.predictions_of(tmp_path / "kept", "validation")
    assert found.losses.sum() / found.units.sum() == pytest.approx(min(values), rel=1e-4)
    fill = pipeline("fill-mask", model=str(tmp_path / "kept"), device="cpu")
    filled = [fill(f"w{i} w{i} [MASK] w{i} w{i}")[0]["token_str"] for i in range(20)]
    assert np.mean([word == f"w{i}" for i, word in enumerate(filled)]) > 0.5  # chance is 0.05


def test_adapters_are_written_and_read(tmp_path: Path) -> None:
    array = opened(tmp_path, fold=None, space=ADAPTERS)
    values = [each.value for each in run(array, {"lora_rank": 2})]
    assert array.save_weights(0, tmp_path / "kept")
    array.unload(0)
    found = array.predictions_of(tmp_path / "kept", "validation")
    assert found.losses.sum() / found.units.sum() == pytest.approx(min(values), rel=1e-4)


def test_outputs_that_are_not_finite_end_the_trial_alone(tmp_path: Path) -> None:
    outcomes = advanced_beside_nan(opened(tmp_path, slots=3, space=NARROW | {"layer_decay": [1.0, 0.8]}))
    assert [type(outcome).__name__ for outcome in outcomes.values()] == ["Evaluation", "DivergedError", "Evaluation"]


# ---------------------------------------------------------------- from the command line


def test_a_study_is_run_exported_and_predicts(
    call: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HPO_STORAGE", raising=False)
    space = {"learning_rate": [3e-3, 1e-3], "batch_size": 8, "epochs": 1}
    (tmp_path / "masks.yaml").write_text(json.dumps(documents.study(tmp_path, trials=2, space=space)))
    with contextlib.chdir(tmp_path):
        code, printed = call("check", "masks.yaml")
        assert code == 0, printed
        assert re.search(r"\d+ of them are masked, others in every step", " ".join(printed.split()))
        code, printed = call("run", "masks.yaml")
        assert code == 0, printed
        assert re.search(r"On \d+ test examples, trial \d scores [\d.]+ \(loss\)", printed)
        assert re.search(r"The model untuned scores [\d.]+ on the same rows", " ".join(printed.split()))
        assert call("export", "masks", "-o", "exported")[0] == 0
        code, printed = call("predict", "exported", "w1 w2 w3 w4 w5 w6 w7 w8 w9 w10", "w3 w4")
        assert code == 0, printed
        rows = [json.loads(line) for line in printed.splitlines()]
        assert [row["tokens"] for row in rows] == [2, 1]
        code, printed = call("check", "masks.yaml", "--set", "space.frozen_layers=1")
        assert code == 2
        assert "is not the same in two steps of masked_lm, whose masks are drawn anew" in " ".join(printed.split())
