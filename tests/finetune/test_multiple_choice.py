"""Multiple choice through every engine: rows of several choices, folded, packed, frozen, with adapters."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import architectures
import choices
import example_loop
import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForMultipleChoice
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

from hpo.finetune.folded import engine, equivalence, program_builder
from hpo.finetune.lora.adapters import Lora
from hpo.finetune.sharded.array import ShardedArray

# The softmax over choices does not depend on the bias of the head, so its gradient is only rounding, as that of the
# biases of keys; AdamW turns it into whole steps.
ROUNDING = ("key.bias", "classifier.bias")

opened = partial(open_array, study=choices.study, space=NARROW)


# ---------------------------------------------------------------- models


HEADS = architectures.heads(AutoModelForMultipleChoice)


def test_encoders_have_a_head_for_multiple_choice() -> None:
    assert {name.rpartition("-")[0] for name in HEADS} == {
        "albert", "bert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlnet",
    }  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_every_model_with_a_head_folds(name: str) -> None:
    kind, config = HEADS[name]
    assert equivalence.check(kind, config) is None
    if "deberta" not in name:  # with adapters it does not fold for classification either
        assert equivalence.check(kind, config, Lora(("all_linear",), 3)) is None


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "electra", "modernbert"])
def test_models_that_pack_for_classification_pack_here(name: str) -> None:
    kind, config = next(head for key, head in HEADS.items() if key.startswith(f"{name}-"))
    assert equivalence.check(kind, config, packed=True) is None


# ---------------------------------------------------------------- folded and separate


@pytest.mark.parametrize("slots", [2, 5])
def test_a_trial_is_to_the_bit_the_same_whatever_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    monkeypatch.setattr(program_builder, "WORTH_PACKING", 10.0)
    first = opened(tmp_path, slots=1)
    assert first.facts["program"] == "packed"
    alone, together = curves(first, TRIALS), curves(opened(tmp_path, slots=slots), TRIALS, order=[4, 2, 0, 1, 3])
    assert [number for number in alone if not same(alone[number], together[number])] == []


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize(
    ("worth", "space"),
    [(10.0, {}), (0.0, {}), (10.0, {"frozen_layers": 1}), (0.0, {"frozen_layers": 1})],
    ids=["packed", "padded", "packed frozen", "padded frozen"],
)
def test_folded_trials_are_separate_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worth: float, space: dict[str, Any]
) -> None:
    """All steps of five trials, clipped, scheduled, smoothed: scores and weights in float64, to 1e-9."""
    monkeypatch.setattr(program_builder, "WORTH_PACKING", worth)
    trials = [{**each, **space} for each in EXACT]
    folded, plain = (opened(tmp_path, space={**NARROW, **space}, **more) for more in ({"slots": 3}, {"fold": False}))
    plain.engine.window = engine.FoldedEngine.window
    assert folded.facts["program"] == ("packed" if worth else "folded")
    assert_separate(curves(folded, trials), curves(plain, trials), ROUNDING)


@pytest.mark.usefixtures("in_float64")
def test_frozen_layers_are_layers_without_a_gradient(tmp_path: Path) -> None:
    trial = {**EXACT[0], "frozen_layers": 1}
    array = opened(tmp_path, fold=False, space=NARROW | {"frozen_layers": 1})
    found = curves(array, [trial])[0]
    whole = opened(tmp_path, fold=False, space=NARROW | {"frozen_layers": [0, 1]})
    whole.setup.split_for = lambda model, split: whole.setup.tokens[split]
    expected = curves(whole, [trial])[0]
    assert [point[2]["loss"] for point in found[:-1]] == pytest.approx([p[2]["loss"] for p in expected[:-1]], rel=1e-9)


def test_adapters_in_several_slots_are_those_of_one(tmp_path: Path) -> None:
    assert_adapters_of_one_slot(partial(opened, tmp_path))


def test_side_by_side_is_one_by_one(tmp_path: Path) -> None:
    assert_side_by_side(partial(opened, tmp_path))


@pytest.mark.parametrize("settings", [{"fold": False}, {"fold": True, "slots": 2}])
def test_a_trial_goes_on_from_its_checkpoint_as_if_it_had_run_through(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert_goes_on_from_its_checkpoint(partial(opened, tmp_path, **settings), {**TRIALS[0], "epochs": 2})


@pytest.mark.parametrize("space", [NARROW, ADAPTERS], ids=["whole", "adapters"])
def test_weights_that_are_written_score_as_in_training(tmp_path: Path, space: dict[str, Any]) -> None:
    array = opened(tmp_path, fold=None, space=space, metric="loss")
    values = [each.value for each in run(array, {"lora_rank": 2} if "lora_rank" in space else {})]
    assert array.save_weights(0, tmp_path / "kept")
    array.unload(0)
    found = array.predictions_of(tmp_path / "kept", "validation")
    assert found.losses.mean() == pytest.approx(min(values), rel=1e-4)


@pytest.mark.slow
def test_a_divided_trial_is_the_trial_of_one_process(tmp_path: Path) -> None:
    overrides = {"fold": False, "metric": "loss"}
    single, sharded = opened(tmp_path, **overrides), opened(tmp_path, **overrides, shards=2, micro_batch=6)
    assert isinstance(sharded, ShardedArray)
    try:
        alone, together = (run(array, {"dropout": 0.0, "epochs": 2}) for array in (single, sharded))
        assert [each.value for each in together] == pytest.approx([each.value for each in alone], abs=1e-5)
    finally:
        sharded.close()


def test_outputs_that_are_not_finite_end_the_trial_alone(tmp_path: Path) -> None:
    outcomes = advanced_beside_nan(opened(tmp_path, slots=3, space=NARROW | {"layer_decay": [1.0, 0.8]}))
    assert [type(outcome).__name__ for outcome in outcomes.values()] == ["Evaluation", "DivergedError", "Evaluation"]


# ---------------------------------------------------------------- learning


def test_a_tiny_model_learns_which_choice_is_right(tmp_path: Path) -> None:
    best = max(each.value for each in run(opened(tmp_path, fold=False), {"epochs": 4, "batch_size": 8}))
    assert best > 0.8  # chance is 0.25


@pytest.mark.usefixtures("in_float64")
def test_a_trial_is_that_of_transformers_example(tmp_path: Path) -> None:
    """Inputs, loss, steps and accuracy as in `run_swag.py`, which pads all choices of a batch to one length."""
    array = opened(tmp_path, fold=False, max_length=16)
    (slot, batches), splits = example_loop.loaded(array), array.setup.data.splits
    model = example_loop.without_dropout(AutoModelForMultipleChoice, tmp_path / "model")
    model.classifier.load_state_dict(slot.model.classifier.state_dict())
    tokenizer = tiny.tokenizer()

    def inputs(rows: Any) -> dict[str, torch.Tensor]:
        firsts = [each.context for each in rows for _ in range(4)]
        seconds = [f"{each.question} {choice}" for each in rows for choice in each.choices]
        flat = tokenizer(firsts, seconds, truncation=True, max_length=16, padding=True,
                         return_tensors="pt")  # fmt: skip
        return {name: values.view(len(rows), 4, -1) for name, values in flat.items()}

    def loss(batch: Any) -> torch.Tensor:
        rows = [splits["train"].examples[row] for row in batch]
        return model(**inputs(rows), labels=torch.tensor([each.label for each in rows])).loss

    example_loop.train(model, batches, loss)
    with torch.no_grad():
        logits = model.eval()(**inputs(splits["validation"].examples)).logits
    expected = np.mean(logits.argmax(dim=1).numpy() == splits["validation"].targets)

    evaluations = [array.advance()[0] for _ in range(2)]
    assert evaluations[-1].last
    assert evaluations[-1].value == pytest.approx(expected)
    example_loop.assert_same_weights(slot, model, ROUNDING)
