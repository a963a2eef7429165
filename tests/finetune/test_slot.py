"""A trial that goes on from what was kept of it ends as one that was never interrupted: to the bit."""

import itertools
import json
import math
import threading
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpo.config import study_spec
from hpo.core.interrupts import StopRequest
from hpo.core.trainer import Evaluation, TrialCheckpoint, TrialSpec
from hpo.execution import trial_arrays
from hpo.execution.checkpoint_store import Checkpoint, Checkpoints
from hpo.finetune.folded.engine import FoldedEngine
from hpo.finetune.lora.adaptation import LoraAdaptation
from hpo.finetune.plain import PlainEngine
from hpo.finetune.slot import Slot

# Of 40 rows: batches that fill their micro-batches of 8 or do not, the last of an epoch a short one.
TRIALS = [
    {"learning_rate": 3e-3, "epochs": 2, "batch_size": 16},
    {"learning_rate": 1e-3, "epochs": 1, "batch_size": 17, "schedule": "cosine", "dropout": 0.3, "layer_decay": 0.8},
    {"learning_rate": 2e-3, "epochs": 1, "batch_size": 8, "warmup_ratio": 0.3, "label_smoothing": 0.1},
    {"learning_rate": 5e-3, "epochs": 2, "batch_size": 64, "weight_decay": 0.1, "max_grad_norm": 0.1},
]
RANKS = [{"lora_rank": rank, "lora_dropout": 0.1, "lora_targets": "all_linear"} for rank in (2, 4, 1, 3)]
RATES = {"low": 1e-4, "high": 1e-2, "log": True}
SPACE = {"learning_rate": RATES, "batch_size": [8, 16, 17, 64], "epochs": [1, 2], "layer_decay": [1.0, 0.8]}
KINDS = {
    "one after the other": (PlainEngine, {"slots": 1}),
    "side by side": (PlainEngine, {"slots": 3, "threads": 3}),
    "folded": (FoldedEngine, {"slots": 3, "fold": True}),
    "lora": (FoldedEngine, {"slots": 3, "space": {**SPACE, "lora_rank": [1, 2, 3, 4], "lora_targets": "all_linear"}}),
}


def opened(folder, kind):
    """Return a function that opens arrays of one kind, all on the same rows and pretrained weights."""
    cls, settings = KINDS[kind]

    def open_array(**overrides):
        data = {"train": str(folder / "data.csv"), "rows": 60, "validation": 10, "test": 10}
        raw = tiny.study(folder, **{"space": SPACE, "data": data, **settings, **overrides})
        array = trial_arrays.open_array(study_spec.build(raw, "test", folder))
        assert type(array.engine) is cls, array.notes
        return array

    return open_array


@pytest.fixture(scope="module", params=KINDS)
def arrays(request, tmp_path_factory):
    """Two arrays of one kind, and the results of trials without an interruption."""
    open_array = opened(tmp_path_factory.mktemp("study"), request.param)
    here, there = open_array(), open_array()
    return here, there, [finished(here, {0: spec(here, number)})[0] for number in range(len(TRIALS))]


def spec(array, number, kept=None):
    params = TRIALS[number] | (RANKS[number] if isinstance(array.adaptation, LoraAdaptation) else {})
    return TrialSpec(number, params, 100 + number, kept)


def said(evaluation):
    assert isinstance(evaluation, Evaluation), evaluation
    return evaluation.at, evaluation.value, dict(evaluation.metrics)


def finished(array, trials, neighbours=()):
    """Load trials into slots, with neighbours in the others, and return slot -> evaluations and the last state."""
    for slot, each in [*trials.items(), *dict(neighbours).items()]:
        array.load(slot, each)
    found, running = {slot: [] for slot in trials}, set(trials)
    while running:
        for slot, outcome in array.advance().items():
            if slot in trials:
                found[slot].append(said(outcome))
            if outcome.last:
                if slot in trials:
                    held = array.engine.occupied[slot]
                    best = {name: weight.clone() for name, weight in held.best_weights.items()}
                    found[slot] += [best, held.best, held.best_decay, held.decay, held.seen]
                running.discard(slot)
                array.unload(slot)
    for slot in range(array.slots):
        array.unload(slot)
    return found


