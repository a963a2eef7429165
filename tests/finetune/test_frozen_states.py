"""Trials with frozen layers, whose states are computed once, equal trials that run the whole model in every pass."""

import csv
import re

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForSequenceClassification
from trials import MIXED, SPACE, curves, open_array, run, same

from hpo.analysis import preflight
from hpo.config import study_spec
from hpo.core.errors import ModelError, StudyError
from hpo.core.formatting import size
from hpo.core.trainer import TrialSpec
from hpo.execution import run_study
from hpo.finetune import trial_start
from hpo.finetune.folded.engine import FoldedEngine
from hpo.finetune.frozen_states import FrozenStates
from hpo.finetune.models import frozen
from hpo.finetune.models.loading import load_model
from hpo.finetune.plain import PlainEngine

# What lies below a line after the first layer, in every family here.
BELOW = re.compile(r"embed|\.wte|\.encoder\.LayerNorm|layers?\.0(\.|$)|relative_attention_bias")
FAMILIES = ["bert", "electra", "distilbert", "deberta-v2", "modernbert", "roberta"]


def opened(folder, numbers=1, **overrides):
    return open_array(folder, **{"fold": False, "space": SPACE | {"frozen_layers": numbers}, **overrides})


def freezing(layers, trials=MIXED):
    return [{**each, "frozen_layers": layers} for each in trials]


@pytest.fixture
def reference(monkeypatch):
    """Let trials freeze the first layer as one would by hand, and compute it in every pass."""
    reset = trial_start.reset

    def resetting(setup, adaptation, model, trial, params):
        reset(setup, adaptation, model, trial, params)
        for name, module in model.named_modules():
            if BELOW.search(name):
                module.eval()  # no dropout
                module.train = lambda mode=True, module=module: module
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not BELOW.search(name))

    monkeypatch.setattr(trial_start, "reset", resetting)


def equal_rows(path, count):
    """Write rows of one length, so that batches of 32 have one shape wherever a row is."""
    rng = np.random.default_rng(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for label in ["good", "bad"] * (count // 2):
            words = [*rng.choice(tiny.FILLER, 8), *rng.choice(tiny.TOPICS[label], 2)]
            writer.writerow([" ".join(words), label])
    return str(path)


@pytest.mark.bits
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_trials_are_to_the_bit_those_that_compute_the_frozen_layers_in_every_pass(tmp_path, reference, kind, precision):
    """Where the batches of training have the shape of those in which the states were computed."""
    tiny.save_model(tmp_path / "model", kind)
    data = {"train": equal_rows(tmp_path / "equal.csv", 128), "validation": 32, "test": 32}
    trials = [
        {"learning_rate": 3e-3, "epochs": 2, "batch_size": 32},
        {"learning_rate": 1e-2, "epochs": 1, "batch_size": 64, "dropout": 0.3, "layer_decay": 0.8, "weight_decay": 0.1},
    ]
    common = {"data": data, "precision": precision, "micro_batch": 32}
    expected = curves(open_array(tmp_path, fold=False, **common), trials)
    found = curves(opened(tmp_path, **common), freezing(1, trials))
    for number in expected:
        *curve, weights = expected[number]
        assert found[number][:-1] == curve
        trained = {name: weight for name, weight in weights.items() if not BELOW.search(name)}
        assert found[number][-1].keys() == trained.keys()
        assert [name for name, weight in trained.items() if not torch.equal(found[number][-1][name], weight)] == []


def in_float64(*args):
    model, head = load_model(*args)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # biases are 0 in a new model, but not in a trained one
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.double(), head


def assert_close(found, expected, trials):
    for number in range(len(trials)):
        *curve, weights = expected[number]
        for (_, _, metrics), (_, _, wanted) in zip(found[number][:-1], curve, strict=True):
            assert metrics["loss"] == pytest.approx(wanted["loss"], rel=1e-6)
        compared = 0
        for name, weight in found[number][-1].items():
            if weight.is_floating_point() and "key.bias" not in name:  # its gradient is rounding alone
                norm = max(float(weights[name].norm()), 1e-3)
                assert (weight - weights[name]).norm() <= 1e-9 * norm, name
                compared += 1
        assert compared > 10


@pytest.mark.parametrize("kind", FAMILIES)
def test_rows_of_any_length_in_batches_of_any_size(tmp_path, monkeypatch, reference, kind):
    """To 1e-9 in float64: in batches of other shapes the last bits of a row's states may differ."""
    monkeypatch.setattr("hpo.finetune.setup.load_model", in_float64)
    tiny.save_model(tmp_path / "model", kind)
    expected = curves(open_array(tmp_path, fold=False), MIXED)
    assert_close(curves(opened(tmp_path), freezing(1)), expected, MIXED)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "electra", "modernbert"])
