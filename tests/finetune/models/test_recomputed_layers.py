"""Gradient checkpointing: the same gradients from fewer activations."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import tape
import tiny
import torch
from architectures import flat, models, rows
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel
from trials import MIXED, curves, open_array, same

from hpo.core.errors import ModelError
from hpo.finetune.folded import packing, program_builder
from hpo.finetune.folded import program as folded_program
from hpo.finetune.folded.model import fold
from hpo.finetune.models import dropout, loading, output_check, recomputed_layers

COMPUTED_AGAIN = [
    *("bart", "bart-seq2seq", "bert", "bert-masked", "deberta-v2", "deberta-v3", "distilbert", "electra", "gemma"),
    *("encoder-decoder", "gpt2", "gpt2-causal", "gpt-neox-causal", "llama", "llama-causal", "marian", "modernbert"),
    *("opt-causal", "qwen3", "roberta", "t5", "t5-seq2seq", "t5-untied"),
]


def passed(model: PreTrainedModel, inputs: dict[str, torch.Tensor], keys: list[int]) -> tuple[dict[str, Any], int]:
    """Return the gradients of a pass with dropout, and the bytes that were kept for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.zero_grad()
    with (
        dropout.OwnFunction(),
        dropout.drawing_from(torch.tensor(keys)),
        saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        outputs = output_check.logits_of(model.train()(**inputs))
        loss = torch.stack([output.square().sum() for output in outputs.values()]).sum()
    # As on CUDA, where another thread runs the backward pass.
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    for parameter in model.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    return gradients, sum(kept.values())


@pytest.mark.parametrize("slots", [0, 2], ids=["plain", "folded"])
@pytest.mark.parametrize("name", COMPUTED_AGAIN)
def test_gradients_are_the_same_and_fewer_activations_are_kept(name: str, slots: int) -> None:
    (model,) = models(name, 1, torch.float64)
    inputs = rows(model, max(1, slots))
    loading.attend(model)
    dropout.install(model)
    with dropout.everywhere(model, 0.1):
        if slots:
            folded = fold(model, slots)
            for slot in range(slots):
                dropout.set_rates(folded, slot, slots, model)
            model = folded
        expected, all_kept = passed(model, flat(inputs), [5, 7][: max(1, slots)])
        recomputed_layers.install(model, own_masks=True)
        found, kept = passed(model, flat(inputs), [5, 7][: max(1, slots)])
    assert expected
    assert expected.keys() == found.keys()
    assert [each for each in expected if not torch.equal(expected[each], found[each])] == []
    assert kept < 0.75 * all_kept


@pytest.mark.parametrize("name", ["albert", "mpnet", "xlnet"])
def test_a_model_without_such_layers_is_refused(name: str) -> None:
    (model,) = models(name, 1)
    with pytest.raises(ModelError, match=f"can compute no layers of {type(model).__name__} again in the backward pass"):
        recomputed_layers.install(model, own_masks=True)


@pytest.mark.parametrize("worth", [10.0, 0.0], ids=["packed", "padded"])
@pytest.mark.parametrize(
    "changes",
    [
        {"fold": False, "slots": 1},
        {"fold": False, "slots": 2, "threads": 2},
        {"slots": 2},
        {"fold": False, "precision": "bf16"},
        {"slots": 2, "precision": "bf16"},
        {"fold": False, "micro_batch": 3},
    ],
    ids=["plain", "side by side", "folded", "plain bf16", "folded bf16", "accumulated"],
)
def test_trials_get_the_same_weights(
    changes: dict[str, Any], worth: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program_builder, "WORTH_PACKING", worth)
    trials = [{**each, "epochs": 1} for each in MIXED[:3]]
    expected = curves(open_array(tmp_path, **changes), trials)
    found = curves(open_array(tmp_path, gradient_checkpointing=True, **changes), trials)
    assert [number for number in expected if not same(expected[number], found[number])] == []


@pytest.mark.parametrize("more", [{"lora_rank": 2}, {"frozen_layers": 1}], ids=["adapters", "frozen"])
@pytest.mark.parametrize("kind", ["bert", "bart", "gpt2"])
def test_adapters_and_layers_above_frozen_ones_get_the_same_weights(
    kind: str, more: dict[str, Any], tmp_path: Path
) -> None:
    if (kind, *more) == ("bart", "frozen_layers"):
        pytest.skip("the layers of BART cannot be frozen")
    tiny.save_model(tmp_path / "model", kind)
    space = {"learning_rate": {"low": 1e-4, "high": 1e-2}, "batch_size": [8, 16], "epochs": 1, **more}
    trials = [{**each, "epochs": 1, "batch_size": 8, "layer_decay": 1.0, **more} for each in MIXED[:2]]
    changes = {"slots": 2, "space": space, "fold": None if "lora_rank" in more else True}
    expected = curves(open_array(tmp_path, **changes), trials)
    found = curves(open_array(tmp_path, gradient_checkpointing=True, **changes), trials)
    assert [number for number in expected if not same(expected[number], found[number])] == []


def test_masks_from_the_global_generator_are_the_same_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpo.finetune.models.dropout.install", lambda model: None)
    monkeypatch.setattr("hpo.finetune.models.dropout.OwnFunction", nullcontext)
    trials = [{**each, "epochs": 1, "dropout": 0.3} for each in MIXED[:2]]
    array = open_array(tmp_path, fold=False)
    assert not array.setup.own_masks
    expected = curves(array, trials)
    found = curves(open_array(tmp_path, fold=False, gradient_checkpointing=True), trials)
    assert [number for number in expected if not same(expected[number], found[number])] == []


@pytest.mark.parametrize("worth", [10.0, 0.0], ids=["packed", "padded"])
def test_a_recorded_program_computes_layers_again(
    worth: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program_builder, "WORTH_PACKING", worth)
    trials = [{**each, "epochs": 1} for each in MIXED]
    expected = curves(open_array(tmp_path, slots=2), trials)
    monkeypatch.setattr(folded_program, "Replay", tape.Taped)
    monkeypatch.setattr(tape.Taped, "replayed", 0)
    found = curves(open_array(tmp_path, slots=2, gradient_checkpointing=True), trials)
    assert tape.Taped.replayed > 10
    assert [number for number in expected if not same(expected[number], found[number])] == []


def test_a_pass_after_a_repetition_draws_and_packs_as_before() -> None:
    with dropout.drawing_from(torch.tensor([3])):
        dropout.drop(torch.ones(8), 0.5)
        again = recomputed_layers._AsNow()
        wanted = dropout.drop(torch.ones(8), 0.5)
    before = dropout.drawing()
    for _ in range(2):  # a graph that is kept may be run back twice
        with again:
            assert torch.equal(dropout.drop(torch.ones(8), 0.5), wanted)
    assert dropout.drawing() == before
    assert packing.current() is None
