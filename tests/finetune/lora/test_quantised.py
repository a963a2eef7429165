"""A base in few bits: what is held, and that it computes what a model with the widened weights does."""

import copy
import json
import os
import signal
import sys
from pathlib import Path

import architectures
import numpy as np
import peft
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupted import Interrupter, told
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D
from trials import curves, same

from hpo.analysis.export import export
from hpo.analysis.model_card import card
from hpo.analysis.verdict import take_verdict
from hpo.analysis.verdict_text import sentences
from hpo.config import study_spec
from hpo.core.errors import MissingExtraError, ModelError, StudyError
from hpo.core.trainer import TrialSpec
from hpo.execution import run_study, trial_arrays
from hpo.finetune.folded.model import fold, load_slot
from hpo.finetune.lora.adapters import Lora
from hpo.finetune.lora.quantised import FORMATS, Quantised, quantise, size
from hpo.finetune.models import dropout, token_head
from hpo.finetune.models.loading import attend
from hpo.storage.snapshot import read
from hpo.tasks.metrics import score

# Relative error of normally distributed weights: what the two formats are known for, with some room.
ROUNDING = {"int8": 0.012, "nf4": 0.11}
# Table of NF4's values: Dettmers et al., 2023, appendix E.
NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635]
NF4 += [-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725]
NF4 += [0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
MODELS = ["bert", "llama-causal", "gpt2", "deberta-v3", "t5-untied", "xlnet", "albert"]
SPACE = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "batch_size": [8, 16], "epochs": 1}
SPACE |= {"lora_rank": [2, 4], "lora_dropout": [0.0, 0.2], "lora_targets": ["query_value", "all_linear"]}
TRIALS = [
    {"learning_rate": 3e-3, "epochs": 1, "batch_size": 16, "lora_rank": 2, "lora_dropout": 0.2},
    {"learning_rate": 1e-3, "epochs": 1, "batch_size": 8, "lora_rank": 4, "lora_targets": "all_linear"},
    {"learning_rate": 5e-3, "epochs": 1, "batch_size": 8, "lora_rank": 4, "lora_dropout": 0.1},
]