def test_folded_trials_equal_separate_trials(tmp_path, monkeypatch, kind, layers):
    """To 1e-9 in float64, packed where the family packs; layers=2 are all that the model has."""
    monkeypatch.setattr("hpo.finetune.setup.load_model", in_float64)
    monkeypatch.setattr("hpo.finetune.folded.program_builder.WORTH_PACKING", 10.0)
    monkeypatch.setattr(PlainEngine, "window", FoldedEngine.window)
    tiny.save_model(tmp_path / "model", kind)
    trials = [{**each, "dropout": 0.0} for each in freezing(layers)]  # masks depend on the arrangement of tokens
    folded = opened(tmp_path, layers, fold=True, slots=3)
    assert isinstance(folded.engine, FoldedEngine), folded.notes
    assert folded.facts["program"] == ("folded" if kind == "deberta-v2" else "packed")
    expected = curves(opened(tmp_path, layers), trials)
    if layers == 1:
        assert_close(curves(folded, trials), expected, trials)
    else:
        found = curves(folded, trials)
        assert all(found[n][-2][2]["loss"] == pytest.approx(expected[n][-2][2]["loss"], rel=1e-6) for n in expected)


@pytest.mark.bits
@pytest.mark.parametrize(
    "settings", [{"slots": 3, "threads": 3}, {"slots": 2, "fold": True}, {"slots": 4, "fold": True}]
)
def test_slots_and_neighbours_do_not_matter_to_the_bit(tmp_path, settings):
    alone = curves(opened(tmp_path, **{**settings, "slots": 1, "threads": 1}), freezing(1))
    together = curves(opened(tmp_path, **settings), freezing(1), order=[3, 1, 4, 0, 2])
    assert [number for number in alone if not same(alone[number], together[number])] == []


@pytest.mark.bits
@pytest.mark.parametrize("slots", [1, 3])
def test_trials_of_one_study_may_freeze_different_numbers_of_layers(tmp_path, slots):
    numbers = [0, 1, 0, 1, 0]
    trials = [{**each, "frozen_layers": n} for each, n in zip(MIXED, numbers, strict=True)]
    found = curves(opened(tmp_path, [0, 1], slots=slots, threads=slots), trials)
    own = {0: curves(open_array(tmp_path, fold=False)), 1: curves(opened(tmp_path), freezing(1))}
    assert [n for n in found if not same(found[n], own[numbers[n]][n])] == []


def test_slots_are_measured_with_frozen_layers(tmp_path):
    array = opened(tmp_path, fold=True, slots="auto")
    assert array.fastest_slots(2) in (1, 2)
    array.load(0, TrialSpec(0, freezing(1)[0], 0))
    assert "bert.encoder.layer.0.output.dense.weight" not in array.engine.occupied[0].parameters
    assert array.advance()[0].at == 30


def test_speed_is_measured_without_the_states(tmp_path, monkeypatch):
    monkeypatch.setattr(FrozenStates, "_compute", lambda *given: pytest.fail("computed"))
    for fold, numbers in ((False, 1), (False, [0, 1, 2]), (True, 1)):
        assert opened(tmp_path, numbers, fold=fold).seconds_per_example() > 0


def test_without_frozen_layers_in_its_space_a_study_has_none(tmp_path):
    array = open_array(tmp_path, fold=False)
    assert array.setup.frozen is None
    assert frozen.of(array.setup.model) is None


