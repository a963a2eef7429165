import hashlib
import math

import numpy as np
import pytest
import tiny
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from trials import MIXED, SPACE, advanced_beside_nan, curves, open_array, same

from hpo.config import study_spec
from hpo.core.errors import ArrayShrankError, OutOfMemoryError
from hpo.core.seeds import derived_seed
from hpo.core.trainer import Evaluation, TrialSpec
from hpo.execution import run_study, trial_arrays
from hpo.finetune import device
from hpo.finetune.folded import engine, program_builder
from hpo.finetune.folded.engine import FoldedEngine
from hpo.finetune.models import dropout
from hpo.finetune.models.loading import load_model
from hpo.finetune.plain import PlainEngine
from hpo.finetune.setup import Setup
from hpo.finetune.slot import Slot
from hpo.recipe.schedules import SCHEDULES


@pytest.fixture(autouse=True, scope="module")
def packed():
    """Pack tokens although these rows have nearly the same length."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program_builder, "WORTH_PACKING", 10.0)
        yield


# ---------------------------------------------------------------- independence of slots


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return curves(open_array(tmp_path_factory.mktemp("alone"), slots=1))


@pytest.mark.bits
@pytest.mark.parametrize(("slots", "order"), [(2, None), (3, [4, 2, 0, 1, 3]), (4, None), (5, [1, 0, 3, 2, 4])])
def test_a_trial_is_to_the_bit_the_same_whatever_the_slots_neighbours_and_refills(tmp_path, alone, slots, order):
    together = curves(open_array(tmp_path, slots=slots), order=order)
    assert [number for number in alone if not same(alone[number], together[number])] == []


@pytest.mark.bits
def test_a_padded_trial_is_to_the_bit_the_same_too(tmp_path, monkeypatch):
    assert open_array(tmp_path).facts["program"] == "packed"
    monkeypatch.setattr(program_builder, "WORTH_PACKING", 0.0)
    alone = curves(open_array(tmp_path, slots=1))
    array = open_array(tmp_path, slots=3)
    assert array.facts["program"] == "folded"
    together = curves(array, order=[2, 4, 1, 0, 3])
    assert [number for number in alone if not same(alone[number], together[number])] == []


@pytest.mark.bits
def test_a_trial_with_two_threads_is_to_the_bit_the_same_too(tmp_path):
    alone = curves(open_array(tmp_path, slots=1, threads=2))
    array = open_array(tmp_path, slots=3, threads=2)
    assert array.engine.threads == torch.get_num_threads() == 2
    together = curves(array, order=[2, 4, 1, 0, 3])
    assert [number for number in alone if not same(alone[number], together[number])] == []


@pytest.mark.parametrize("reproducible", [True, False])
def test_products_that_depend_on_memory_are_noted(tmp_path, monkeypatch, reproducible):
    monkeypatch.setattr(device, "reproducible_products", lambda: reproducible)
    assert (engine.DISPLACED.format(mode=device.reproducible_mode()) in open_array(tmp_path).notes) == (
        not reproducible
    )


def test_masks_come_from_the_trials_seed_step_and_micro_batch(tmp_path):
    array = open_array(tmp_path, slots=1)
    keys = []
    for seed in (100, 101):
        array.load(0, TrialSpec(0, MIXED[1], seed))
        plan = array.engine._planned(array.engine.occupied[0])
        ends = [number for number, micro in enumerate(plan) if micro.rates is not None]
        begins = [0, *(number + 1 for number in ends[:-1])]
        assert [micro.key for micro in plan] == [
            dropout.key(derived_seed(seed, "dropout", step), part)
            for step, (begin, end) in enumerate(zip(begins, ends, strict=True))
            for part in range(end - begin + 1)
        ]
        keys += [micro.key for micro in plan]
        array.unload(0)
        assert len(ends) == 2
    assert len(set(keys)) == len(keys)


def test_another_seed_gives_another_trial(tmp_path, alone):
    array = open_array(tmp_path, slots=1)
    array.load(0, TrialSpec(0, MIXED[0], 7))
    assert array.advance()[0].metrics != alone[0][0][2]


def test_a_folded_trial_is_close_to_a_separate_trial(tmp_path):
    """The same batches through a separate model, padded to their own length; without dropout."""
    params = [{**each, "dropout": 0.0, "learning_rate": each["learning_rate"] / 30} for each in MIXED]
    folded = curves(open_array(tmp_path, slots=5), params)
    plain = open_array(tmp_path, fold=False)
    assert type(plain.engine) is PlainEngine
    plain.engine.window = FoldedEngine.window
    for number, expected in curves(plain, params).items():
        for (at, _, metrics), (at_own, _, own) in zip(folded[number][:-1], expected[:-1], strict=True):
            assert at == at_own
            assert metrics["loss"] == pytest.approx(own["loss"], rel=2e-5)
        for name, weight in folded[number][-1].items():
            if "key.bias" not in name:  # its gradient is zero but for rounding, which AdamW turns into whole steps
                torch.testing.assert_close(weight, expected[-1][name], rtol=1e-3, atol=2e-5)


GRID = {"learning_rate": [1e-3, 3e-3], "batch_size": [8, 17], "epochs": [1, 2], "dropout": [0.0, 0.2]}


@pytest.mark.parametrize(("sampler", "space"), [("random", SPACE), ("grid", GRID)])
def test_a_whole_study_gives_the_same_table_with_one_slot_and_with_four(tmp_path, monkeypatch, sampler, space):
    monkeypatch.chdir(tmp_path)
    tables, weights = [], []
    for slots in (1, 4):
        raw = tiny.study(tmp_path, fold=True, slots=slots, trials=10, space=space, sampler=sampler, metric="loss")
        study = study_spec.build({**raw, "name": f"s{slots}", "keep_best": 10}, "test", tmp_path)
        finished = run_study.run(study, f"sqlite:///{tmp_path}/{slots}.db")
        assert finished.array.slots == slots
        tables.append([(t.number, t.state, t.params, t.value, t.intermediate_values) for t in finished.study.trials])
        kept = sorted((finished.folder / "trials").glob("*/model.safetensors"))
        weights.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in kept])
    assert tables[0] == tables[1]
    assert weights[0] == weights[1]
    assert len(set(weights[0])) == 10
    assert len({row[3] for row in tables[0]}) == 10  # losses, in which a difference would show
    assert {row[1] for row in tables[0]} == {TrialState.COMPLETE}


# ---------------------------------------------------------------- neighbours that fail


def test_a_slot_full_of_nan_leaves_the_others_as_they_are(tmp_path, alone):
    array = open_array(tmp_path, slots=3)
    first = advanced_beside_nan(array)
    array.unload(1)
    array.load(1, TrialSpec(3, MIXED[3], 103))  # the next trial in the slot is not affected
    second = array.advance()
    for slot, (number, outcome) in {0: (0, first[0]), 2: (2, first[2]), 1: (3, second[1])}.items():
        assert (outcome.at, outcome.value, outcome.metrics) == alone[number][0], slot


def test_out_of_memory_halves_the_slots_then_the_micro_batch_and_says_so(tmp_path, monkeypatch):
    array = open_array(tmp_path, slots=4)
    room = {"slots": 1, "rows": 4}

    def train(self):
        if self.slots > room["slots"] or self.micro_batch > room["rows"]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self)

    original = FoldedEngine._train
    monkeypatch.setattr(FoldedEngine, "_train", train)
    said = []
    while True:
        for slot in range(array.slots):
            array.load(slot, TrialSpec(slot, MIXED[slot], 100 + slot))
        outcomes = array.advance()
        if not isinstance(outcomes[0], ArrayShrankError):
            break
        assert all(isinstance(outcome, ArrayShrankError) for outcome in outcomes.values())
        said.append(str(outcomes[0]))
        for slot in outcomes:
            array.unload(slot)
    assert said == [
        "out of memory: the array goes on with 2 slots",
        "out of memory: the array goes on with 1 slot",
        "out of memory: the array goes on with micro-batches of 4",
    ]
    assert isinstance(outcomes[0], Evaluation)
    room["rows"] = 0
    for _ in range(2):
        array.unload(0)
        array.load(0, TrialSpec(0, MIXED[0], 100))
        assert isinstance(array.advance()[0], ArrayShrankError)
    array.unload(0)
    array.load(0, TrialSpec(0, MIXED[0], 100))
    assert isinstance(array.advance()[0], OutOfMemoryError)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (FoldedEngine, "_train"),
        (FoldedEngine, "_answers_of_all"),
        (Slot, "hold"),  # it copies the best weights
        (program_builder, "Program"),
    ],
)
def test_a_study_that_runs_out_of_memory_ends_with_the_same_table(tmp_path, monkeypatch, owner, name):
    raw = tiny.study(tmp_path, fold=True, slots=4, trials=5, space=SPACE, metric="loss")
    undisturbed = run_study.run(study_spec.build({**raw, "name": "a"}, "test", tmp_path), f"sqlite:///{tmp_path}/a.db")
    original = getattr(owner, name)

    def limited(*args, **kwargs):
        if opened[0].slots > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(*args, **kwargs)

    opened = []
    inner = trial_arrays.open_array
    monkeypatch.setattr(run_study, "open_array", lambda study: opened.append(inner(study)) or opened[0])
    monkeypatch.setattr(owner, name, limited)
    shrunk = run_study.run(study_spec.build({**raw, "name": "b"}, "test", tmp_path), f"sqlite:///{tmp_path}/b.db")
    assert shrunk.array.slots == 2
    tables = [
        [(t.params, t.value, t.intermediate_values, t.state) for t in s.study.trials] for s in (undisturbed, shrunk)
    ]
    assert tables[0] == tables[1]


# ---------------------------------------------------------------- written models, and models that cannot fold


def test_written_weights_are_those_of_one_trial(tmp_path):
    array = open_array(tmp_path, slots=2)
    array.load(1, TrialSpec(0, MIXED[0], 100))
    outcome = array.advance()[1]
    logits = array.engine._answers_of_all("validation")["logits"][1]
    assert array.save_weights(1, tmp_path / "kept")
    loaded = array.predictions_of(tmp_path / "kept", "validation")
    np.testing.assert_allclose(loaded.logits, logits, atol=1e-5)
    assert outcome.metrics["loss"] > 0


@pytest.mark.bits
@pytest.mark.parametrize("kind", [kind for kind in tiny.SIZES if kind != "bert"])
def test_other_architectures_train_folded(tmp_path, kind):
    """With dropout in modules, in functions and in attention, or without."""
    tiny.save_model(tmp_path / "model", kind)
    trials = [{**MIXED[0], "epochs": 1}, {**MIXED[1], "dropout": 0.3}, {**MIXED[2], "epochs": 1, "dropout": 0.1}]
    one = curves(open_array(tmp_path, slots=1), trials)
    array = open_array(tmp_path, slots=3)
    assert isinstance(array.engine, FoldedEngine), array.notes
    three = curves(array, trials)
    assert [number for number in one if not same(one[number], three[number])] == []


def test_a_model_that_draws_masks_in_its_own_way_trains_one_trial_at_a_time_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(Setup, "_draws_all_masks", lambda self: False)
    array = open_array(tmp_path, slots=4)
    assert type(array.engine) is PlainEngine
    assert array.slots == 1
    assert "trials train one after the other" in array.notes[0]


# ---------------------------------------------------------------- against separate models


TRIAL = st.fixed_dictionaries(
    {
        "learning_rate": st.floats(1e-5, 1e-4),
        "batch_size": st.sampled_from([3, 8, 17, 24]),
        "epochs": st.integers(1, 2),  # more where they are fewer than 20 steps
        "schedule": st.sampled_from(list(SCHEDULES)),
        "warmup_ratio": st.sampled_from([0.0, 0.3]),
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "layer_decay": st.sampled_from([1.0, 0.8]),
        "label_smoothing": st.sampled_from([0.0, 0.1]),
        "max_grad_norm": st.sampled_from([0.1, 1.0]),
        "dropout": st.just(0.0),
    }
)


@pytest.fixture(scope="module", params=["bert-fp64", "bert-fp32", "deberta-v2-fp64", "qwen3-fp64"])
def beside(request, tmp_path_factory):
    """A folded array, an array with a model for each trial, and the tolerance."""
    folder = tmp_path_factory.mktemp("beside")
    kind, _, precision = request.param.rpartition("-")
    tiny.save_model(folder / "model", kind)

    def load(*args):
        model, head = load_model(*args)
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():  # biases are 0 in a new model, but not in a trained one
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        return (model.double() if precision == "fp64" else model), head

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hpo.finetune.setup.load_model", load)
        data = {"train": str(folder / "data.csv"), "validation": 30, "test": 30, "rows": 100}
        plain = open_array(folder, fold=False, data=data)
        plain.engine.window = FoldedEngine.window
        folded = open_array(folder, slots=3, data=data)
        assert isinstance(folded.engine, FoldedEngine), folded.notes
        return folded, plain, 1e-9 if precision == "fp64" else 1e-5


@given(trials=st.lists(TRIAL, min_size=3, max_size=3))
@settings(max_examples=5, deadline=None, derandomize=True, phases=[Phase.generate])
def test_folded_trials_equal_separate_trials(beside, trials):
    """For any settings, after 20 steps or more: the error of each weight is small relative to its norm."""
    folded, plain, close = beside
    rows = len(plain.setup.tokens["train"].lengths)
    for params in trials:
        params["epochs"] = max(params["epochs"], math.ceil(20 / math.ceil(rows / params["batch_size"])))
    together, expected = curves(folded, trials), curves(plain, trials)
    for number, params in enumerate(trials):
        for (_, _, metrics), (_, _, own) in zip(together[number][:-1], expected[number][:-1], strict=True):
            assert metrics["loss"] == pytest.approx(own["loss"], rel=max(close, 1e-6))  # logits are told in float32
        steps = params["epochs"] * math.ceil(rows / params["batch_size"])
        assert steps >= 20
        for name, weight in together[number][-1].items():
            own = expected[number][-1][name]
            if "key.bias" in name:  # its gradient is zero but for rounding, which AdamW turns into whole steps
                assert (weight - own).abs().max() <= 2 * steps * params["learning_rate"]
            elif weight.is_floating_point():
                size = max(float(own.norm()), 1e-3)  # the head's bias begins at 0
                assert (weight - own).norm() <= close * size, name


# ---------------------------------------------------------------- the number of slots


@pytest.mark.parametrize(
    ("speeds", "fits", "most", "chosen"),
    [
        ({1: 10, 2: 19, 4: 30, 8: 31, 16: 99}, 64, 20, 4),  # 8 gain too little, so 16 are not tried
        ({1: 10, 2: 19, 4: 38, 8: 70}, 4, 20, 4),
        ({1: 10, 2: 19, 4: 38, 5: 47}, 64, 5, 5),
        ({1: 10, 2: 9}, 64, 20, 1),
        ({1: 10}, 64, 1, 1),
        ({}, 0, 20, 1),
    ],
)
def test_slots_are_doubled_while_that_is_faster_and_fits(tmp_path, monkeypatch, speeds, fits, most, chosen):
    def speed(self, slots):
        if slots > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return speeds[slots]

    array = open_array(tmp_path, slots="auto")
    monkeypatch.setattr(FoldedEngine, "_speed", speed)
    assert array.fastest_slots(most) == chosen


def test_a_measurement_does_not_change_later_trials(tmp_path, alone):
    array = open_array(tmp_path, slots="auto")
    assert array.engine._speed(3) > 0
    assert array.fastest_slots(2) in (1, 2)
    array.slots = 2
    again = curves(array)
    assert all(same(alone[number], again[number]) for number in alone)


def test_a_study_remembers_how_many_slots_it_measured(tmp_path, monkeypatch):
    raw = tiny.study(tmp_path, fold=True, slots="auto", trials=3, space=SPACE)
    url = f"sqlite:///{tmp_path}/a.db"

    def slots(trials):
        return run_study.run(study_spec.build({**raw, "trials": trials}, "test", tmp_path), url).array.slots

    monkeypatch.setattr(FoldedEngine, "fastest_slots", lambda self, most: min(most, 4))
    assert slots(3) == 3  # as many as there are trials; more were not measured
    with monkeypatch.context() as patch:
        patch.setattr(FoldedEngine, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            slots(5)
    monkeypatch.setattr(FoldedEngine, "fastest_slots", None)
    assert slots(6) == 4


def interrupted(array):
    raise KeyboardInterrupt
