"""Frozen weights that are held in bf16: no bit of any result changes."""

import json

import architectures
import pytest
import tiny
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D
from trials import curves, same

from hpo.config import study_spec
from hpo.execution import trial_arrays
from hpo.finetune.folded.model import fold
from hpo.finetune.lora import adaptation
from hpo.finetune.lora.adapters import Lora
from hpo.finetune.lora.base_weights import hold_as_multiplied
from hpo.finetune.models import dropout, token_head
from hpo.finetune.models.loading import attend
from hpo.finetune.models.output_check import logits_of

SPACE = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "batch_size": [8, 16], "epochs": 1}
SPACE |= {"lora_rank": [2, 4], "lora_dropout": [0.0, 0.2], "lora_targets": ["query_value", "all_linear"]}
TRIALS = [
    {"learning_rate": 3e-3, "epochs": 1, "batch_size": 16, "lora_rank": 2, "lora_dropout": 0.2},
    {"learning_rate": 1e-3, "epochs": 1, "batch_size": 8, "lora_rank": 4, "lora_targets": "all_linear"},
    {"learning_rate": 5e-3, "epochs": 1, "batch_size": 8, "lora_rank": 4, "lora_dropout": 0.1},
]
WIDE = ("deberta-v3", "t5-untied")  # see `hold_as_multiplied`
CHECKED = [
    "bert",
    "gpt2",
    "bart-seq2seq",
    "gpt2-causal",
    "llama-causal",
    "llama-causal-tied",
    "bert-masked",
    *WIDE,
]


def adapted(name):
    """Return a model of an architecture with adapters."""
    (model,) = architectures.models(name, 1)
    head = frozenset({n for n, _ in model.named_parameters() if n.startswith(("classifier", "score"))})
    Lora(("all_linear",), 2, head).install(model)
    if architectures.ARCHITECTURES[name][1] is not architectures.CLASSIFY:
        token_head.install(model)
    attend(model)
    dropout.install(model)
    return model


def passed(model, name):
    """Return the logits and the gradients of adapters of a pass with dropout in bf16; two slots."""
    with dropout.everywhere(model, 0.2):
        together = fold(model, 2)
        for slot in range(2):
            dropout.set_rates(together, slot, 2, model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each, parameter in together.named_parameters():
            if "adapter" in each:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    inputs = architectures.flat(architectures.rows(model, 2))
    keys = torch.tensor([3, 4])
    with dropout.OwnFunction(), dropout.drawing_from(keys):
        with torch.autocast("cpu", torch.bfloat16):
            (logits,) = list(logits_of(together.train()(**inputs)).values())[:1]
        logits.float().square().sum().backward()
    return [logits.detach(), *(p.grad for p in together.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", CHECKED)
def test_no_bit_of_outputs_and_gradients_changes(name):
    model = adapted(name)
    before = passed(model, name)
    names = {each for each, p in model.named_parameters()}
    held = hold_as_multiplied(model, torch.bfloat16)
    assert held == (name not in WIDE)
    assert all(torch.equal(one, other) for one, other in zip(before, passed(model, name), strict=True))
    assert {each for each, p in model.named_parameters()} == names
    narrow = {each for each, p in model.named_parameters() if p.dtype == torch.bfloat16}
    layers = {
        f"{each}.{own}"
        for each, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        for own, p in module.named_parameters(recurse=False)
        if not p.requires_grad
    }
    assert narrow <= layers
    assert bool(narrow) == held
    tied = {each for each in layers if any(model.get_parameter(each) is m.weight for m in embeddings(model))}
    assert not narrow & tied


def embeddings(model):
    return [module for module in model.modules() if isinstance(module, nn.Embedding)]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "qwen3"])
def test_trials_and_what_they_write_are_the_same_to_the_bit(tmp_path, monkeypatch, kind):
    tiny.save_model(tmp_path / "model", kind)
    found, written = [], []
    for held in (False, True):
        if not held:
            monkeypatch.setattr(adaptation, "hold_as_multiplied", lambda *given: False)
        raw = tiny.study(tmp_path, precision="bf16", slots=2, space=SPACE)
        array = trial_arrays.open_array(study_spec.build(raw, "test", tmp_path))
        assert any(p.dtype == torch.bfloat16 for p in array.setup.model.parameters()) == held
        found.append((array.facts, curves(array, TRIALS)))
        array.load(0, trial_of(TRIALS[0]))
        array.advance()
        folder = tmp_path / f"written-{held}"
        assert array.save_weights(0, folder)
        files = sorted(path for path in folder.iterdir() if path.is_file())
        written.append({path.name: path.read_bytes() for path in files})
        monkeypatch.undo()
    (facts, before), (facts_held, after) = found
    assert facts == facts_held
    assert all(same(before[number], after[number]) for number in before)
    assert written[0] == written[1]
    assert json.loads(written[0]["adapter_config.json"])["r"] == 2


def trial_of(params):
    from hpo.core.trainer import TrialSpec

    return TrialSpec(7, params, 7)