def relative(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


# ---------------------------------------------------------------- formats


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 70), columns=st.integers(1, 200), seed=st.integers(0, 9))
def test_int8_is_the_nearest_of_255_multiples_of_a_rows_scale(rows, columns, seed):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).half().float()
    scale = weight.abs().amax(1, keepdim=True) / 127
    wide = FORMATS["int8"](weight).wide()
    assert wide.dtype == torch.float32
    assert torch.allclose(wide, (weight / scale).round() * scale, atol=1e-6) or bool(
        ((wide - weight).abs() <= 0.501 * scale).all()
    )


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 70), columns=st.integers(1, 200), seed=st.integers(0, 9))
def test_nf4_is_a_published_value_times_the_largest_of_each_64(rows, columns, seed):
    """For every shape: of rows shorter than a block too, and of numbers of values that are no whole blocks."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    wide = FORMATS["nf4"](weight).wide()
    assert wide.shape == weight.shape
    blocks, found = (F.pad(each.flatten(), (0, -each.numel() % 64)).view(-1, 64) for each in (weight, wide))
    scale, values = blocks.abs().amax(1, keepdim=True), torch.tensor(NF4)
    nearest = values[(blocks[..., None] / scale[..., None] - values).abs().argmin(-1)] * scale
    # Double quantisation moves a scale, by a share of the range of all scales.
    assert bool(((found - nearest).norm(dim=1) <= 0.1 * nearest.norm(dim=1)).all())


@pytest.mark.parametrize("form", FORMATS)
def test_a_held_weight_is_near_takes_the_bytes_it_should_and_is_never_copied(form):
    weight = 0.02 * torch.randn(512, 768, generator=torch.Generator().manual_seed(0))
    held = FORMATS[form](weight)
    assert relative(held.wide(), weight) < ROUNDING[form]
    bits = 8 * sum(tensor.nbytes for tensor in held.tensors) / weight.numel()
    wanted = {"int8": 8 + 32 / 768, "nf4": 4 + 8 / 64 + 32 / (64 * 256)}[form]
    assert bits == pytest.approx(wanted, abs=0.03)  # the tables of values are a kilobyte
    assert copy.deepcopy(held) is held


@pytest.mark.parametrize("form", FORMATS)
def test_zeros_are_held(form):
    weight = torch.zeros(4, 64)
    weight[0, 0] = 1.0
    assert torch.allclose(FORMATS[form](weight).wide(), weight, atol=1e-6)


# ---------------------------------------------------------------- layers


def widened(layer):
    """Return a plain layer with the weight of a quantised one."""
    plain = Conv1D(layer.weight.shape[1], layer.weight.shape[0]) if isinstance(layer, Conv1D) else nn.Linear(1, 1)
    plain.weight, plain.bias = nn.Parameter(layer.weight.contiguous(), requires_grad=False), layer.bias
    return plain


def adapted(name, dtype=torch.float32):
    """Return a model of an architecture with adapters that add, and where they are."""
    (model,) = architectures.models(name, 1, dtype)
    head = frozenset({n for n, _ in model.named_parameters() if n.startswith(("classifier", "score", "logits_proj"))})
    lora = Lora(("all_linear",), 2, head)
    lora.install(model)
    if architectures.ARCHITECTURES[name][1] is not architectures.CLASSIFY:
        token_head.install(model)
    attend(model)
    dropout.install(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each, parameter in model.named_parameters():
            if ".adapter." in each:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model, lora


def with_widened(model):
    """Return a copy of a model whose quantised layers are plain ones of the same weights."""
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, Quantised):
            weight = nn.Parameter(module.weight.contiguous(), requires_grad=False)
            module.__class__ = Conv1D if isinstance(module, Conv1D) else nn.Linear
            del module.held, module.dtype
            module.weight = weight
    return plain


def passed(model, inputs, bf16=False):
    """Return the first output of a model and the gradients of what it trains, by name."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = next(value for name, value in model(**inputs).items() if name.endswith("logits"))
    output.float().square().sum().backward()
    return output.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients_are_those_of_the_widened_weights(name, form, bf16):
    """To the bit: the same products of the same numbers."""
    if bf16 and name.startswith("t5"):
        pytest.skip("this model scores in float32 only on a CPU, with its base in full too")
    model, lora = adapted(name)
    layers = quantise(model, lora, form)
    assert layers
    inputs = architectures.flat(architectures.rows(model, 1))
    output, gradients = passed(model.train(False), inputs, bf16)
    wanted, wanted_gradients = passed(with_widened(model).train(False), inputs, bf16)
    assert torch.equal(output, wanted)
    assert gradients.keys() == wanted_gradients.keys()
    assert any(name.endswith("adapter.B") for name in gradients)
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())
    assert all(torch.equal(gradient, wanted_gradients[name]) for name, gradient in gradients.items())


@pytest.mark.parametrize("name", MODELS)
def test_only_frozen_linear_layers_of_the_base_are_held_in_few_bits(name):
    model, lora = adapted(name)
    before = {each: p.clone() for each, p in model.named_parameters()}
    layers = quantise(model, lora, "nf4")
    found = {each for each, module in model.named_modules() if isinstance(module, Quantised)}
    assert set(layers) == found == set(lora.layers(model, ["all_linear"]))
    assert not any(word in each for each in layers for word in ("classifier", "score", "lm_head", "logits_proj"))
    after = dict(model.named_parameters())
    assert {f"{each}.weight" for each in layers} == before.keys() - after.keys()
    assert all(torch.equal(p, before[each]) for each, p in after.items())


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["bert", "llama-causal", "gpt2", "deberta-v3", "xlnet"])
def test_three_folded_slots_are_three_models_that_share_one_base(name, form):
    """In float64, to 1e-9: only products are rounded, the weights are the same numbers."""
    alone = []
    model, lora = adapted(name, torch.float64)
    quantise(model, lora, form)
    generator = torch.Generator().manual_seed(1)
    together = fold(model, 3)
    for slot in range(3):
        each = copy.deepcopy(model)
        with torch.no_grad():
            for p in each.parameters():
                if p.requires_grad:
                    p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        load_slot(together, slot, each.state_dict())
        alone.append(each)
    held = {id(m.held) for each in (model, together, *alone) for m in each.modules() if isinstance(m, Quantised)}
    assert len(held) == sum(isinstance(m, Quantised) for m in model.modules())
    inputs = architectures.rows(model, 3)
    output, gradients = passed(together.train(False), architectures.flat(inputs))
    for slot, each in enumerate(alone):
        own = {key: value[slot] for key, value in inputs.items()}
        wanted, wanted_gradients = passed(each.train(False), own)
        assert relative(output.unflatten(0, (3, -1))[slot], wanted) < 1e-9
        largest = max(gradient.norm() for gradient in wanted_gradients.values())
        for key, gradient in wanted_gradients.items():
            assert float((gradients[key][slot] - gradient).norm() / largest) < 1e-9


