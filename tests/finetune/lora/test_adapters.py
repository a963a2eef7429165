import copy
import json
import math
import sys

import architectures
import numpy as np
import peft
import pytest
import tiny
import torch
from optuna.trial import TrialState
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
from trials import curves, same

from hpo.analysis.export import export
from hpo.analysis.verdict import take_verdict
from hpo.config import study_spec
from hpo.core.errors import ConfigError, DivergedError, MissingExtraError, ModelError
from hpo.core.seeds import derived_seed
from hpo.core.trainer import TrialSpec
from hpo.execution import run_study, trial_arrays
from hpo.finetune import optimizer as optimizers
from hpo.finetune.data.batches import epoch_batches
from hpo.finetune.folded import equivalence
from hpo.finetune.folded import model as folded
from hpo.finetune.folded.model import fold, load_slot, slot_weights
from hpo.finetune.lora import peft_files
from hpo.finetune.lora.adaptation import LoraAdaptation
from hpo.finetune.lora.adapters import Adapter, Lora
from hpo.finetune.models.loading import load_model
from hpo.recipe.hyperparameters import DEFAULTS, HYPERPARAMETERS, LORA_TARGETS
from hpo.recipe.training_params import TrainingParams
from hpo.storage.snapshot import read
from hpo.tasks.registry import TASKS

SPACE = {
    "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "batch_size": [8, 16, 17],
    "epochs": [1, 2],
    "lora_rank": [1, 2, 4, 6],
    "lora_alpha": {"low": 1.0, "high": 16.0},
    "lora_dropout": [0.0, 0.2],
    "lora_targets": list(LORA_TARGETS),
    "layer_decay": [1.0, 0.8],
}
# Trials that differ in everything; more trials than slots.
MIXED = [
    {"learning_rate": 3e-3, "epochs": 2, "batch_size": 8, "lora_rank": 2, "lora_alpha": 4.0, "lora_dropout": 0.2},
    {
        "learning_rate": 1e-3,
        "epochs": 2,
        "batch_size": 17,
        "lora_rank": 6,
        "lora_targets": "all_linear",
        "dropout": 0.0,
    },
    {"learning_rate": 5e-3, "epochs": 1, "batch_size": 16, "lora_rank": 1, "lora_targets": "attention"},
    {"learning_rate": 2e-3, "epochs": 2, "batch_size": 16, "lora_rank": 4, "lora_dropout": 0.1, "layer_decay": 0.8},
]
SEQUENCE_CLASSIFIERS = [n for n, (_, task, _) in architectures.ARCHITECTURES.items() if task == architectures.CLASSIFY]


def open_array(folder, **overrides):
    raw = tiny.study(folder, **{"space": SPACE, **overrides})
    array = trial_arrays.open_array(study_spec.build(raw, "test", folder))
    assert type(array.adaptation) is LoraAdaptation
    return array


def adapters_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, Adapter)}


def head_of(model):
    pretrained = {name for name, _ in model.base_model.named_parameters(prefix=model.base_model_prefix)}
    return frozenset(name for name, _ in model.named_parameters() if name not in pretrained)


