"""What only a GPU can show: recorded programs there, to the bit and without a wait. Skipped where there is none."""

from contextlib import contextmanager

import pytest
import tiny
import torch
from test_folded_array import MIXED, curves, open_array, same

from hpo.finetune import folded_array, folded_program
from hpo.finetune.replay import Replay
from hpo.objective import TrialSpec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

ACROSS_SLOTS = 1e-4  # of a loss in float32: a product of other shapes is summed in another order
KINDS = ["bert", "qwen3", "modernbert", "deberta-v2", "xlnet"]


@pytest.fixture(autouse=True, params=[10.0, 0.0], ids=["packed", "padded"])
def deterministic(request, monkeypatch):
    """Kernels that give the same sums each time."""
    monkeypatch.setattr(folded_array, "WORTH_PACKING", request.param)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
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
    assert array._program._replay._graph is not None
    monkeypatch.setattr(folded_program, "Replay", lambda program, device: program)
    called = curves(on_gpu(tmp_path, slots=3, precision=precision))
    assert [number for number in called if not same(called[number], replayed[number])] == []


@pytest.mark.parametrize("kind", KINDS)
def test_slots_change_a_trial_by_no_more_than_is_said(tmp_path, kind):
    tiny.save_model(tmp_path / "model", kind)
    trials = [{**each, "learning_rate": each["learning_rate"] / 30} for each in MIXED]
    alone, together = (curves(on_gpu(tmp_path, slots=slots), trials) for slots in (1, 4))
    for number, (first, *_) in alone.items():
        assert together[number][0][2]["loss"] == pytest.approx(first[2]["loss"], rel=ACROSS_SLOTS)


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
        head = [array._occupied[0].weights[name] for name in sorted(array._starter.head)]
        heads.append([weights.cpu().clone() for weights in head])
    assert all(map(torch.equal, *heads))


def test_after_a_recording_that_failed_trials_train_without(tmp_path, monkeypatch):
    called = curves(on_gpu(tmp_path, slots=2))
    array = on_gpu(tmp_path, slots=2)
    monkeypatch.setattr(array, "_context", lambda keys, context=array._context: waiting(context(keys)))
    with pytest.warns(UserWarning, match="without CUDA graphs"):
        found = curves(array)
    assert [number for number in called if not same(called[number], found[number])] == []


@contextmanager
def waiting(context):
    """Wait for the device, which a recording cannot."""
    with context:
        torch.zeros(1, device="cuda").item()
        yield


def test_slots_are_measured_there(tmp_path):
    array = on_gpu(tmp_path, slots="auto")
    assert 1 <= array.fastest_slots(4) <= 4
