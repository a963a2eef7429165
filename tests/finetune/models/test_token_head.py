"""Scores of tokens that are computed chunk by chunk: equal to those of all logits, in value and gradient."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import architectures
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from hpo.finetune.folded import packing
from hpo.finetune.folded.model import fold, load_slot
from hpo.finetune.lora.adapters import Lora
from hpo.finetune.models import token_head
from hpo.tasks.language import scores
from hpo.tasks.rows import IGNORED

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-9}


def head_of(vocabulary: int, width: int, dtype: torch.dtype, bias: bool, trained: bool) -> token_head.TokenHead:
    """Return a head with random weights."""
    layer = nn.Linear(width, vocabulary, bias=bias, dtype=dtype).requires_grad_(trained)
    layer.__class__ = token_head.TokenHead
    layer.register_buffer("logits_bias", None)
    return layer


def labels_of(rows: int, tokens: int, vocabulary: int, share: float) -> torch.Tensor:
    """Return random labels, of which a share is ignored."""
    labels = torch.randint(vocabulary, (rows, tokens))
    return labels.masked_fill(torch.rand(rows, tokens) < share, IGNORED)


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> bool:
    return bool((found - wanted).norm() <= tolerance * wanted.norm() + 1e-12)


@given(
    vocabulary=st.integers(2, 40),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 7)),
    chunk=st.integers(1, 300),
    ignored=st.sampled_from([0.0, 0.5, 1.0]),
    smoothing=st.sampled_from([0.0, 0.1, "tensor"]),
    trained=st.booleans(),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_losses_and_gradients_are_those_of_cross_entropy(
    vocabulary, shape, chunk, ignored, smoothing, trained, bias, dtype, seed
):
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_head, "CHUNK", chunk)
        torch.manual_seed(seed)
        head = head_of(vocabulary, 8, dtype, bias, trained)
        hidden = torch.randn(*shape, 8, dtype=dtype, requires_grad=True)
        labels = labels_of(*shape, vocabulary, ignored)
        share = torch.rand(len(labels), dtype=dtype) if smoothing == "tensor" else smoothing
        with token_head._given(labels):
            found = head(hidden)
        logits = F.linear(hidden, head.weight, head.bias)
        flat = logits.flatten(0, 1), labels.flatten()
        own = F.cross_entropy(*flat, reduction="none").view(shape)
        smoothed = F.cross_entropy(*flat, reduction="none", label_smoothing=1.0).view(shape)
        weight = torch.rand(len(labels), dtype=dtype)
        wanted = ((1 - share) * own.sum(1) + share * smoothed.sum(1)) @ weight
        loss = scores.losses(found, share) @ weight
    tolerance = TOLERANCE[dtype]
    assert close(loss, wanted, tolerance)
    assert torch.equal(found[..., 2].bool(), (logits.argmax(-1) == labels))
    assert not found[labels == IGNORED].any()
    taken = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    for one, other in zip(torch.autograd.grad(loss, taken), torch.autograd.grad(wanted, taken), strict=True):
        assert one.dtype == other.dtype
        assert (one - other).norm() <= 4 * tolerance * max(other.norm(), 1.0)


@pytest.mark.parametrize("trained", [True, False])
def test_products_are_in_bf16_under_autocast_and_scores_in_float32(trained):
    torch.manual_seed(0)
    head, labels = head_of(300, 16, torch.float32, True, trained), labels_of(2, 5, 300, 0.3)
    hidden = torch.randn(2, 5, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        with token_head._given(labels):
            found = head(hidden)
        logits = head(hidden)
    assert (found.dtype, logits.dtype) == (torch.float32, torch.bfloat16)
    wanted = token_head.scores_of(logits.float(), labels)
    assert torch.equal(found, wanted)
    taken = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    for column in (0, 1):
        pairs = [torch.autograd.grad(x[..., column].sum(), taken, retain_graph=True) for x in (found, wanted)]
        for one, other in zip(*pairs, strict=True):
            assert one.dtype == torch.float32
            assert close(one, other, 2e-2)  # the other rounds sums over the vocabulary twice


def test_a_confident_token_keeps_its_gradient_in_bf16():
    """Its gradient is the small difference of p W and W[y], which must not be rounded apart."""
    head = head_of(50, 16, torch.float32, False, False)
    hidden = (8 * head.weight[7] / head.weight[7].norm() ** 2).view(1, 1, -1).requires_grad_()
    exact = torch.autograd.grad(F.cross_entropy(head(hidden).view(1, -1), torch.tensor([7])), hidden)[0]
    with torch.autocast("cpu", torch.bfloat16), token_head._given(torch.tensor([[7]])):
        found = torch.autograd.grad(head(hidden)[..., 0].sum(), hidden)[0]
    assert close(found, exact, 5e-2)


# ---------------------------------------------------------------- models


LANGUAGE = [name for name, (_, task, _) in architectures.ARCHITECTURES.items() if task is not architectures.CLASSIFY]
TASK: Any = SimpleNamespace(emits_tokens=True, outputs=lambda result: (result.logits,))


def labelled(model: nn.Module, slots: int, seed: int = 0) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return rows for several slots and labels at real positions, half of them."""
    inputs = architectures.rows(model, slots, seed=seed)
    like = inputs.get("decoder_input_ids", inputs["input_ids"])
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(100, like.shape, generator=generator)
    labels[torch.rand(like.shape, generator=generator) < 0.5] = IGNORED
    if "decoder_input_ids" not in inputs:
        labels[inputs["attention_mask"] == 0] = IGNORED
    return inputs, labels