def under_our_names(model):
    """Return the trained parameters of a peft model, by hpo's names."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            for old, new in [("base_model.model.", ""), ("modules_to_save.", ""), ("default.", "")]:
                name = name.replace(old, new)
            found[name.replace("lora_A.weight", "adapter.A").replace("lora_B.weight", "adapter.B")] = parameter
    return found


# ---------------------------------------------------------------- against peft


@pytest.mark.parametrize("name", ["bert", "gpt2", "deberta-v3", "xlnet"])
def test_three_slots_are_three_peft_models(tmp_path, name):
    """LabelPredictions and gradients, with adapters that are not zero: float64, to 1e-9."""
    (base,) = architectures.models(name, 1, torch.float64)
    base.config._name_or_path = str(tmp_path)
    targets = ("all_linear",) if name == "xlnet" else tuple(LORA_TARGETS)
    lora = Lora(targets, 4, head_of(base))
    template = copy.deepcopy(base)
    lora.install(template)
    together = fold(template, 3)
    trials = [
        DEFAULTS | {"lora_rank": rank, "lora_alpha": alpha, "lora_targets": targets[slot % len(targets)]}
        for slot, (rank, alpha) in enumerate([(1, 8.0), (4, 2.0), (3, 16.0)])
    ]
    generator = torch.Generator().manual_seed(0)
    for slot, params in enumerate(trials):
        lora.start(template, TrainingParams.of(params), slot)
        used = lora.layers(template, [params["lora_targets"]])
        weights = template.state_dict()
        for layer in used:
            b = weights[f"{layer}.adapter.B"][:, : params["lora_rank"]]
            b.copy_(0.3 * torch.randn(b.shape, generator=generator, dtype=b.dtype))
        for parameter in lora.head:
            weights[parameter] += 0.1 * slot
        load_slot(together, slot, weights)
    inputs = architectures.rows(base, 3)
    logits = together(**architectures.flat(inputs)).logits.unflatten(0, (3, -1))
    logits.square().sum().backward()
    for slot, params in enumerate(trials):
        peft_files.save(tmp_path / str(slot), template, lora, slot_weights(together, slot), TrainingParams.of(params))
        alone = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / str(slot)), is_trainable=True)
        own = alone(**{key: value[slot] for key, value in inputs.items()}).logits
        own.square().sum().backward()
        assert (logits[slot] - own).norm() <= 1e-9 * own.norm()
        used = lora.layers(template, [params["lora_targets"]])
        adapters = {f"{layer}.adapter.{matrix}" for layer in used for matrix in "AB"}
        assert under_our_names(alone).keys() == adapters | lora.head
        for key, parameter in under_our_names(alone).items():
            found = together.get_parameter(key).grad[slot]
            found = found[tuple(slice(0, size) for size in parameter.shape)]
            assert (found - parameter.grad).norm() <= 1e-9 * parameter.grad.norm(), key


def test_the_steps_of_three_slots_are_those_of_three_peft_models(tmp_path, monkeypatch):
    """Ten optimiser steps or more, clipped, decayed and scheduled, from the array's start: float64, to 1e-9."""

    def load_in_float64(*args):
        model, head = load_model(*args)
        return model.double(), head

    monkeypatch.setattr("hpo.finetune.setup.load_model", load_in_float64)
    array = open_array(tmp_path, slots=3)
    still = {"dropout": 0.0, "lora_dropout": 0.0, "max_grad_norm": 0.3, "weight_decay": 0.1, "epochs": 2}
    trials = [DEFAULTS | MIXED[n] | still | {"batch_size": 8 if n else 12, "layer_decay": 0.9} for n in (3, 1, 0)]
    models = []
    for slot, params in enumerate(trials):
        array.load(slot, TrialSpec(slot, params, 10 + slot))
        folder = tmp_path / str(slot)
        peft_files.save(
            folder,
            array.setup.model,
            array.adaptation.lora,
            array.engine.occupied[slot].weights,
            TrainingParams.of(params),
        )
        base, _ = load_in_float64(str(tmp_path / "model"), tmp_path, array.setup.task, array.setup.data.labels)
        array.setup.vocabulary.cut(base)
        models.append(peft.PeftModel.from_pretrained(base, str(folder), is_trainable=True))
    while not all(outcome.last for outcome in array.advance().values()):
        pass
    logits = array.engine._answers_of_all("validation")["logits"]
    tokens = array.setup.tokens["train"]
    for slot, (params, model) in enumerate(zip(trials, models, strict=True)):
        parameters = under_our_names(model)
        optimizer = optimizers.build(parameters, array.setup.head, TrainingParams.of(params))
        seed = derived_seed(10 + slot, "order")
        size = params["batch_size"]
        batches = [
            b for epoch in range(2) for b in epoch_batches(tokens.lengths, size, seed, epoch, array.engine.window)
        ]
        assert len(batches) >= 10
        for step, rows in enumerate(batches):
            inputs, targets = tokens.batch(rows)
            outputs = array.setup.outputs(model.eval(), inputs, targets)  # `eval`: no dropout
            array.setup.task.loss(outputs, targets, 0.0, None).mean().backward()
            optimizers.clip(optimizer, params["max_grad_norm"])
            optimizers.set_learning_rate(optimizer, step, len(batches), TrainingParams.of(params))
            optimizer.step()
            optimizer.zero_grad()
        for name, parameter in parameters.items():
            found = array.engine.occupied[slot].weights[name][tuple(slice(0, size) for size in parameter.shape)]
            assert (found - parameter).norm() <= 1e-9 * parameter.norm(), name
        np.testing.assert_allclose(
            logits[slot], array.setup.predict(model, "validation").logits, rtol=1e-6
        )  # kept as float32


