import math

import pytest
import tiny
import torch

from hpo.finetune import optimizer
from hpo.finetune.models.loading import load_model
from hpo.recipe.training_params import TrainingParams
from hpo.tasks.registry import TASKS


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tiny.save_model(tmp_path_factory.mktemp("bert"))
    return load_model(str(folder), folder, TASKS["single_label"], ["a", "b"])


def test_depths_follow_electra(bert):
    model, head = bert
    found = optimizer.depths(dict(model.named_parameters()), head)
    assert {
        name: found[name] for name in found if "layer.0.output.dense" in name or "layer.1.output.dense" in name
    } == {
        "bert.encoder.layer.0.output.dense.weight": 3,
        "bert.encoder.layer.0.output.dense.bias": 3,
        "bert.encoder.layer.1.output.dense.weight": 2,
        "bert.encoder.layer.1.output.dense.bias": 2,
    }
    assert found["bert.embeddings.word_embeddings.weight"] == 4
    assert found["classifier.weight"] == 0
    assert found["bert.pooler.dense.weight"] == 0


def test_biases_and_norms_are_not_decayed_and_layers_have_their_rate(bert):
    model, head = bert
    built = optimizer.build(
        dict(model.named_parameters()),
        head,
        TrainingParams.of({"layer_decay": 0.5, "weight_decay": 0.1, "learning_rate": 1.0}),
    )
    optimizer.set_learning_rate(built, 5, 10, TrainingParams.of({"learning_rate": 1.0, "schedule": "constant"}))
    by_parameter = {id(p): group for group in built.param_groups for p in group["params"]}
    groups = {name: by_parameter[id(p)] for name, p in model.named_parameters()}
    assert groups["bert.encoder.layer.1.output.dense.weight"]["weight_decay"] == 0.1
    assert groups["bert.encoder.layer.1.output.dense.bias"]["weight_decay"] == 0.0
    assert groups["bert.encoder.layer.1.output.LayerNorm.weight"]["weight_decay"] == 0.0
    assert groups["bert.encoder.layer.1.output.dense.weight"]["lr"] == 0.25
    assert groups["bert.embeddings.word_embeddings.weight"]["lr"] == 0.0625
    assert groups["classifier.weight"]["lr"] == 1.0
    assert len(groups) == len(list(model.named_parameters()))


def test_one_step_is_a_plain_hand_written_adamw_step():
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    params = TrainingParams.of({"learning_rate": 0.1, "weight_decay": 0.3, "warmup_ratio": 0.0})
    built = optimizer.build(dict(layer.named_parameters()), frozenset(), params)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    moments = {name: (torch.zeros_like(w), torch.zeros_like(w)) for name, w in (("w", weight), ("b", bias))}
    for step in range(3):
        layer(torch.full((4, 3), step + 1.0)).pow(2).sum().backward()
        optimizer.set_learning_rate(built, step, 4, params)
        rate = 0.1 * (1 - step / 4)
        for name, value, gradient, decay in (("w", weight, layer.weight.grad, 0.3), ("b", bias, layer.bias.grad, 0.0)):
            first, second = moments[name]
            value.mul_(1 - rate * decay)
            first.mul_(0.9).add_(gradient, alpha=0.1)
            second.mul_(0.999).add_(gradient**2, alpha=0.001)
            corrected = (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
            value.sub_(rate * (first / (1 - 0.9 ** (step + 1))) / corrected)
        optimizer.clip(built, 1e9)
        built.step()
        built.zero_grad()
        torch.testing.assert_close(layer.weight.detach(), weight)
        torch.testing.assert_close(layer.bias.detach(), bias)


def test_decay_of_unused_rows_is_what_adamw_does_to_a_row_without_gradient():
    table = torch.nn.Embedding(5, 2)
    params = TrainingParams.of({"learning_rate": 0.1, "weight_decay": 0.3})
    built = optimizer.build(dict(table.named_parameters()), frozenset(), params)
    before, left = table.weight.detach()[4].clone(), 1.0
    for step in range(4):
        table(torch.tensor([0, 1])).sum().backward()
        optimizer.set_learning_rate(built, step, 10, params)
        built.step()
        built.zero_grad()
        left *= optimizer.decay_of_unused_rows(built)
    torch.testing.assert_close(table.weight.detach()[4], before * left)
    assert not math.isclose(left, 1.0)


@pytest.mark.parametrize("max_norm", [0.5, 2.0, 1e6])
def test_clipping_is_that_of_torch(max_norm):
    ours, theirs = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    params = TrainingParams.of({"learning_rate": 0.01})
    built, reference = (
        optimizer.build(dict(layer.named_parameters()), frozenset(), params) for layer in (ours, theirs)
    )
    for step in range(3):
        x = torch.full((5, 4), step + 1.0)
        ours(x).pow(2).sum().backward()
        theirs(x).pow(2).sum().backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
        optimizer.clip(built, max_norm)
        for each in (built, reference):
            each.step()
            each.zero_grad()
        torch.testing.assert_close(ours.weight, theirs.weight)