def trained_grads(loss: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", LANGUAGE)
def test_the_scores_of_models_are_those_of_their_logits(name, monkeypatch):
    monkeypatch.setattr(token_head, "CHUNK", 700)  # seven tokens
    (model,) = architectures.models(name, 1, torch.float64)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_()
    published = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    plain = copy.deepcopy(model)
    assert token_head.install(model)
    inputs, labels = labelled(model, 1)
    rows, labels = architectures.flat(inputs), labels.flatten(0, 1)
    (found,) = token_head.outputs(TASK, model, rows, {"labels": labels})
    wanted = token_head.scores_of(plain(**rows).logits, labels)
    assert close(found, wanted, 1e-9)
    for column in (0, 1):
        one = trained_grads(token_head.outputs(TASK, model, rows, {"labels": labels})[0][..., column].sum(), model)
        other = trained_grads(token_head.scores_of(plain(**rows).logits, labels)[..., column].sum(), plain)
        assert one.keys() == other.keys()
        largest = max(gradient.norm() for gradient in other.values())
        assert all((one[key] - gradient).norm() <= 1e-9 * largest for key, gradient in other.items())
    assert torch.equal(model(**rows).logits, plain(**rows).logits)  # without labels it is as published
    assert type(model).__name__ == type(plain).__name__
    state = model.state_dict()
    assert list(state) == list(published)
    assert all(torch.equal(state[key], tensor) for key, tensor in published.items())


_SIZES = architectures.ARCHITECTURES["llama-causal"][2]
CHANGED: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 30.0},
    "cohere": {"logit_scale": 0.0625},
    "granite": {"logits_scaling": 8.0},
}
"""Models that change the logits after their projection, with published values."""


@pytest.mark.parametrize("kind", CHANGED)
def test_models_that_change_their_logits_keep_their_head_and_their_loss(kind):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **_SIZES, **CHANGED[kind])
    model = AutoModelForCausalLM.from_config(config).double().eval()
    attend(model)
    plain = copy.deepcopy(model)
    assert not token_head.install(model)
    assert type(model.get_output_embeddings()) is nn.Linear
    inputs, labels = labelled(model, 1)
    rows = architectures.flat(inputs)
    targets = labels.flatten(0, 1)
    targets[:, -1] = IGNORED  # nothing follows it
    (found,) = token_head.outputs(TASK, model, rows, {"labels": targets})
    shifted = torch.cat([torch.full_like(targets[:, :1], IGNORED), targets[:, :-1]], dim=1)
    published = plain(**rows, labels=shifted).loss  # in float32
    assert found[..., 0].sum().item() / (targets != IGNORED).sum().item() == pytest.approx(published.item(), rel=1e-6)
    wanted = F.cross_entropy(plain(**rows).logits.flatten(0, 1), targets.flatten(), reduction="sum")
    one, other = trained_grads(found[..., 0].sum(), model), trained_grads(wanted, plain)
    largest = max(gradient.norm() for gradient in other.values())
    assert all((one[key] - gradient).norm() <= 1e-9 * largest for key, gradient in other.items())