def test_adapters_start_as_those_of_peft(tmp_path):
    model, _ = load_model(str(tiny.save_model(tmp_path)), tmp_path, TASKS["single_label"], ["a", "b"])
    lora = Lora(("attention", "all_linear"), 8, head_of(model))
    lora.install(model)
    params = {"lora_rank": 6, "lora_alpha": 3.0, "lora_dropout": 0.3, "lora_targets": "attention"}
    lora.start(model, TrainingParams.of(params), 5)
    drawn = {
        name: adapter.A[:6].detach().clone() for name, adapter in adapters_of(model).items() if "attention" in name
    }
    every = torch.cat([a.flatten() for a in drawn.values()]) * math.sqrt(32)  # all of these layers have 32 inputs
    assert every.abs().max() <= 1  # kaiming_uniform with a = sqrt(5) is uniform up to 1 / sqrt(inputs)
    assert every.std() == pytest.approx(1 / math.sqrt(3), rel=0.05)
    for name, adapter in adapters_of(model).items():
        used = "attention" in name
        assert adapter.dropout.p == (0.3 if used else 0.0)
        assert adapter.scale.item() == 0.5
        assert bool(adapter.A[:6].any()) == used
        assert not adapter.A[6:].any()
        assert not adapter.B.any()
    for adapter in adapters_of(model).values():
        torch.nn.init.ones_(adapter.B)
    lora.start(model, TrainingParams.of(params), 6)
    assert not any(adapter.B.any() for adapter in adapters_of(model).values())
    assert not any(torch.equal(adapters_of(model)[name].A[:6], a) for name, a in drawn.items())
    lora.start(model, TrainingParams.of(params), 5)
    assert all(torch.equal(adapters_of(model)[name].A[:6], a) for name, a in drawn.items())


# ---------------------------------------------------------------- independence of slots


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return curves(open_array(tmp_path_factory.mktemp("alone"), slots=1), MIXED)


@pytest.mark.parametrize(("slots", "order"), [(3, None), (2, [3, 1, 0, 2]), (4, [2, 3, 0, 1])])
def test_a_trial_is_to_the_bit_the_same_whatever_the_slots_and_neighbours(tmp_path, alone, slots, order):
    together = curves(open_array(tmp_path, slots=slots), MIXED, order)
    assert [number for number in alone if not same(alone[number], together[number])] == []


def test_other_widths_and_families_are_the_same_to_the_bit_too(tmp_path):
    """With one product over all rows they differ: MKL's sums depend on the number of rows (seen at 8 rows of 384)."""
    tiny.save_model(tmp_path / "model", "gpt2")
    one, three = (curves(open_array(tmp_path, slots=slots), MIXED[:3]) for slots in (1, 3))
    assert all(same(one[number], three[number]) for number in one)
    for rows in (1, 3, 8):
        layer = torch.nn.Linear(384, 384).requires_grad_(False)
        x = torch.randn(3 * rows, 384, generator=torch.Generator().manual_seed(0))
        shared = folded.fold(torch.nn.Sequential(layer), 3)
        assert torch.equal(shared(x), torch.cat([layer(part) for part in x.split(rows)]))


def test_every_hyperparameter_of_lora_matters(tmp_path):
    losses = set()
    for change in ({}, {"lora_rank": 4}, {"lora_alpha": 16.0}, {"lora_dropout": 0.5}, {"lora_targets": "attention"}):
        array = open_array(tmp_path)
        array.load(0, TrialSpec(0, {"learning_rate": 1e-2, "batch_size": 8, "epochs": 2, "lora_rank": 2, **change}, 1))
        losses.add(array.advance()[0].metrics["loss"])
    assert len(losses) == 5