@pytest.mark.bits
@pytest.mark.parametrize(
    ("settings", "numbers"),
    [({"slots": 2}, 1), ({"slots": 2, "threads": 2}, [0, 1, 2]), ({"slots": 2, "fold": True}, 1)],
)
def test_a_trial_goes_on_from_its_checkpoint_to_the_bit(tmp_path, settings, numbers):
    params = {"learning_rate": 3e-3, "epochs": 2, "batch_size": 16, "frozen_layers": 1}
    here, there = (opened(tmp_path, numbers, **settings) for _ in range(2))
    evaluations = run(here, params)
    whole = {name: weight.clone() for name, weight in here.engine.occupied[0].weights.items()}
    here.unload(0)
    here.load(0, TrialSpec(0, params, 1))
    here.advance()
    kept = here.save(0)
    assert not any("layer.0." in name or "embeddings" in name for name in kept.tensors)
    there.load(1, TrialSpec(0, params, 1, kept))
    rest = [there.advance()[1] for _ in evaluations[1:]]
    assert [(e.at, e.value, dict(e.metrics)) for e in rest] == [
        (e.at, e.value, dict(e.metrics)) for e in evaluations[1:]
    ]
    assert all(torch.equal(whole[name], weight) for name, weight in there.engine.occupied[1].weights.items())


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("kind", ["bert", "modernbert", "distilbert"])
def test_what_is_written_is_the_whole_model_and_predicts_as_the_trial(tmp_path, kind, fold):
    tiny.save_model(tmp_path / "model", kind)
    array = opened(tmp_path, fold=fold)
    run(array, {"weight_decay": 0.5, "frozen_layers": 1})
    engine = array.engine
    if fold:
        answers = {name: each[0] for name, each in engine._answers_of_all("validation").items()}
        of_trial = array.setup.predictions("validation", answers)
    else:
        of_trial = array.setup.predict(engine.occupied[0].model, "validation")
    engine.occupied[0].hold(1.0, {})
    array.save_weights(0, tmp_path / "kept")
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "kept")
    pretrained = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    for name, weight in whole.base_model.named_parameters():
        frozen_one = BELOW.search(f".{name}") is not None
        assert torch.equal(weight, pretrained.base_model.get_parameter(name)) == frozen_one, name
    again = array.predictions_of(tmp_path / "kept", "validation")
    np.testing.assert_allclose(again.logits, of_trial.logits, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- the file


def states_of(folder, **overrides):
    """Compute the states of a study as `hpo run` does, and return them with their file."""
    array = opened(folder, **overrides)
    array.setup.frozen.folder = folder / "frozen"
    array.setup.compute_frozen()
    (file,) = (folder / "frozen").glob("*.states")
    return array.setup.frozen.of(array.setup.model, 1), file


def test_a_row_has_the_states_that_the_model_gives_it_alone(tmp_path):
    splits, _ = states_of(tmp_path)
    setup = opened(tmp_path).setup
    model, _ = load_model(str(tmp_path / "model"), tmp_path, setup.task, setup.data.labels)
    setup.vocabulary.cut(model)
    for split, tokens in splits.items():
        for row in (0, 3, len(tokens.lengths) - 1):
            inputs, _ = tokens.batch(np.array([row]), int(tokens.lengths.max()))
            states = inputs.pop("states")
            with torch.no_grad():
                wanted = model.eval()(**inputs, output_hidden_states=True).hidden_states[1]
            real = inputs["attention_mask"].bool()
            torch.testing.assert_close(states[real], wanted[real], msg=split)
            assert not states[~real].any()


def test_states_do_not_depend_on_threads_to_the_bit(tmp_path):
    one, _ = states_of(tmp_path)
    three, _ = states_of(tmp_path, threads=3)
    torch.manual_seed(1)
    assert all(torch.equal(one[split].states, three[split].states) for split in one)


def test_a_whole_file_is_read_and_not_computed_again(tmp_path, monkeypatch):
    first, file = states_of(tmp_path)
    written = file.stat().st_mtime_ns
    monkeypatch.setattr(FrozenStates, "_compute", lambda *given: pytest.fail("computed again"))
    again, same_file = states_of(tmp_path)
    assert same_file == file
    assert file.stat().st_mtime_ns == written
    assert all(torch.equal(first[split].states, again[split].states) for split in first)


@pytest.mark.parametrize("damage", ["a byte", "cut", "empty"])
def test_a_damaged_file_is_computed_again(tmp_path, damage):
    first, file = states_of(tmp_path)
    expected = {split: tokens.states.clone() for split, tokens in first.items()}
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.unlink()  # the first array has it mapped
    file.write_bytes({"a byte": bytes(content), "cut": bytes(content[:-4]), "empty": b""}[damage])
    again, new = states_of(tmp_path)
    assert new == file
    assert all(torch.equal(expected[split], again[split].states) for split in expected)


def test_an_unfinished_file_is_not_read(tmp_path):
    first, file = states_of(tmp_path)
    file.rename(file.with_name(file.name.rpartition("-")[0] + ".unfinished"))
    again, new = states_of(tmp_path)
    assert new == file
    assert [path.name for path in (tmp_path / "frozen").glob("*.unfinished")] == []
    assert all(torch.equal(first[split].states, again[split].states) for split in first)


@pytest.mark.parametrize("change", ["layers", "rows", "weights", "precision"])
def test_the_file_is_of_these_rows_weights_and_layers(tmp_path, change):
    states_of(tmp_path)
    if change == "rows":
        tiny.write_csv(tmp_path / "data.csv", seed=1)
    elif change == "weights":
        tiny.save_model(tmp_path / "model", seed=1)
    array = opened(tmp_path, 2 if change == "layers" else 1, precision="bf16" if change == "precision" else "fp32")
    array.setup.frozen.folder = tmp_path / "frozen"
    array.setup.compute_frozen()
    assert len(list((tmp_path / "frozen").glob("*.states"))) == 2


def test_its_size_is_known_before(tmp_path):
    array = opened(tmp_path)
    said = array.setup.frozen.bytes
    tokens = sum(int(each.lengths.sum()) for each in array.setup.tokens.values())
    assert said == tokens * 32 * 4
    _, file = states_of(tmp_path)
    assert file.stat().st_size == said


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "frozen").write_text("a file")
    array = opened(tmp_path)
    array.setup.frozen.folder = tmp_path / "frozen"
    with pytest.raises(
        StudyError, match=r"the states of frozen_layers: 1 \(.+ kB\) cannot be kept in .*frozen \(File exists\)"
    ):
        array.setup.compute_frozen()