def same(one, other):
    """Return whether evaluations, best weights and all numbers are the same, to the bit."""
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        if isinstance(mine, dict):
            assert mine.keys() == theirs.keys()
            assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
        else:
            assert mine == theirs
    return True


def halted(array, monkeypatch, after, trials):
    """Advance trials until a number of steps is done, over all slots; return slot -> evaluations, and checkpoints."""
    steps, lock = itertools.count(1), threading.Lock()
    owner, name = (FoldedEngine, "_micro_step") if isinstance(array.engine, FoldedEngine) else (Slot, "update")
    original = getattr(owner, name)

    def counted(self, *given):
        result = original(self, *given)
        with lock:
            if next(steps) == after:
                array.stop_request.set()
        return result

    for slot, each in trials.items():
        array.load(slot, each)
    found, ended = {slot: [] for slot in trials}, []
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, counted)
        if after == 0:
            array.stop_request.set()
        while len(ended) < len(trials) and not array.stop_request.is_set():
            for slot, outcome in array.advance().items():
                found[slot].append(said(outcome))
                if outcome.last:
                    ended.append(slot)
                    array.unload(slot)
    kept = {slot: array.save(slot) for slot in trials if slot not in ended}
    for slot in trials:
        array.unload(slot)
    array.stop_request = StopRequest()
    return found, kept


# ---------------------------------------------------------------- to the bit


@pytest.mark.parametrize("number", [0, 1])
def test_a_trial_halted_after_any_step_goes_on_to_the_bit(arrays, monkeypatch, number):
    """Alone in another array, and in the last of its slots."""
    here, there, expected = arrays
    for after in itertools.count():
        found, kept = halted(here, monkeypatch, after, {0: spec(here, number)})
        if not kept:
            break
        rest = finished(there, {there.slots - 1: spec(there, number, kept[0])})[there.slots - 1]
        assert same(found[0] + rest, expected[number]), after
    steps = TRIALS[number]["epochs"] * math.ceil(40 / TRIALS[number]["batch_size"])
    assert after >= steps


@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    after=st.integers(0, 20),
    together=st.permutations(range(len(TRIALS))),
    slots=st.permutations(range(3)),
    neighbour=st.integers(0, len(TRIALS) - 1),
)
def test_trials_halted_together_go_on_in_other_slots_beside_others(
    arrays, monkeypatch, tmp_path, after, together, slots, neighbour
):
    """Through checkpoint files, as another process reads them."""
    here, there, expected = arrays
    several = here.slots
    found, kept = halted(here, monkeypatch, after, {n: spec(here, together[n]) for n in range(several)})
    files = Checkpoints(tmp_path / "checkpoints", "study")
    assert files.save("array", Checkpoint(kept)) is None
    loaded, _ = files.load("array")
    # At most two of the trials that were stopped together, so that one has a neighbour that starts from its seed.
    places = dict(zip(loaded.slots, [slot for slot in slots if slot < several], strict=False))
    gone_on = dict(list(places.items())[: max(1, several - 1)])
    free = [slot for slot in range(several) if slot not in gone_on.values()]
    trials = {slot: spec(there, loaded.slots[n].trial, loaded.slots[n]) for n, slot in gone_on.items()}
    rest = finished(there, trials, {slot: spec(there, neighbour) for slot in free})
    for n, slot in gone_on.items():
        assert same(found[n] + rest[slot], expected[together[n]])


def test_a_halted_array_goes_on_itself_as_if_it_had_not_been(arrays, monkeypatch):
    here, _, expected = arrays
    here.load(0, spec(here, 0))
    found = []
    while not found or not isinstance(found[-1], dict):
        for micro in range(3):
            here.stop_request.set()
            assert here.advance() == {}
            assert here.save(0).state["step"] == here.engine.occupied[0].step, micro
            here.stop_request = StopRequest()
        outcome = here.advance()[0]
        found.append(said(outcome))
        if outcome.last:
            found.append({name: weight.clone() for name, weight in here.engine.occupied[0].best_weights.items()})
    here.unload(0)
    assert same(found, expected[0][: len(found)])