def test_another_seed_draws_other_adapters_and_another_head(tmp_path):
    array = open_array(tmp_path, slots=3)
    for slot, seed in enumerate([1, 2, 1]):
        array.load(slot, TrialSpec(slot, MIXED[0], seed))
    one, two, again = (array.engine.occupied[slot].weights for slot in range(3))
    for name in ("classifier.weight", "bert.encoder.layer.1.attention.self.value.adapter.A"):
        assert torch.equal(one[name], again[name])
        assert not torch.equal(one[name], two[name])


def test_a_slot_full_of_nan_leaves_the_others_as_they_are(tmp_path, alone):
    array = open_array(tmp_path, slots=3)
    for slot in range(3):
        array.load(slot, TrialSpec(slot, MIXED[slot], 100 + slot))
    with torch.no_grad():
        for parameter in array.engine.program.model.parameters():
            if parameter.requires_grad:
                parameter[1] = math.nan
    outcomes = array.advance()
    assert isinstance(outcomes[1], DivergedError)
    for slot in (0, 2):
        assert (outcomes[slot].at, outcomes[slot].value, outcomes[slot].metrics) == alone[slot][0]


# ---------------------------------------------------------------- what is trained


def test_training_changes_neither_the_base_nor_unused_ranks_and_targets(tmp_path):
    array = open_array(tmp_path, slots=3)
    for slot in range(3):
        array.load(slot, TrialSpec(slot, MIXED[slot], 100 + slot))
    frozen = {
        name: p
        for name, p in array.engine.program.model.named_parameters()
        if not p.requires_grad and "adapter" not in name
    }
    assert len(frozen) == len(array.setup.initial.pristine) - 3 * len(adapters_of(array.engine.program.model)) - len(
        array.adaptation.lora.head
    )
    assert all(p is array.setup.model.get_parameter(name) for name, p in frozen.items())  # one for all slots
    before = {name: p.clone() for name, p in array.engine.program.model.named_parameters()}
    array.advance()
    assert all(torch.equal(p, before[name]) for name, p in frozen.items())
    changed = {name for name, p in array.engine.program.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name, p in array.engine.program.model.named_parameters() if p.requires_grad}
    for slot in range(3):
        params = DEFAULTS | MIXED[slot]
        used = array.adaptation.lora.layers(array.engine.program.model, [params["lora_targets"]])
        assert used
        for name, adapter in adapters_of(array.engine.program.model).items():
            own, rank = name.removesuffix(".adapter") in used, params["lora_rank"]
            assert bool(adapter.B[slot, :, :rank].any()) == own
            assert bool(adapter.A[slot, :rank].any()) == own
            assert not adapter.A[slot, rank:].any()
            assert not adapter.B[slot, :, rank:].any()
    array.unload(0)
    held = array.engine.occupied[1].best_weights
    assert set(held) == changed


@pytest.mark.parametrize("name", SEQUENCE_CLASSIFIERS)
def test_every_architecture_folds_with_adapters_or_is_found_not_to(name):
    (model,) = architectures.models(name, 1)
    lora = Lora(("all_linear",), 3, head_of(model))
    wrong = equivalence.check(type(model), model.config, lora)
    if name.startswith("deberta"):  # its projections of positions, which all rows share, would share a mask
        assert "of two folded trials differs" in str(wrong)
    else:
        assert wrong is None


def test_a_model_that_does_not_fold_trains_with_one_slot(tmp_path, monkeypatch):
    monkeypatch.setattr("hpo.finetune.folded.equivalence.check", lambda *given: "it does not")
    array = open_array(tmp_path, slots=2)
    assert isinstance(array.adaptation, LoraAdaptation)
    assert array.slots == 1
    assert array.notes == ("it does not; trials train one after the other",)
    assert open_array(tmp_path, slots=1).notes == ()