def test_the_bytes_of_a_model_are_counted_once_each():
    model, lora = adapted("llama-causal-tied")
    before = size(model)
    assert before == sum(p.nbytes for p in model.parameters())  # the tied table is one parameter
    weights = [layer.weight.numel() for layer in lora.layers(model, ["all_linear"]).values()]
    quantise(model, lora, "int8")
    outputs = sum(m.out_features for m in model.modules() if isinstance(m, Quantised))
    assert before - size(model) == 4 * sum(weights) - sum(weights) - 4 * outputs


# ---------------------------------------------------------------- refusals


def test_a_model_without_such_layers_is_refused():
    model, _ = adapted("bert")
    every = frozenset(name for name, _ in model.named_parameters())
    with pytest.raises(ModelError, match="has no frozen linear layers that can be held in nf4; leave base_weights out"):
        quantise(model, Lora(("all_linear",), 2, every), "nf4")


def test_another_device_is_refused():
    model, lora = adapted("bert")
    with pytest.raises(ModelError, match="base_weights: nf4 is for cpu and cuda, not meta"):
        quantise(model.to("meta"), lora, "nf4")


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(MissingExtraError, match=r"base_weights.*pip install 'hpo\[quantised\]'"):
        opened(tmp_path)


# ---------------------------------------------------------------- trials and studies


def opened(folder, **overrides):
    raw = tiny.study(folder, **{"space": SPACE, "base_weights": "nf4", **overrides})
    return trial_arrays.open_array(study_spec.build(raw, "test", folder))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("form", FORMATS)
def test_a_trial_depends_on_neither_its_slot_nor_its_neighbours(tmp_path, form, precision):
    alone = opened(tmp_path, base_weights=form, precision=precision)
    together = opened(tmp_path, base_weights=form, precision=precision, slots=2)
    found, beside = curves(alone, TRIALS), curves(together, TRIALS, order=[2, 0, 1])
    assert all(same(found[number], beside[number]) for number in found)
    in_full = curves(opened(tmp_path, base_weights=None, precision=precision), TRIALS)
    assert not any(same(found[number], in_full[number]) for number in found)


def test_a_trial_goes_on_from_its_checkpoint_to_the_bit(tmp_path):
    params = {**TRIALS[1], "epochs": 2}
    array = opened(tmp_path)
    array.load(0, TrialSpec(3, params, 3))
    array.advance()
    checkpoint = array.save(0)
    assert not any("base" in name or "held" in name for name in checkpoint.tensors)
    whole = [array.advance()[0] for _ in range(2)]
    again = opened(tmp_path)
    again.load(0, TrialSpec(3, params, 3, checkpoint))
    assert [again.advance()[0] for _ in range(2)] == whole


