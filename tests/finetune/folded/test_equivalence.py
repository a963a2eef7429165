from __future__ import annotations

import pytest
import torch
from architectures import ARCHITECTURES, configuration
from torch import nn
from transformers import AutoConfig, BertForSequenceClassification

from hpo.finetune.folded import equivalence
from hpo.finetune.folded import layers as folded_layers
from hpo.finetune.folded.equivalence import check
from hpo.finetune.folded.layers import FoldedEmbedding, FoldedLayerNorm
from hpo.finetune.lora.adapters import Lora


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    monkeypatch.setattr(equivalence, "_known", {})
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def checked(name: str, **changes) -> str | None:
    task, config = configuration(name, **changes)
    return check(task._model_mapping[type(config)], config)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_models_that_fold_pass(name):
    assert checked(name) is None


@pytest.mark.parametrize("lora", [None, Lora(("all_linear",), 3)])
@pytest.mark.parametrize("name", ["bert", "gpt2", "modernbert", "qwen3", "xlnet"])
def test_models_that_fold_pass_with_one_product_for_all_slots_as_on_a_gpu(name, lora, monkeypatch):
    monkeypatch.setattr(folded_layers, "_one_by_one", lambda x: False)
    monkeypatch.setattr(folded_layers, "_product", None)
    task, config = configuration(name)
    assert check(task._model_mapping[type(config)], config, lora) is None


def test_the_copy_has_two_layers_and_few_tokens():
    task, config = configuration("modernbert", num_hidden_layers=9, vocab_size=50000, eos_token_id=40000)
    small = equivalence._cut(config)
    assert (small.num_hidden_layers, len(small.layer_types), small.vocab_size) == (2, 2, 36)
    assert (small.eos_token_id, small.pad_token_id) == (3, 0)
    assert (config.num_hidden_layers, config.vocab_size, config.eos_token_id) == (9, 50000, 40000)
    assert check(task._model_mapping[type(config)], config) is None


def test_equal_configurations_are_checked_once(monkeypatch):
    calls = []
    monkeypatch.setattr(equivalence, "_difference", lambda kind, *_: calls.append(kind))
    for layers, labels, width in [(2, 3, 32), (5, 3, 32), (5, 3, 64)]:
        config = AutoConfig.for_model("bert", num_hidden_layers=layers, num_labels=labels, hidden_size=width)
        check(BertForSequenceClassification, config)
    assert len(calls) == 2


def test_the_check_draws_nothing_from_the_callers_generator():
    torch.manual_seed(1)
    wanted = torch.rand(1)
    torch.manual_seed(1)
    checked("bert")
    assert torch.equal(torch.rand(1), wanted)


def test_a_module_that_cannot_fold_is_named():
    config = AutoConfig.for_model("squeezebert", hidden_size=32, embedding_size=32, num_attention_heads=4)
    kind = configuration("bert")[0]._model_mapping[type(config)]
    assert "transformer.encoder.layers.0.attention.query (Conv1d) and 15 more" in str(check(kind, config))


# ---------------------------------------------------------------- wrong foldings


def _slots_turned(x, weight, bias):
    return x.new_zeros(*x.shape[:-1], weight.shape[-1]) + _affine(x, weight.flip(0), bias)


def _without_bias(x, weight, bias):
    return _affine(x, weight, None)


_affine = folded_layers._affine


@pytest.mark.parametrize("wrong", [_slots_turned, _without_bias])
def test_a_wrong_matmul_is_caught(monkeypatch, wrong):
    monkeypatch.setattr(folded_layers, "_affine", wrong)
    assert "the output of bert.encoder.layer.0.attention.self.query (FoldedLinear)" in str(checked("bert"))


def test_a_wrong_epsilon_is_caught(monkeypatch):
    forward = FoldedLayerNorm.forward

    def wrong(self, x):
        eps, self.eps = self.eps, 1e-5  # instead of 1e-12
        y = forward(self, x)
        self.eps = eps
        return y

    monkeypatch.setattr(FoldedLayerNorm, "forward", wrong)
    assert "the output of bert.embeddings.LayerNorm (FoldedLayerNorm)" in str(checked("bert"))


def test_a_wrong_gradient_is_caught(monkeypatch):
    def everywhere(self, ids):
        return folded_layers._Lookup.apply(self.weight, ids, None)  # padding gets a gradient

    monkeypatch.setattr(FoldedEmbedding, "_look_up", everywhere)
    assert "the gradient of bert.embeddings.word_embeddings.weight" in str(checked("bert-masked"))


def test_shared_positions_added_to_the_wrong_rows_are_caught(monkeypatch):
    monkeypatch.setattr(folded_layers, "_SUMS", set())
    assert "BertForSequenceClassification does not run with two trials" in str(checked("bert"))


def test_code_that_mixes_rows_is_caught(monkeypatch):
    class Mixing(nn.Dropout):
        def forward(self, input):
            return input + input.mean(0, keepdim=True)

    class Bert(BertForSequenceClassification):
        def __init__(self, config):
            super().__init__(config)
            self.dropout = Mixing()

    assert "the output of dropout (Mixing) of two folded trials differs" in str(check(Bert, configuration("bert")[1]))