def test_a_chain_of_processes_each_of_one_step_ends_the_same(arrays, monkeypatch):
    here, there, expected = arrays
    found, kept = [], None
    for turn in range(100):
        array = (here, there)[turn % 2]
        slot = turn % array.slots
        step = 2 if isinstance(array.engine, FoldedEngine) else 1  # of two micro-batches
        more, left = halted(array, monkeypatch, step, {slot: spec(array, 0, kept)})
        found += more[slot]
        if not left:
            break
        kept = left[slot]
    assert turn >= 5
    assert found == expected[0][: len(found)]
    assert len(found) == 4


@pytest.mark.parametrize("kind", ["bart", "t5", "albert", "xlnet", "deberta-v2"])
def test_tied_weights_and_other_families_go_on_too(tmp_path, monkeypatch, kind):
    tiny.save_model(tmp_path / "model", kind)
    for name in ("one after the other", "folded"):
        array = opened(tmp_path, name)()
        expected = finished(array, {0: spec(array, 0)})[0]
        found, kept = halted(array, monkeypatch, 5, {0: spec(array, 0)})
        assert found[0]
        rest = finished(array, {array.slots - 1: spec(array, 0, kept[0])})[array.slots - 1]
        assert same(found[0] + rest, expected)


# ---------------------------------------------------------------- checkpoints


def test_a_checkpoint_is_strict_json_and_memory_of_its_own(arrays):
    here, _, expected = arrays
    here.load(0, spec(here, 0))
    start = here.save(0)
    assert start.state["best"] is None
    here.advance()
    kept = here.save(0)
    before = {name: tensor.clone() for name, tensor in kept.tensors.items()}
    assert all(not tensor.requires_grad and tensor.device.type == "cpu" for tensor in kept.tensors.values())
    trained = {name.removeprefix("best.") for name in kept.tensors if name.startswith("best.")}
    assert trained == set(here.engine.occupied[0].parameters)
    for each in (start, kept):
        json.dumps(each.state, allow_nan=False)
    while not here.advance()[0].last:
        pass
    assert all(torch.equal(tensor, before[name]) for name, tensor in kept.tensors.items())
    here.unload(0)
    assert same(finished(here, {0: spec(here, 0, start)})[0], expected[0])


def test_a_checkpoint_of_lora_holds_adapters_and_head_only(tmp_path):
    array = opened(tmp_path, "lora")()
    array.load(0, spec(array, 0))
    array.advance()
    whole = sum(tensor.nbytes for tensor in array.setup.model.state_dict().values())
    names = {name.partition(".")[2] for name in array.save(0).tensors}
    assert names == set(array.engine.occupied[0].parameters)
    assert sum(t.nbytes for n, t in array.save(0).tensors.items() if n.startswith("weights.")) < whole / 2
    assert not array.pause(0)


def changed(kept, state=(), tensors=(), without=()):
    have = {name: tensor for name, tensor in kept.tensors.items() if name not in without}
    left = {name: value for name, value in kept.state.items() if name not in without}
    return TrialCheckpoint(kept.trial, {**left, **dict(state)}, {**have, **dict(tensors)})


MISFITS = {
    "another trial's": lambda kept, name: TrialCheckpoint(3, kept.state, kept.tensors),
    "nothing": lambda kept, name: TrialCheckpoint(kept.trial),
    "no tensors": lambda kept, name: TrialCheckpoint(kept.trial, kept.state),
    "no state": lambda kept, name: TrialCheckpoint(kept.trial, {}, kept.tensors),
    "state of another kind": lambda kept, name: TrialCheckpoint(kept.trial, ["step"], kept.tensors),
    "no step": lambda kept, name: changed(kept, without=["step"]),
    "no best": lambda kept, name: changed(kept, without=["best"]),
    "a text": lambda kept, name: changed(kept, {"decay": "x"}),
    "a list": lambda kept, name: changed(kept, {"seen": [1]}),
    "too many steps": lambda kept, name: changed(kept, {"step": 10**6}),
    "a step before the first": lambda kept, name: changed(kept, {"step": -1}),
    "at its end": lambda kept, name: changed(kept, {"evaluations": 4}),
    "no weight": lambda kept, name: changed(kept, without=[f"weights.{name}"]),
    "no moment": lambda kept, name: changed(kept, without=[f"exp_avg_sq.{name}"]),
    "no moments": lambda kept, name: changed(
        kept, without=[n for n in kept.tensors if n.startswith(("exp_avg", "step."))]
    ),
    "no best weight": lambda kept, name: changed(kept, without=[f"best.{name}"]),
    "another shape": lambda kept, name: changed(kept, tensors={f"weights.{name}": torch.zeros(1)}),
    "a scalar": lambda kept, name: changed(kept, tensors={f"exp_avg.{name}": torch.zeros(())}),
    "another type": lambda kept, name: changed(kept, tensors={f"best.{name}": kept.tensors[f"best.{name}"].double()}),
    "steps of every element": lambda kept, name: changed(kept, tensors={f"step.{name}": torch.zeros(3)}),
    "another model's too": lambda kept, name: changed(kept, tensors={"weights.more": torch.zeros(1)}),
    "another kind": lambda kept, name: changed(kept, tensors={"random": torch.zeros(1)}),
}