def test_slots_are_measured_at_the_studys_own_rank_and_targets(tmp_path):
    raw = tiny.study(tmp_path, slots="auto", space={"learning_rate": [1e-3, 3e-3], "lora_rank": 4, "epochs": 1})
    raw["space"]["lora_targets"] = "all_linear"
    study = study_spec.build(raw, "test", tmp_path)
    array = trial_arrays.open_array(study)
    assert array.fastest_slots(2) in (1, 2)
    assert {t.state for t in run_study.run(study, f"sqlite:///{tmp_path}/a.db").study.trials} == {TrialState.COMPLETE}


def test_slots_are_not_measured_where_trials_would_differ(tmp_path, monkeypatch):
    monkeypatch.setattr("hpo.finetune.folded.equivalence.check", lambda *given: "it does not")
    array = open_array(tmp_path, slots="auto")
    assert array.notes == ("it does not; trials train one after the other",)
    assert array.fastest_slots(4) == 1


# ---------------------------------------------------------------- written adapters


@pytest.mark.parametrize("kind", ["bert", "distilbert", "gpt2", "roberta"])
def test_a_written_adapter_loads_with_peft(tmp_path, kind):
    tiny.save_model(tmp_path / "model", kind)
    array = open_array(tmp_path, slots=2)
    for slot in range(2):
        array.load(slot, TrialSpec(slot, MIXED[1 + slot], 100 + slot))
    array.advance()
    logits = array.engine._answers_of_all("validation")["logits"]
    for slot in range(2):
        folder = tmp_path / f"kept{slot}"
        assert array.save_weights(slot, folder)
        adapter = {"adapter_config.json", "adapter_model.safetensors"}
        beside = {"config.json", "tokenizer.json", "tokenizer_config.json"}
        assert {path.name for path in folder.iterdir()} == adapter | beside
        settings = json.loads((folder / "adapter_config.json").read_text())
        assert (settings["r"], settings["lora_alpha"]) == (MIXED[1 + slot]["lora_rank"], DEFAULTS["lora_alpha"])
        assert settings["fan_in_fan_out"] == (kind == "gpt2")
        np.testing.assert_allclose(array.predictions_of(folder, "validation").logits, logits[slot], atol=1e-6)
        base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
        for loaded in (
            peft.PeftModel.from_pretrained(base, str(folder)),
            peft.AutoPeftModelForSequenceClassification.from_pretrained(str(folder)),
        ):
            loaded.config.pad_token_id = 0
            texts = array.setup.data.splits["validation"].texts
            inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
            with torch.no_grad():
                found = loaded.eval()(**inputs).logits
            np.testing.assert_allclose(found, logits[slot], atol=1e-6)


def test_a_checkpoint_with_a_classifier_trains_it_from_where_it_is(tmp_path):
    model, _ = load_model(str(tiny.save_model(tmp_path / "bare")), tmp_path, TASKS["single_label"], ["bad", "good"])
    model.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    array = open_array(tmp_path)
    array.load(0, TrialSpec(0, MIXED[1], 100))
    start = array.engine.occupied[0].weights["classifier.weight"].clone()
    assert torch.equal(start, model.classifier.weight)
    array.advance()
    assert not torch.equal(array.engine.occupied[0].weights["classifier.weight"], start)
    array.save_weights(0, tmp_path / "kept")
    loaded = array.predictions_of(tmp_path / "kept", "validation").logits
    np.testing.assert_allclose(loaded, array.engine._answers_of_all("validation")["logits"][0], atol=1e-6)


