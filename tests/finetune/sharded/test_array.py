import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tiny
import torch
import torch.distributed as dist
from optuna.trial import TrialState
from safetensors.torch import load_file

from hpo.config import study_spec
from hpo.core.errors import ArrayShrankError, ModelError, StudyError
from hpo.core.interrupts import StopRequest
from hpo.core.trainer import TrialSpec
from hpo.execution import run_study, trial_arrays
from hpo.finetune.models import dropout
from hpo.finetune.sharded.array import ShardedArray, ShardLostError
from hpo.finetune.sharded.engine import ShardEngine

pytestmark = pytest.mark.slow  # processes that each import torch

EXACT = {"learning_rate": 1e-2, "epochs": 3, "dropout": 0.0, "class_weights": "balanced"}
EXACT |= {"layer_decay": 0.9, "max_grad_norm": 0.3, "warmup_ratio": 0.0}  # some steps are clipped, others are not
LONG = {"learning_rate": 1e-3, "epochs": 1000, "batch_size": 1}  # more steps than a test waits for
NO_ROOM, COMPARED = 40, 41  # batch sizes with a meaning for `Watched`


class Watched(ShardEngine):
    """An engine that can run out of memory, and that can compare its masks with those of the other process."""

    def _accumulate(self, slot, rows, seed):
        size = slot.params.batch_size
        if size == NO_ROOM and self.rank == 1 and self.micro_batch > 4:
            raise torch.OutOfMemoryError("out of memory")  # while the other process waits in a collective
        if size == COMPARED:
            masks = [torch.zeros(64), torch.zeros(64)]
            with self.setup.masked(dropout.key(seed)):
                dist.all_gather(masks, dropout.drop(torch.ones(64), 0.5))
            assert not torch.equal(*masks)
        return super()._accumulate(slot, rows, seed)


def opened(folder, **overrides):
    overrides = {"evaluations_per_epoch": 1, "metric": "loss", **overrides}
    return trial_arrays.open_array(study_spec.build(tiny.study(folder, **overrides), "test", folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def single(folder):
    return opened(folder)


@pytest.fixture(scope="module")
def sharded(folder):
    array = opened(folder, shards=2, micro_batch=6)
    assert isinstance(array, ShardedArray)
    array.engine_class = Watched
    yield array
    array.close()


def test_the_processes_report_progress(sharded):
    sharded.load(0, TrialSpec(0, {"learning_rate": 1e-3, "epochs": 2, "batch_size": 8}, 0))
    assert sharded.seen(0) is None
    assert sharded.advance()[0].at == 60
    assert sharded.seen(0) == (60, 120)
    sharded.unload(0)
    assert sharded.seen(0) is None


def trained(array, params, kept=None, seed=1):
    """Train one trial to its end; return its evaluations, and write its best weights."""
    array.load(0, TrialSpec(0, params, seed))
    evaluations = []
    try:
        while not evaluations or not evaluations[-1].last:
            outcome = array.advance()[0]
            if isinstance(outcome, Exception):
                raise outcome
            evaluations.append(outcome)
        assert kept is None or array.save_weights(0, kept)
    finally:
        array.unload(0)
    return evaluations


def advanced_until_it_raises(array):
    while True:
        assert not isinstance(outcome := array.advance()[0], Exception), outcome


def curve(evaluations):
    return [(e.at, e.of, e.last, e.value) for e in evaluations]


# ---------------------------------------------------------------- results


@pytest.mark.parametrize("size", [16, 7, 59])  # 60 rows: batches of even and odd size, and one of one row
def test_a_divided_trial_is_the_trial_of_one_process(folder, single, sharded, size, tmp_path):
    params = {**EXACT, "batch_size": size}
    alone = trained(single, params, tmp_path / "alone")
    together = trained(sharded, params, tmp_path / "together")
    assert np.ptp([e.value for e in alone]) > 5e-5  # else an equal curve would prove nothing
    np.testing.assert_allclose(curve(together), curve(alone), atol=1e-5)
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "together"))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if name.endswith("key.bias"):  # its gradient is only rounding, which AdamW turns into steps
            continue
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    config_files = [(tmp_path / name / "config.json").read_text() for name in ("alone", "together")]
    assert config_files[0] == config_files[1]
    scored = [array.predictions_of(tmp_path / "together", "test") for array in (single, sharded)]
    np.testing.assert_allclose(scored[1].logits, scored[0].logits, atol=1e-6)
    np.testing.assert_array_equal(scored[1].targets, scored[0].targets)


def test_same_seed_same_bits_and_another_seed_others(sharded):
    params = {**EXACT, "batch_size": 16, "dropout": 0.2}
    first = curve(trained(sharded, params))
    trained(sharded, {**params, "dropout": 0.0}, seed=3)
    assert curve(trained(sharded, params)) == first
    assert curve(trained(sharded, params, seed=2)) != first