def test_a_checkpoint_that_does_not_fit_is_refused_and_the_slot_stays_empty(arrays):
    here, _, expected = arrays
    here.load(0, spec(here, 0))
    here.advance()
    kept = here.save(0)
    name = next(iter(here.engine.occupied[0].parameters))
    here.unload(0)
    spare = len(getattr(here.engine, "_spare", ()))
    for why, misfit in MISFITS.items():
        with pytest.raises((ValueError, KeyError, TypeError)):
            here.load(0, spec(here, 0, misfit(kept, name)))
        assert here.engine.occupied == {}, why
        assert here.advance() == {}
        assert len(getattr(here.engine, "_spare", ())) == spare
    assert same(finished(here, {0: spec(here, 0)})[0], expected[0])
    assert same(expected[0][:1] + finished(here, {0: spec(here, 0, kept)})[0], expected[0])


def test_a_checkpoint_that_does_not_fit_does_not_change_the_neighbour(tmp_path):
    for kind in ("side by side", "folded", "lora"):
        array = opened(tmp_path, kind)()
        expected = finished(array, {0: spec(array, 0)})[0]
        array.load(0, spec(array, 0))
        found = [said(array.advance()[0])]
        kept = array.save(0)
        name = list(array.engine.occupied[0].parameters)[-1]
        for misfit in (kept, changed(TrialCheckpoint(1, kept.state, kept.tensors), without=[f"best.{name}"])):
            with pytest.raises((ValueError, KeyError)):
                array.load(1, spec(array, 1, misfit))
        while array.engine.occupied[0].evaluations < 4:
            outcomes = array.advance()
            assert outcomes.keys() == {0}
            found.append(said(outcomes[0]))
        assert found == expected[:4]


# ---------------------------------------------------------------- stop requests


def test_after_a_stop_request_only_slots_at_the_end_of_their_segment_have_outcomes(tmp_path, monkeypatch):
    """Segments of 20 rows, in one step and in three: after two steps, one slot has reached its end."""
    for kind in ("folded", "lora"):
        array = opened(tmp_path, kind)()
        array.engine.micro_batch = 20
        for slot, size in enumerate([20, 8]):
            trial = spec(array, slot)
            array.load(slot, replace(trial, params={**trial.params, "batch_size": size}))
        original = FoldedEngine._micro_step
        calls = itertools.count(1)

        def halting(self, *given, original=original, calls=calls):
            losses = original(self, *given)
            if next(calls) == 2:
                self.stop_request.set()
            return losses

        with monkeypatch.context() as patch:
            patch.setattr(FoldedEngine, "_micro_step", halting)
            outcomes = array.advance()
        assert outcomes.keys() == {0}
        assert array.save(0).state["evaluations"] == 1
        assert array.save(1).state["step"] == 2
        assert array.advance() == {}


def test_a_checkpoint_in_the_middle_of_a_batch_is_of_the_last_whole_step(tmp_path, monkeypatch):
    array = opened(tmp_path, "folded")()
    assert array.engine.micro_batch == 8
    for after, step in [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2)]:
        _, kept = halted(array, monkeypatch, after, {0: spec(array, 0)})  # two micro-batches a batch
        assert (kept[0].state["step"], kept[0].state["seen"]) == (step, 16 * step)