def test_a_study_runs_from_its_file_to_verdict_and_export(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = tiny.study(tmp_path, space=SPACE, slots=3, trials=6, sampler="random", pruner="median")
    finished = run_study.run(study_spec.build(raw, "test", tmp_path), "sqlite:///hpo.db")
    assert all(trial.state.is_finished() for trial in finished.study.trials)
    assert finished.study.trials[0].params["lora_rank"] == 6  # the choice nearest to the published 8
    verdict = take_verdict(finished.study, finished.array, finished.folder / "trials")
    assert verdict["examples"] == 30
    results = read(finished.study)
    source = finished.folder / "trials" / str(results.best.number)
    target = export(results, finished.folder / "trials", tmp_path / "out")
    assert "lora_rank" in (target / "README.md").read_text()
    assert {path.name for path in source.iterdir()} == {path.name for path in (target / "adapter").iterdir()}
    outputs = finished.array.predictions_of(source, "test")
    texts = finished.array.setup.data.splits["test"].texts
    said = pipeline("text-classification", str(target))(texts)
    assert [row["label"] for row in said] == [finished.array.setup.data.labels[i] for i in outputs.predicted]
    np.testing.assert_allclose([row["score"] for row in said], outputs.probabilities.max(axis=1), atol=1e-5)
    model = AutoModelForSequenceClassification.from_pretrained(target)  # no adapter and no peft in it
    assert not any("lora" in name for name, _ in model.named_modules())


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("space", "place", "said"),
    [
        ({"lora_alpha": [8.0, 16.0]}, "lora_alpha", "is read with lora_rank only"),
        ({"lora_targets": "attention"}, "lora_targets", "is read with lora_rank only"),
        ({"lora_rank": [None, 8]}, "lora_rank", "trains adapters or whole models, no mixture of both"),
        ({"lora_rank": None}, "lora_rank", "no mixture"),
        ({"lora_rank": {"values": [4, 8], "when": {"epochs": 2}}}, "lora_rank", "no mixture"),
        ({"lora_rank": [0, 8]}, "lora_rank", "0 is outside [1, 1024]"),
        ({"lora_rank": 8, "lora_dropout": 1.0}, "lora_dropout", "1.0 is outside [0, 1)"),
        ({"lora_rank": 8, "lora_alpha": 0.0}, "lora_alpha", "0.0 is outside (0, inf]"),
        ({"lora_rank": 8, "lora_targets": ["atention"]}, "lora_targets", "is not one of query_value, attention, all"),
    ],
)
def test_an_impossible_space_is_refused_when_it_is_read(space, place, said):
    parameters = {"learning_rate": [1e-4, 1e-3], "epochs": [1, 2], **space}
    for written, path in ((parameters, (place,)), ({"parameters": parameters}, ("parameters", place))):
        with pytest.raises(ConfigError) as raised:
            study_spec.build({"name": "n", "model": "m", "data": {}, "space": written}, "test", None)
        (problem,) = raised.value.problems
        assert problem.path == ("space", *path)
        assert said in problem.message


def test_adapters_always_train_folded():
    raw = {"name": "n", "model": "m", "data": {}, "fold": False, "space": {"lora_rank": [4, 8]}}
    with pytest.raises(ConfigError, match=r"fold: adapters \(lora_rank\) always train folded"):
        study_spec.build(raw, "test", None)
    assert study_spec.build({**raw, "objective": "m:f", "model": None, "data": None, "fold": None}, "test", None)


def test_a_missing_model_or_package_is_named(tmp_path, monkeypatch):
    tiny.save_model(tmp_path / "model")
    array = open_array(tmp_path)
    array.load(0, TrialSpec(0, MIXED[0], 1))
    array.advance()
    array.save_weights(0, tmp_path / "kept")
    (tmp_path / "model").rename(tmp_path / "moved")
    with pytest.raises(ModelError, match="has to be where it was when the study ran"):
        peft_files.merged(tmp_path / "kept")
    monkeypatch.setitem(sys.modules, "peft", None)
    for needs in (lambda: peft_files.merged(tmp_path / "kept"), lambda: LoraAdaptation(array.adaptation.lora)):
        with pytest.raises(MissingExtraError, match=r"pip install 'hpo\[lora\]'"):
            needs()


def test_targets_that_a_model_does_not_have_are_named():
    (model,) = architectures.models("xlnet", 1)
    with pytest.raises(ModelError, match="XLNetForSequenceClassification has no layers that lora_targets: attention"):
        Lora(("all_linear", "attention"), 2).install(model)


def test_the_defaults_are_those_of_the_paper_and_the_targets_those_there_are():
    assert [DEFAULTS[f"lora_{name}"] for name in ("rank", "alpha", "targets")] == [8, 8.0, "query_value"]
    assert HYPERPARAMETERS["lora_targets"].choices == tuple(LORA_TARGETS)