def test_the_note_says_how_much_memory_the_model_takes(tmp_path):
    array = opened(tmp_path)
    (note,) = array.adaptation.notes
    assert note in array.notes
    assert "frozen layers are held in nf4, so the model takes" in note
    assert "bitsandbytes" in array.facts
    plain = opened(tmp_path, base_weights=None)
    assert plain.adaptation.notes == ()
    assert "bitsandbytes" not in plain.facts


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Return a study on a base in 4 bits that has run, its verdict, its file and its folder."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        space = {**SPACE, "learning_rate": [1e-2], "epochs": 3, "lora_targets": "all_linear"}
        raw = tiny.study(folder, space=space, base_weights="nf4", trials=2, data=rows_of(folder))
        ran = run_study.run(study_spec.build(raw, "test", folder), "sqlite:///hpo.db")
        look = take_verdict(ran.study, ran.array, ran.folder / "trials")
    return ran, look, raw, folder


@pytest.fixture
def finished(study, monkeypatch):
    """Return the study, its verdict and its file, in its folder."""
    monkeypatch.chdir(study[-1])
    return study[:-1]


def rows_of(folder):
    tiny.write_csv(folder / "rows.csv", 300)
    return {"train": str(folder / "rows.csv"), "validation": 60, "test": 80}


def test_the_verdict_scores_what_is_exported_and_says_what_it_was_trained_as(finished, tmp_path):
    ran, look, _ = finished
    results = read(ran.study)
    folder = export(results, ran.folder / "trials", tmp_path / "exported", look["best"]["number"])
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not hasattr(model.config, "quantization_config")
    array, best = ran.array, ran.folder / "trials" / str(look["best"]["number"])
    exported, trained = array.predictions_of(best, "test"), array.as_trained(best, "test")
    assert not np.array_equal(exported.logits, trained.logits)
    assert look["as_trained"]["base"] == "nf4"
    assert look["as_trained"]["difference"] == pytest.approx(look["best"]["score"] - look["as_trained"]["score"])
    (text,) = [text for text in sentences(look) if "as it was trained" in text]
    assert "On the base in nf4, as it was trained, the best trial scores" in text
    assert "what is exported" in text


def test_what_was_trained_is_what_the_slot_scored(finished):
    """The adapters that are read back, on the base in few bits, give the value that the search saw."""
    ran, look, _ = finished
    number = look["best"]["number"]
    trained = ran.array.as_trained(ran.folder / "trials" / str(number), "validation")
    assert score(ran.array.metric, trained) == pytest.approx(ran.study.trials[number].value)


def test_card_and_configuration_say_how_the_base_was_held(finished):
    ran, look, _ = finished
    results = read(ran.study)
    assert "held in nf4 while it was trained" in card(results, results.trials[look["best"]["number"]])
    folder = ran.folder / "trials" / str(look["best"]["number"])
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"].endswith("model")
    assert json.loads((folder / "config.json").read_text())["trained_on_base_weights"] == "nf4"
    base = AutoModelForSequenceClassification.from_pretrained(settings["base_model_name_or_path"])
    peft.PeftModel.from_pretrained(base, str(folder))  # loads without hpo


class Killed(Interrupter):
    """Kills its process after so many evaluations."""

    def evaluated(self, number, evaluation):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_study_whose_processes_are_killed_has_the_same_table(finished, tmp_path, monkeypatch):
    ran, _, raw = finished
    monkeypatch.chdir(tmp_path)
    study = study_spec.build(raw, "test", tmp_path)
    for evaluations in (1, 4):
        process = os.fork()
        if process == 0:
            try:
                run_study.run(study, "sqlite:///hpo.db", Killed(evaluations))
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    again = run_study.run(study, "sqlite:///hpo.db").study
    assert told(again) == told(ran.study)


def test_the_setting_is_in_the_fingerprint(finished):
    ran, _, raw = finished
    fingerprint = ran.study.user_attrs["fingerprint"]
    assert fingerprint["settings"]["base_weights"] == "nf4"
    assert "bitsandbytes" in fingerprint["facts"]
    other = study_spec.build({**raw, "base_weights": "int8"}, "test", Path.cwd())
    with pytest.raises(StudyError, match="base_weights"):
        run_study.run(other, "sqlite:///hpo.db")