def test_more_layers_than_the_model_has(tmp_path):
    with pytest.raises(ModelError, match="frozen_layers: 5 is more than the 2 layers"):
        opened(tmp_path, [1, 5])


# ---------------------------------------------------------------- a study


def test_a_check_says_how_large_the_file_will_be_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = tiny.study(tmp_path, space={"epochs": [1, 2], "frozen_layers": [0, 1, 2]})
    said = preflight.check(study_spec.build(raw, "test", tmp_path), "sqlite:///hpo.db").facts["frozen layers"]
    nbytes = opened(tmp_path, [0, 1, 2]).setup.frozen.bytes
    assert said == f"computed once and kept in runs/tiny/frozen: {size(nbytes)} each for 1, 2"
    assert not (tmp_path / "runs").exists()


def test_a_study_keeps_its_states_in_its_folder_and_goes_on_with_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def ran(trials):
        raw = tiny.study(tmp_path, space={"learning_rate": [1e-3, 3e-3], "epochs": 1, "frozen_layers": [0, 1]})
        finished = run_study.run(study_spec.build({**raw, "trials": trials}, "test", tmp_path), "sqlite:///hpo.db")
        return [trial.state.name for trial in finished.study.trials]

    assert ran(2) == ["COMPLETE"] * 2
    (file,) = (tmp_path / "runs" / "tiny" / "frozen").glob("1-*.states")
    written = file.stat().st_mtime_ns
    assert ran(4) == ["COMPLETE"] * 4
    assert file.stat().st_mtime_ns == written


def test_a_study_that_asks_for_more_layers_than_there_are_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = study_spec.build(tiny.study(tmp_path, space={"epochs": [1, 2], "frozen_layers": 9}), "test", tmp_path)
    with pytest.raises(ModelError, match="frozen_layers: 9 is more than the 2 layers"):
        run_study.run(study, "sqlite:///hpo.db")
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "hpo.db").exists()