def test_each_process_draws_masks_of_its_own(sharded):
    params = {**EXACT, "batch_size": COMPARED, "epochs": 1}
    assert curve(trained(sharded, {**params, "dropout": 0.2})) != curve(trained(sharded, params))


# ---------------------------------------------------------------- a whole study


def test_a_study_runs_over_two_processes(folder, single, sharded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space = {"learning_rate": {"low": 1e-3, "high": 1e-2}, "batch_size": [8, 16], "epochs": 1, "dropout": 0.0}
    found = {}
    for name, array in (("one", single), ("two", sharded)):
        monkeypatch.setattr(run_study, "open_array", lambda study, array=array: array)  # its processes run already
        raw = tiny.study(folder, name=name, shards=1 + (array is sharded), space=space, trials=2, metric="loss")
        found[name] = run_study.run(study_spec.build(raw, "test", folder), "sqlite:///hpo.db")
    assert [t.state for t in found["two"].study.trials] == [TrialState.COMPLETE] * 2
    values = [[t.value for t in found[name].study.trials] for name in ("one", "two")]
    np.testing.assert_allclose(values[1], values[0], atol=1e-5)
    best = found["two"].study.best_trial.number
    assert (found["two"].folder / "trials" / str(best) / "model.safetensors").is_file()
    monkeypatch.setattr(run_study, "open_array", lambda study: single)
    with pytest.raises(StudyError, match="shards: was 2, is None"):
        run_study.run(study_spec.build({**raw, "shards": 1}, "test", folder), "sqlite:///hpo.db")


# ---------------------------------------------------------------- trials that end early


def test_all_processes_stop_at_the_same_step_and_train_the_next_trial(single, sharded):
    sharded.load(0, TrialSpec(0, LONG, 1))
    sharded.advance()
    before = [process.pid for process in sharded._group.processes]
    threading.Timer(0.3, sharded.stop_request.set).start()
    began = time.monotonic()
    while sharded.advance():
        pass
    assert time.monotonic() - began < 5
    sharded.stop_request = StopRequest()
    sharded.unload(0)
    params = {**EXACT, "batch_size": 16}
    np.testing.assert_allclose(curve(trained(sharded, params)), curve(trained(single, params)), atol=1e-5)
    assert [process.pid for process in sharded._group.processes] == before


def test_a_trial_that_diverges_ends_alone(sharded):
    with pytest.raises(Exception, match="not finite") as caught:
        trained(sharded, {**EXACT, "batch_size": 16, "learning_rate": 1e30, "max_grad_norm": 1e30})
    assert caught.value.reason == "diverged"
    assert sharded._group is not None


def test_a_lack_of_memory_in_one_process_halves_the_micro_batch_of_all(single, sharded):
    params = {**EXACT, "batch_size": NO_ROOM}
    began = time.monotonic()
    with pytest.raises(ArrayShrankError, match="at most 3 examples") as caught:
        trained(sharded, params)
    assert "in _accumulate" in caught.value.__notes__[0]  # the traceback of the other process
    assert time.monotonic() - began < 30
    np.testing.assert_allclose(curve(trained(sharded, params)), curve(trained(single, params)), atol=1e-5)
    assert sharded.micro_batch == 3


def test_a_process_that_is_killed_ends_the_study_with_an_error(sharded):
    sharded.load(0, TrialSpec(0, LONG, 1))
    sharded.advance()
    processes = sharded._group.processes
    threading.Timer(0.3, processes[1].kill).start()
    began = time.monotonic()
    with pytest.raises(ShardLostError, match=r"shard 1 has ended \(SIGKILL\)"):
        advanced_until_it_raises(sharded)
    assert time.monotonic() - began < 15
    assert not any(process.is_alive() for process in processes)
    sharded.unload(0)  # as the runner does, although there are no processes


LEADER = """
import sys, tiny
from pathlib import Path
from hpo.config import study_spec
from hpo.core.trainer import TrialSpec
from hpo.execution import trial_arrays

array = trial_arrays.open_array(study_spec.build(tiny.study(Path(sys.argv[1]), shards=2), "test", Path(sys.argv[1])))
array.load(0, TrialSpec(0, {"learning_rate": 1e-3, "epochs": 1000, "batch_size": 1}, 1))
array.advance()
print("trains", *(process.pid for process in array._group.processes), flush=True)
while True:
    array.advance()
"""


def test_no_process_survives_the_leading_process(folder):
    command = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{LEADER}", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as leader:
        assert leader.stdout.readline().startswith("trains")
        leader.kill()
        leader.communicate(timeout=15)  # until no process has its output open


def test_more_shards_than_gpus_are_refused(folder, monkeypatch):
    monkeypatch.setattr("hpo.finetune.device.chosen", lambda setting: torch.device("cuda"))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ModelError, match="shards: 2 needs as many GPUs, and there are 1"):
        opened(folder, shards=2)
