import copy

import architectures
import pytest
import torch

from hpo.core.errors import ModelError
from hpo.finetune.models import frozen, output_check

FAMILIES = ["bert", "roberta", "electra", "distilbert", "deberta-v2", "deberta-v3", "modernbert", "mpnet", "qwen3"]
APART = ["albert", "bart", "t5", "xlnet"]
BELOW = {  # prefixes of what is frozen with the first layer
    "bert": ("bert.embeddings.", "bert.encoder.layer.0."),
    "electra": ("electra.embeddings.", "electra.embeddings_project.", "electra.encoder.layer.0."),
    "deberta-v3": (
        "deberta.embeddings.",
        "deberta.encoder.layer.0.",
        "deberta.encoder.rel_embeddings.",
        "deberta.encoder.LayerNorm.",
    ),
    "distilbert": ("distilbert.embeddings.", "distilbert.transformer.layer.0."),
    "modernbert": ("model.embeddings.", "model.layers.0."),
    "mpnet": ("mpnet.embeddings.", "mpnet.encoder.layer.0.", "mpnet.encoder.relative_attention_bias."),
    "qwen3": ("model.embed_tokens.", "model.layers.0."),
}


def installed(name, numbers=(1, 2)):
    (model,) = architectures.models(name, 1)
    frozen.install(model, numbers)
    return model


def states(model, layers):
    rows = output_check.inputs(model)
    with torch.no_grad(), frozen.ending_at(model, layers):
        return frozen.states(model, rows) * rows["attention_mask"][..., None]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_are_those_of_the_whole_model_which_is_not_computed_below_the_line(name, layers):
    model = installed(name)
    whole, given = output_check.outputs(model), states(model, layers)
    frozen.freeze(model, layers)
    line = frozen.of(model)
    with torch.no_grad():
        for parameter, tensor in model.named_parameters():
            if line.freezes(parameter) and parameter not in line.shared:
                tensor.fill_(torch.nan)
    torch.testing.assert_close(output_check.outputs(model, states=given), whole)
    assert not output_check.same(output_check.outputs(model, states=given.flip(-1)), whole)  # they are read


@pytest.mark.parametrize("name", BELOW)
def test_what_is_frozen(name):
    model = installed(name)
    frozen.freeze(model, 1)
    for parameter, tensor in model.named_parameters():
        assert tensor.requires_grad != parameter.startswith(BELOW[name]), parameter
    weights = model.state_dict()
    assert [n for n in weights if n not in frozen.above(model, weights)] == [
        n for n in weights if n.startswith(BELOW[name])
    ]
    frozen.freeze(model, 0)
    assert all(tensor.requires_grad for tensor in model.parameters())
    assert frozen.above(model, weights) == weights


def test_a_copy_has_a_line_of_its_own():
    model = installed("bert")
    given, whole = states(model, 1), output_check.outputs(model)
    frozen.freeze(model, 1)
    other = copy.deepcopy(model)
    frozen.freeze(model, 0)
    assert frozen.of(other).layers == 1
    assert output_check.same(output_check.outputs(other, states=given), whole)
    assert not output_check.same(output_check.outputs(other, states=given.flip(-1)), whole)


def test_states_have_no_dropout_and_a_pass_without_them_runs_whole():
    model = installed("bert").train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    assert torch.equal(states(model, 1), states(model, 1))
    assert model.training
    frozen.freeze(model, 1)
    rows = output_check.inputs(model)
    assert not torch.equal(model(**rows).logits, model(**rows).logits)


@pytest.mark.parametrize("name", APART)
def test_models_of_another_kind_are_refused(name):
    with pytest.raises(ModelError, match=r"cannot be computed apart from the others \(.+\); leave frozen_layers out"):
        installed(name)


def test_a_number_beyond_the_layers_is_an_error_that_says_how_many_there_are():
    with pytest.raises(
        ModelError, match=r"frozen_layers: 3 is more than the 2 layers of Bert\w+; 0 to 2 can be frozen"
    ):
        installed("bert", (1, 3))


def test_a_model_whose_outputs_would_change_is_refused(monkeypatch):
    monkeypatch.setattr(output_check, "same", lambda one, other: False)
    with pytest.raises(ModelError, match="with 1 of them given, its outputs are others"):
        installed("bert")


def test_what_frozen_layers_use_is_frozen_above_them_too():
    (model,) = architectures.models("bert", 1)
    layers = model.bert.encoder.layer
    layers[0].output.dense.weight = layers[1].output.dense.weight
    frozen.install(model, [1])
    frozen.freeze(model, 1)
    assert not layers[1].output.dense.weight.requires_grad
    assert layers[1].intermediate.dense.weight.requires_grad
