from __future__ import annotations

import copy
import itertools

import pytest
import torch
from architectures import ARCHITECTURES, configuration, flat, models, rows
from torch import nn
from transformers import PreTrainedModel

from hpo.core.errors import NotFoldableError
from hpo.finetune.folded.layers import FoldedLinear
from hpo.finetune.folded.model import fold, load_slot, slot_weights


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def folded(alone: list[PreTrainedModel]) -> PreTrainedModel:
    together = fold(alone[0], len(alone))
    for slot, model in enumerate(alone):
        load_slot(together, slot, model.state_dict())
    return together


def run(model: PreTrainedModel, inputs: dict[str, torch.Tensor], slots: int = 1) -> torch.Tensor:
    """Return the logits [K, count, ...] after a backward pass of the sum of the slots' mean squares."""
    logits = model(**inputs).logits
    logits = logits.view(slots, -1, *logits.shape[1:])
    logits.square().flatten(1).mean(1).sum().backward()
    return logits.detach()


def gradients(model: PreTrainedModel, slot: int | None = None) -> dict[str, torch.Tensor]:
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    return found if slot is None else {name: gradient[slot] for name, gradient in found.items()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_three_folded_slots_are_three_models(name, dtype, tolerance):
    alone = models(name, 3, dtype)
    together = folded(alone)
    inputs = rows(alone[0], 3)
    logits = run(together, flat(inputs), 3)
    for slot, model in enumerate(alone):
        wanted = run(model, {key: x[slot] for key, x in inputs.items()})[0]
        assert (logits[slot] - wanted).norm() <= tolerance * wanted.norm()
        assert not torch.allclose(logits[slot], logits[slot - 1])
        wanted, found = gradients(model), gradients(together, slot)
        largest = max(gradient.norm() for gradient in wanted.values())
        for key, gradient in wanted.items():
            # The gradient of key biases is only rounding: they add the same to all scores of a query.
            size = largest if is_key_bias(key) else gradient.norm()
            assert (found[key] - gradient).norm() <= tolerance * size, key


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_autocast_gives_folded_layers_the_types_of_plain_ones(name):
    (model,) = models(name, 1)
    together, inputs = fold(model, 2), flat(rows(model, 2))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        types = [types_of(each, inputs) for each in (model, together)]
    assert types[1].items() <= types[0].items()  # DeBERTa's relative positions do not pass some layers
    assert torch.bfloat16 in types[0].values()


def types_of(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> dict[str, torch.dtype]:
    found = {}

    def record(name):
        def hook(module, inputs, output):
            if isinstance(output, torch.Tensor):
                found[name] = output.dtype

        return hook

    hooks = [module.register_forward_hook(record(name)) for name, module in model.named_modules()]
    model(**inputs)
    for hook in hooks:
        hook.remove()
    return found


def is_key_bias(name: str) -> bool:
    return name.endswith(("key.bias", "k_lin.bias", "key_proj.bias", "k_proj.bias", "attn.k.bias", "pos_key_proj.bias"))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_slot_is_loaded_and_read_to_the_bit(name):
    alone = models(name, 2)
    together = folded(alone)
    for slot, model in enumerate(alone):
        state, found = model.state_dict(), slot_weights(together, slot)
        assert list(found) == list(state)
        assert all(torch.equal(found[key], tensor) for key, tensor in state.items())
    copy.deepcopy(alone[1]).load_state_dict(slot_weights(together, 0))


def test_a_slots_weights_are_views_of_what_trains():
    (model,) = models("bert", 1)
    together = fold(model, 2)
    first, second = slot_weights(together, 0), slot_weights(together, 1)
    with torch.no_grad():
        for p in together.parameters():
            p[1] = 0
    assert not any(second[name].any() for name, _ in model.named_parameters())
    assert all(torch.equal(first[key], tensor) for key, tensor in model.state_dict().items())


def test_folding_leaves_the_model_and_starts_every_slot_from_it():
    (model,) = models("bert", 1)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    together = fold(model, 2)
    with torch.no_grad():
        for p in together.parameters():
            p[0] += 1
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, before[key]) for key, tensor in slot_weights(together, 1).items())
    assert not any(type(module).__module__.startswith("hpo") for module in model.modules())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("classifier.bias"), "weights lack classifier.bias"),
        (lambda state: state.update({"classifier.bias": torch.zeros(1)}), r"classifier.bias is \[3\], not \[1\]"),
    ],
)
def test_weights_that_do_not_fit_a_slot_are_refused(change, message):
    (model,) = models("bert", 1)
    state = model.state_dict()
    change(state)
    with pytest.raises(ValueError, match=message):
        load_slot(fold(model, 2), 0, state)


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("gpt2-causal", "lm_head.weight", "transformer.wte.weight"),
        ("bert-masked", "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("bert-masked", "cls.predictions.decoder.bias", "cls.predictions.bias"),
        ("t5-seq2seq", "encoder.embed_tokens.weight", "shared.weight"),
        ("t5-seq2seq", "lm_head.weight", "decoder.embed_tokens.weight"),
        ("bart-seq2seq", "lm_head.weight", "model.encoder.embed_tokens.weight"),
    ],
)
def test_tied_weights_stay_tied(name, one, other):
    (model,) = models(name, 1)
    together = fold(model, 2)
    assert model.get_parameter(one) is model.get_parameter(other)
    assert together.get_parameter(one) is together.get_parameter(other)
    assert len(list(together.parameters())) == len(list(model.parameters()))