@pytest.mark.parametrize("kind", ["cohere", "granite"])
def test_the_scores_of_changed_logits_fold(kind, monkeypatch):
    name = f"{kind}-causal"
    settings = (kind, AutoModelForCausalLM, _SIZES | CHANGED[kind])
    monkeypatch.setitem(architectures.ARCHITECTURES, name, settings)
    alone = architectures.models(name, 2, torch.float64)
    together = fold(alone[0], 2)
    for slot, model in enumerate(alone):
        load_slot(together, slot, model.state_dict())
    inputs, labels = labelled(alone[0], 2)
    (found,) = token_head.outputs(TASK, together, architectures.flat(inputs), {"labels": labels.flatten(0, 1)})
    found = found.view(2, *labels.shape[1:], 3)
    for slot, model in enumerate(alone):
        rows = {key: value[slot] for key, value in inputs.items()}
        (own,) = token_head.outputs(TASK, model, rows, {"labels": labels[slot]})
        assert close(found[slot], own, 1e-9)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", LANGUAGE)
def test_the_scores_of_folded_slots_are_those_of_separate_models(name, lora, monkeypatch):
    monkeypatch.setattr(token_head, "CHUNK", 700)
    alone = architectures.models(name, 1 if lora else 3, torch.float64)
    if lora:
        alone = with_adapters(alone[0], 3)
    for model in alone:
        assert token_head.install(model)
    together = fold(alone[0], 3)
    for slot, model in enumerate(alone):
        load_slot(together, slot, model.state_dict())
    inputs, labels = labelled(alone[0], 3)
    (found,) = token_head.outputs(TASK, together, architectures.flat(inputs), {"labels": labels.flatten(0, 1)})
    found = found.view(3, *labels.shape[1:], 3)
    weight = torch.tensor([0.9, 0.1, 0.0], dtype=torch.float64)
    folded = trained_grads((found @ weight).sum(), together)
    for slot, model in enumerate(alone):
        rows = {key: value[slot] for key, value in inputs.items()}
        model = fold(model, 1) if lora else model
        (own,) = token_head.outputs(TASK, model, rows, {"labels": labels[slot]})
        assert close(found[slot], own, 1e-9)
        gradients = trained_grads((own @ weight).sum(), model)
        assert gradients.keys() == folded.keys()
        largest = max(gradient.norm() for gradient in gradients.values())
        for key, gradient in gradients.items():
            assert (folded[key][slot].view_as(gradient) - gradient).norm() <= 1e-9 * largest, key


def with_adapters(model: nn.Module, count: int) -> list[nn.Module]:
    """Return models with one base and different adapters."""
    lora = Lora(("all_linear",), 2)
    lora.install(model)
    assert not hasattr(model.get_output_embeddings(), "adapter")
    found = [copy.deepcopy(model) for _ in range(count)]
    for each in found:
        for key, parameter in each.named_parameters():
            if "adapter" in key:
                nn.init.normal_(parameter, std=0.3)
    return found


PACKS = ["gpt2-causal", "llama-causal", "qwen3-causal", "gpt-neox-causal", "bert-masked"]


@pytest.mark.parametrize("on_cpu", [True, False], ids=["trained", "all"])
@pytest.mark.parametrize("name", PACKS)
def test_packed_scores_are_those_of_padded_rows(name, on_cpu, monkeypatch):
    """On a CPU of trained tokens; elsewhere of all tokens of the line."""
    (model,) = architectures.models(name, 1, torch.float64)
    attend(model)
    token_head.install(model)
    inputs, labels = labelled(model, 2)
    lengths = inputs["attention_mask"].sum(-1)
    together = fold(model, 2)
    assert packing.install(together, 0)
    line = packing.Packing(lengths, int(lengths.sum(1).max()) + 2, inputs["input_ids"].shape[-1])
    rows, targets = architectures.flat(inputs), {"labels": labels.flatten(0, 1)}
    (padded,) = token_head.outputs(TASK, together, rows, targets)
    wanted = trained_grads(padded[..., :2].sum(), together)
    monkeypatch.setattr(token_head, "_only_trained", lambda x: on_cpu)
    with packing.packed(line):
        (packed,) = token_head.outputs(TASK, together, rows, targets)
    assert close(packed, padded, 1e-9)
    found = trained_grads(packed[..., :2].sum(), together)
    largest = max(gradient.norm() for gradient in wanted.values())
    assert all((found[key] - gradient).norm() <= 1e-9 * largest for key, gradient in wanted.items())


def attend(model: nn.Module) -> None:
    from hpo.finetune.models.loading import attend as own

    own(model)
