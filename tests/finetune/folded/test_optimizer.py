"""AdamW of several trials at once against torch's AdamW for each trial."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from hpo.finetune import optimizer
from hpo.finetune.folded.model import fold, load_slot, slot_weights
from hpo.finetune.folded.optimizer import FoldedAdamW
from hpo.recipe.training_params import TrainingParams

PARAMS = [
    TrainingParams.of({"learning_rate": 1e-2, "weight_decay": 0.3, "layer_decay": 0.5, "max_grad_norm": 0.1}),
    TrainingParams.of({"learning_rate": 3e-3, "weight_decay": 0.0, "schedule": "cosine", "max_grad_norm": 1e6}),
    TrainingParams.of({"learning_rate": 1e-3, "weight_decay": 0.1, "warmup_ratio": 0.5}),
]
# Which of the three trials step at each micro-step, as with different batch sizes.
STEPPING = [[1, 0, 1], [1, 1, 0], [0, 0, 1], [1, 1, 1], [0, 1, 0]]
TOTAL = 8


class Tiny(nn.Module):
    """An embedding, two layers and a head, of which one parameter is never used."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(7, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.unused = nn.Linear(4, 4)
        self.classifier = nn.Linear(4, 2)

    def forward(self, ids):
        x = self.embeddings(ids)
        for layer in self.layers:
            x = layer(x).tanh()
        return self.classifier(x)


HEAD = frozenset({"classifier.weight", "classifier.bias"})


@pytest.fixture
def models():
    torch.manual_seed(0)
    return [Tiny().double() for _ in PARAMS]


def folded_optimizer(models):
    model = fold(models[0], len(models))
    for slot, own in enumerate(models):
        load_slot(model, slot, own.state_dict())
    trained = [name for name, _ in models[0].named_parameters() if not name.startswith("unused")]
    return model, FoldedAdamW(model, trained, HEAD)


def settings(name):
    return torch.tensor([getattr(params, name) for params in PARAMS], dtype=torch.float64)


def test_every_slot_steps_as_torch_s_adamw_would(models):
    model, together = folded_optimizer(models)
    alone = [
        optimizer.build(dict(own.named_parameters()), HEAD, params) for own, params in zip(models, PARAMS, strict=True)
    ]
    steps = [0, 0, 0]
    for round_, stepping in enumerate(STEPPING):
        ids = torch.arange(12).view(3, 4) * (round_ + 3) % 7
        model(ids).square().sum().backward()
        rates = torch.zeros(3, len(together.depths), dtype=torch.float64)
        for slot, (own, built, params) in enumerate(zip(models, alone, PARAMS, strict=True)):
            own(ids[slot]).square().sum().backward()
            if stepping[slot]:
                rates[slot] = torch.tensor(together.rates(steps[slot], TOTAL, params))
                optimizer.clip(built, params.max_grad_norm)
                optimizer.set_learning_rate(built, steps[slot], TOTAL, params)
                built.step()
                built.zero_grad()
                steps[slot] += 1
        whole = torch.tensor(stepping, dtype=torch.float32)
        together.step(whole, rates, settings("weight_decay"), settings("max_grad_norm").float())
        for slot, own in enumerate(models):
            for name, weight in slot_weights(model, slot).items():
                torch.testing.assert_close(weight, own.state_dict()[name], rtol=1e-8, atol=1e-9)
    assert steps == [3, 3, 3]
    first, second = (together.moments(1, "classifier.weight")[name] for name in ("exp_avg", "exp_avg_sq"))
    expected = alone[1].state[models[1].classifier.weight]
    torch.testing.assert_close(first, expected["exp_avg"])
    torch.testing.assert_close(second, expected["exp_avg_sq"])


def test_nothing_of_a_slot_that_waits_is_changed(models):
    model, together = folded_optimizer(models)
    model(torch.arange(12).view(3, 4) % 7).sum().backward()
    before = {name: getattr(together, name).clone() for name in ("weights", "gradients")}
    rates = torch.full((3, len(together.depths)), 0.1, dtype=torch.float64)
    together.step(torch.tensor([1.0, 0.0, 1.0]), rates, settings("weight_decay"), settings("max_grad_norm").float())
    assert torch.equal(together.weights[1], before["weights"][1])
    assert torch.equal(together.gradients[1], before["gradients"][1])
    assert not together.gradients[0].any()
    assert not torch.equal(together.weights[0], before["weights"][0])
    assert together.moments(1, "classifier.weight")["step"] == 0


def test_a_slot_of_nan_is_cleared_and_does_not_change_the_others(models):
    model, together = folded_optimizer(models)
    _, reference = folded_optimizer(copy.deepcopy(models))
    rates = torch.full((3, len(together.depths)), 0.1, dtype=torch.float64)
    for each in (together, reference):
        each.gradients[::2] = 0.5
    together.gradients[1] = math.nan
    for each in (together, reference):
        each.step(torch.ones(3), rates, settings("weight_decay"), settings("max_grad_norm").float())
    assert torch.equal(together.weights[::2], reference.weights[::2])
    assert together.weights[1].isnan().all()
    assert not together.gradients.any()
    load_slot(model, 1, models[1].state_dict())
    together.clear(1)
    assert not together.moments(1, "embeddings.weight")["exp_avg"].any()
    assert not together.weights.isnan().any()


def test_embeddings_are_the_deepest_and_unused_rows_decay_as_computed(models):
    _, together = folded_optimizer(models)
    rates = together.rates(0, TOTAL, replace(PARAMS[0], schedule="constant", warmup_ratio=0.0))
    assert together.depths == [0, 2, 3, 4]
    assert rates == pytest.approx([1e-2, 2.5e-3, 1.25e-3, 6.25e-4])
    assert together.decay_of_unused_rows(rates, 0.3) == pytest.approx(1 - 6.25e-4 * 0.3)