def test_alberts_layers_stay_one():
    (model,) = models("albert", 1)
    names = [name for name, _ in fold(model, 2).named_parameters() if "query.weight" in name]
    assert names == ["albert.encoder.albert_layer_groups.0.albert_layers.0.attention.query.weight"]


def test_frozen_parameters_stay_frozen():
    (model,) = models("bert", 1)
    model.bert.embeddings.requires_grad_(False)
    frozen = {name for name, p in fold(model, 2).named_parameters() if not p.requires_grad}
    assert frozen == {name for name, p in model.named_parameters() if name.startswith("bert.embeddings.")}


# ---------------------------------------------------------------- modules


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(32, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.table


class Sorted(nn.Module):
    """Owns a vector, but computes over its first dimension, which is that of the slots when folded."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight.sort().values.flip(0).cumsum(0)


class Scaled(nn.Linear):
    """A subclass of a known layer that does not call it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input @ self.weight


class Halved(nn.Linear):
    """A subclass of a known layer that calls it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) / 2


class ScaleAndShift(nn.Module):
    """An unknown layer with vectors only."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(32)), nn.Parameter(torch.zeros(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (1 + self.scale) + self.shift


@pytest.mark.parametrize("kind", [Gate, Sorted, lambda: Scaled(32, 32), lambda: nn.Embedding(5, 2, max_norm=1.0)])
def test_modules_that_cannot_fold_are_named_and_counted(kind):
    (model,) = models("bert", 1)
    for layer in model.bert.encoder.layer:
        layer.output.dropout = kind()
    first = rf"BertFor.*: bert.encoder.layer.0.output.dropout \({type(kind()).__name__}\) and 1 more"
    with pytest.raises(NotFoldableError, match=first):
        fold(model, 2)


@pytest.mark.parametrize("kind", [ScaleAndShift, lambda: Halved(32, 32)])
def test_unknown_layers_fold_where_their_own_code_does(kind):
    (model,) = models("bert", 1)
    model.bert.encoder.layer[0].output.dropout = kind()
    alone = [model, copy.deepcopy(model)]
    with torch.no_grad():
        for number, each in enumerate(alone):
            for p in each.bert.encoder.layer[0].output.dropout.parameters():
                p.add_(0.3 * number + 0.1)
    inputs = rows(model, 2)
    logits = run(folded(alone), flat(inputs), 2)
    for slot, each in enumerate(alone):
        wanted = run(each, {key: x[slot] for key, x in inputs.items()})[0]
        torch.testing.assert_close(logits[slot], wanted, rtol=1e-5, atol=1e-6)


def test_packed_tokens_are_multiplied_with_their_slots_weights():
    alone = models("gemma", 3)
    together = folded(alone)
    x, ids = torch.randn(3, 7, 32), torch.randint(5, 100, (3, 7))
    for name in ("model.layers.0.self_attn.q_proj", "model.norm"):
        found = together.get_submodule(name)(x)
        for slot, model in enumerate(alone):
            torch.testing.assert_close(found[slot], model.get_submodule(name)(x[slot]), rtol=1e-5, atol=1e-6)
    found = together.model.embed_tokens(ids)
    assert all(torch.equal(found[slot], model.model.embed_tokens(ids[slot])) for slot, model in enumerate(alone))


def test_rows_without_padding_pool_their_last_token():
    alone = models("gpt2", 2)
    inputs = rows(alone[0], 2)
    inputs["input_ids"][inputs["input_ids"] == 0] = 7
    logits = run(folded(alone), flat(inputs), 2)
    for slot, model in enumerate(alone):
        wanted = run(model, {key: x[slot] for key, x in inputs.items()})[0]
        torch.testing.assert_close(logits[slot], wanted, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- bits

WIDE = {
    "bert": {"hidden_size": 64, "intermediate_size": 192},
    "deberta-v3": {"hidden_size": 64, "intermediate_size": 192},
    "gpt2": {"n_embd": 64},
    "llama": {"hidden_size": 64, "intermediate_size": 192},
    "modernbert": {"hidden_size": 64, "intermediate_size": 192},
    "mpnet": {"hidden_size": 64, "intermediate_size": 192},
    "bart": {"d_model": 64},
    "t5": {"d_model": 64, "d_ff": 192},
    "xlnet": {"d_model": 64, "d_inner": 192},
}


def same_bits(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> list[str]:
    return [key for key, tensor in wanted.items() if not torch.equal(found[key], tensor)]


# With attention that is not fused: on a CPU the softmax's backward depends on the threads at odd lengths.
WRITTEN_OUT = {"deberta-v3", "mpnet", "t5", "xlnet"}


@pytest.mark.bits
@pytest.mark.parametrize("name", WIDE)
def test_a_slots_bits_do_not_depend_on_slots_neighbours_or_threads(name):
    alone = models(name, 4, **WIDE[name])
    inputs = rows(alone[0], 4, count=8, length=33)
    wanted: dict[object, dict[str, torch.Tensor]] = {}
    for threads, order in itertools.product((1, 2), [(0,), (1, 0), (2, 1, 3, 0)]):
        torch.set_num_threads(threads)
        together = folded([alone[k] for k in order])
        logits = run(together, flat({key: x[list(order)] for key, x in inputs.items()}), len(order))
        for slot, trial in enumerate(order):
            found = {"logits": logits[slot], **gradients(together, slot)}
            which = (trial, threads) if name in WRITTEN_OUT else trial
            assert same_bits(found, wanted.setdefault(which, found)) == [], (threads, order, slot)


@pytest.mark.bits
@pytest.mark.parametrize("name", WIDE)
def test_a_slot_of_nans_leaves_the_others_bits(name):
    alone = models(name, 3)
    inputs = flat(rows(alone[0], 3))
    clean, broken = folded(alone), folded(alone)
    with torch.no_grad():
        for p in broken.parameters():
            p[1] = float("nan")
    wanted, found = run(clean, inputs, 3), run(broken, inputs, 3)
    assert found[1].isnan().all()
    for slot in (0, 2):
        assert torch.equal(found[slot], wanted[slot])
        assert same_bits(gradients(broken, slot), gradients(clean, slot)) == []


def test_every_architecture_of_the_list_is_here():
    kinds = {configuration(name)[1].model_type for name in ARCHITECTURES}
    assert kinds >= {"bert", "roberta", "distilbert", "albert", "electra", "mpnet", "deberta-v2", "modernbert", "xlnet"}
    assert kinds >= {"gpt2", "llama", "qwen2", "qwen3", "t5", "bart"}


@pytest.mark.bits
@pytest.mark.parametrize(("count", "inputs", "outputs"), [(132, 1536, 384), (200, 3072, 768), (384, 384, 1536)])
def test_wide_layers_have_the_same_bits_however_many_slots_and_threads(count, inputs, outputs):
    """With two threads a batched matmul of one matrix is summed in another order than one of several."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, count, inputs, generator=generator), torch.randn(3, outputs, inputs, generator=generator)
    threads, found = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        for slots in (1, 2, 3):
            layer = FoldedLinear(inputs, outputs)
            layer.weight, layer.bias = nn.Parameter(weight[:slots].clone()), nn.Parameter(weight[:slots, :, 0].clone())
            rows = x[:slots].flatten(0, 1).requires_grad_()
            y = layer(rows)
            y.square().sum().backward()
            found.append((y[:count], rows.grad[:count], layer.weight.grad[0], layer.bias.grad[0]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for some in found[1:] for one, other in zip(found[0], some, strict=True))
