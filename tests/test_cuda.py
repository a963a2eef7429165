"""Tests that need a GPU: recorded programs, compared to the bit and without waiting. Skipped without a GPU."""

from contextlib import contextmanager

import pytest
import tiny
import torch
from trials import MIXED, SPACE, advanced_beside_nan, curves, open_array, same

from hpo.core.trainer import TrialSpec
from hpo.finetune.folded import program as folded_program
from hpo.finetune.folded import program_builder
from hpo.finetune.folded.cuda_graph import Replay
from hpo.finetune.folded.engine import FoldedEngine
from hpo.recipe.hyperparameters import DEFAULTS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

ACROSS_SLOTS = 1e-4  # relative, of a loss in float32: products of other shapes are summed in another order
SLOW = [{**each, "learning_rate": each["learning_rate"] / 30} for each in MIXED]
KINDS = ["bert", "qwen3", "modernbert", "deberta-v2", "xlnet"]


@pytest.fixture(autouse=True, params=[10.0, 0.0], ids=["packed", "padded"])
def deterministic(request, monkeypatch):
    """Use kernels that give the same sums each time."""
    monkeypatch.setattr(program_builder, "WORTH_PACKING", request.param)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def on_gpu(folder, **overrides):
    return open_array(folder, device="cuda", **overrides)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_replayed_program_is_the_program_to_the_bit(tmp_path, monkeypatch, kind, precision):
    tiny.save_model(tmp_path / "model", kind)
    array = on_gpu(tmp_path, slots=3, precision=precision)
    replayed = curves(array)
    assert array.engine.program._replay._graph is not None
    monkeypatch.setattr(folded_program, "Replay", lambda program, device: program)
    called = curves(on_gpu(tmp_path, slots=3, precision=precision))
    assert [number for number in called if not same(called[number], replayed[number])] == []


@pytest.mark.parametrize("kind", ["bert", "modernbert", "deberta-v2"])
def test_a_replayed_program_of_frozen_trials_is_the_program_to_the_bit(tmp_path, monkeypatch, kind):
    tiny.save_model(tmp_path / "model", kind)
    space, trials = SPACE | {"frozen_layers": 1}, [{**each, "frozen_layers": 1} for each in MIXED]
    array = on_gpu(tmp_path, slots=3, space=space)
    replayed = curves(array, trials)
    assert array.setup.split_for(array.setup.model, "train").states.is_cuda
    monkeypatch.setattr(folded_program, "Replay", lambda program, device: program)
    called = curves(on_gpu(tmp_path, slots=3, space=space), trials)
    assert [number for number in called if not same(called[number], replayed[number])] == []


@pytest.mark.parametrize("kind", KINDS)
def test_slots_change_a_trial_only_within_the_tolerance(tmp_path, kind):
    tiny.save_model(tmp_path / "model", kind)
    alone, together = (curves(on_gpu(tmp_path, slots=slots), SLOW) for slots in (1, 4))
    close_in_loss(alone, together)


def close_in_loss(one, other):
    for number, (*evaluations, _) in one.items():
        for (*_, metrics), (*_, others) in zip(evaluations, other[number][:-1], strict=True):
            assert others["loss"] == pytest.approx(metrics["loss"], rel=ACROSS_SLOTS)


@pytest.mark.parametrize("kind", KINDS)
def test_folded_trials_are_close_to_separate_trials(tmp_path, kind):
    tiny.save_model(tmp_path / "model", kind)
    plain = on_gpu(tmp_path, fold=False)
    plain.engine.window = FoldedEngine.window
    trials = [{**each, "dropout": 0.0} for each in SLOW]
    close_in_loss(curves(plain, trials), curves(on_gpu(tmp_path, slots=3), trials))


@pytest.mark.parametrize("order", [[4, 2, 0, 1, 3], [1, 0, 3, 2, 4]])
def test_a_trial_is_to_the_bit_the_same_whatever_its_slot_neighbours_and_refills(tmp_path, order):
    one, other = curves(on_gpu(tmp_path, slots=3)), curves(on_gpu(tmp_path, slots=3), order=order)
    assert [number for number in one if not same(one[number], other[number])] == []


def test_a_slot_full_of_nan_leaves_the_others_as_they_are(tmp_path):
    undisturbed = curves(on_gpu(tmp_path, slots=3))
    first = advanced_beside_nan(on_gpu(tmp_path, slots=3))
    for slot in (0, 2):
        assert (first[slot].at, first[slot].value, first[slot].metrics) == undisturbed[slot][0]


def test_adapters_train_there(tmp_path):
    space = {"learning_rate": [1e-3, 3e-3], "lora_rank": [2, 4], "lora_targets": "all_linear", "epochs": [1, 2]}
    trials = [{"learning_rate": rate, "lora_rank": rank, "epochs": 1} for rate, rank in [(1e-3, 2), (3e-3, 4)]]
    trials = [{**DEFAULTS, **each, "lora_targets": "all_linear"} for each in trials]
    alone, together = (curves(on_gpu(tmp_path, slots=slots, space=space), trials) for slots in (1, 2))
    close_in_loss(alone, together)


def test_nothing_in_a_segment_waits_for_the_device(tmp_path, monkeypatch):
    def watched(self):
        torch.cuda.set_sync_debug_mode("error")
        try:
            original(self)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    original = Replay.__call__
    monkeypatch.setattr(Replay, "__call__", watched)
    assert all(len(found) > 1 for found in curves(on_gpu(tmp_path, slots=2)).values())


def test_a_head_is_the_same_on_every_device(tmp_path):
    heads = []
    for device in ("cpu", "cuda"):
        array = open_array(tmp_path, device=device, slots=1)
        array.load(0, TrialSpec(0, MIXED[0], 3))
        head = [array.engine.occupied[0].weights[name] for name in sorted(array.setup.head)]
        heads.append([weights.cpu().clone() for weights in head])
    assert all(map(torch.equal, *heads))


def test_after_a_failed_recording_trials_train_without(tmp_path, monkeypatch):
    called = curves(on_gpu(tmp_path, slots=2))
    array = on_gpu(tmp_path, slots=2)
    builder = array.engine._builder
    context = builder._context
    monkeypatch.setattr(builder, "_context", lambda keys: waiting(context(keys)))
    with pytest.warns(UserWarning, match="without CUDA graphs"):
        found = curves(array)
    assert [number for number in called if not same(called[number], found[number])] == []


@contextmanager
def waiting(context):
    """Wait for the device, which a recording cannot do."""
    with context:
        torch.zeros(1, device="cuda").item()
        yield


def test_slots_are_measured_there(tmp_path):
    array = on_gpu(tmp_path, slots="auto")
    assert 1 <= array.fastest_slots(4) <= 4
