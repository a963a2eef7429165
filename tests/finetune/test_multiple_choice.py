"""Multiple choice through every engine: rows of several choices, folded, packed, frozen, with adapters."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import choices
import numpy as np
import pytest
import tiny
import torch
from architectures import ARCHITECTURES
from transformers import AutoConfig, AutoModelForMultipleChoice, get_linear_schedule_with_warmup
from trials import (
    ADAPTERS,
    EXACT,
    NARROW,
    TRIALS,
    advanced_beside_nan,
    assert_adapters_of_one_slot,
    assert_separate,
    curves,
    run,
    same,
)

from hpo.config import study_spec
from hpo.core.trainer import TrialSpec
from hpo.execution import trial_arrays
from hpo.finetune import trial_start
from hpo.finetune.folded import engine, equivalence, program_builder
from hpo.finetune.lora.adapters import Lora
from hpo.finetune.sharded.array import ShardedArray

# The softmax over choices does not depend on the bias of the head, so its gradient is only rounding, as that of the
# biases of keys; AdamW turns it into whole steps.
ROUNDING = ("key.bias", "classifier.bias")


def opened(folder: Path, **overrides: Any) -> Any:
    raw = choices.study(folder, **{"fold": True, "space": NARROW, **overrides})
    return trial_arrays.open_array(study_spec.build(raw, "test", folder))


# ---------------------------------------------------------------- models


def heads() -> dict[str, tuple[type, Any]]:
    """Return every architecture of the tests that has a head for multiple choice, and its configuration."""
    found: dict[str, tuple[type, Any]] = {}
    for kind, _, settings in ARCHITECTURES.values():
        config = AutoConfig.for_model(kind, **settings)
        if type(config) in AutoModelForMultipleChoice._model_mapping:
            found[f"{kind}-{len(settings)}"] = AutoModelForMultipleChoice._model_mapping[type(config)], config
    return found


HEADS = heads()


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
    alone = curves(opened(tmp_path, fold=False), TRIALS[:3])
    together = curves(opened(tmp_path, fold=False, slots=2, threads=2), TRIALS[:3])
    assert all(same(alone[number], together[number]) for number in alone)


@pytest.mark.parametrize("fold", [True, False])
def test_a_trial_goes_on_from_its_checkpoint_as_if_it_had_run_through(tmp_path: Path, fold: bool) -> None:
    params = {**TRIALS[0], "epochs": 2}
    through = run(opened(tmp_path, fold=fold), params)
    array = opened(tmp_path, fold=fold)
    array.load(0, TrialSpec(0, params, 1))
    first = array.advance()[0]
    checkpoint = array.save(0)
    array.unload(0)
    array.load(0, TrialSpec(0, params, 1, checkpoint))
    assert [each.metrics for each in through] == [first.metrics, array.advance()[0].metrics]


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
    params = {"learning_rate": 2e-3, "epochs": 2, "batch_size": 16, "dropout": 0.0, "weight_decay": 0.0}
    params |= {"warmup_ratio": 0.0, "schedule": "linear", "max_grad_norm": 1e9}
    array = opened(tmp_path, fold=False, max_length=16)
    array.load(0, TrialSpec(0, params, 1))
    slot, splits = array.engine.occupied[0], array.setup.data.splits
    batches = list(trial_start.batches(array.setup, slot, array.engine.window))

    model = AutoModelForMultipleChoice.from_pretrained(tmp_path / "model", dtype=torch.float64).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.classifier.load_state_dict(slot.model.classifier.state_dict())
    tokenizer = tiny.tokenizer()

    def inputs(examples: Any) -> dict[str, torch.Tensor]:
        firsts = [each.context for each in examples for _ in range(4)]
        seconds = [f"{each.question} {choice}" for each in examples for choice in each.choices]
        flat = tokenizer(firsts, seconds, truncation=True, max_length=16, padding=True,
                         return_tensors="pt")  # fmt: skip
        return {name: values.view(len(examples), 4, -1) for name, values in flat.items()}

    optimizer = torch.optim.AdamW(model.parameters(), lr=params["learning_rate"], weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, len(batches))
    for batch in batches:
        examples = [splits["train"].examples[row] for row in batch]
        model(**inputs(examples), labels=torch.tensor([each.label for each in examples])).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    examples = splits["validation"].examples
    with torch.no_grad():
        logits = model.eval()(**inputs(examples)).logits
    expected = np.mean(logits.argmax(dim=1).numpy() == splits["validation"].targets)

    evaluations = [array.advance()[0] for _ in range(2)]
    assert evaluations[-1].last
    assert evaluations[-1].value == pytest.approx(expected)
    for name, weight in slot.model.state_dict().items():
        if "word_embeddings" not in name and not name.endswith(ROUNDING):  # the study's table has fewer rows
            torch.testing.assert_close(weight, model.state_dict()[name], rtol=1e-6, atol=1e-8)
