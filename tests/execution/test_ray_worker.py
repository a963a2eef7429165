"""Workers as actors of a Ray cluster: two nodes on this machine, each with a GPU that Ray only counts."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import tiny
from optuna.trial import TrialState
from ruamel.yaml import YAML

import hpo
from hpo.cli import run_commands
from hpo.config import study_spec
from hpo.core.errors import MissingExtraError, StorageError, StudyError
from hpo.core.events import Silent
from hpo.execution import local_worker, ray_worker, study_follower, supervisor
from hpo.storage import backends

ROOT = Path(hpo.__file__).parents[1]
TRIALS = 16

OBJECTIVE = """
import os, time

def objective(params):
    while str(os.getppid()) in open("held").read().split():  # actors that have to wait
        time.sleep(0.05)
    for step in range(1, 6):
        time.sleep(params["pause"])
        yield params["x"] * step
    with open("ran", "a") as ran:  # by which actor, on which GPU
        print(os.getppid(), os.environ["CUDA_VISIBLE_DEVICES"], file=ran)
"""

STUDY = {
    "name": "cheap",
    "objective": "cheap:objective",
    "space": {"x": {"low": 0.0, "high": 1.0}, "pause": 0.02},
    "sampler": "random",
    "pruner": "none",
    "trials": TRIALS,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Start a cluster of two nodes; none of its processes is left."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed (the extra `ray`): workers on a cluster are NOT tested here")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        with importlib.import_module("ray_cluster").two_nodes(num_gpus=1) as made:
            session = Path(made.head_node.get_session_dir_path())
            yield made
    until(lambda: not processes(str(session)))
    shutil.rmtree(session, ignore_errors=True)


@pytest.fixture
def start(cluster: Any, postgresql: str, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts `hpo run` on the cluster, in `tmp_path`."""
    started = []
    (tmp_path / "cheap.py").write_text(OBJECTIVE)
    (tmp_path / "held").touch()

    def run(study: dict[str, Any], **overrides: Any) -> subprocess.Popen[str]:
        YAML().dump({**study, **overrides}, tmp_path / "cheap.yaml")
        command = [sys.executable, "-m", "hpo.cli", "run", "cheap.yaml", "--executor", "ray", "--workers", "2"]
        environment = {**os.environ, "HPO_STORAGE": postgresql, "RAY_ADDRESS": cluster.address}
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()
    until(lambda: not processes("hpo.cli", "worker", "cheap.yaml"))


def until(holds: Callable[[], Any], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def processes(*words: str) -> list[int]:
    """Return the processes whose command line has all these words."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            line = (place / "cmdline").read_text(errors="replace")
        except OSError:
            continue
        if all(word in line for word in words):
            found.append(int(place.name))
    return found


def ran(folder: Path) -> Counter[str]:
    """Return how many trials each actor has run."""
    lines = (folder / "ran").read_text().splitlines() if (folder / "ran").exists() else []
    return Counter(line.split()[0] for line in lines)


def states(url: str) -> Counter[TrialState]:
    opened = optuna.load_study(study_name="cheap", storage=backends.connect(url))
    return Counter(trial.state for trial in opened.get_trials(deepcopy=False))


# ---------------------------------------------------------------- on a cluster


@pytest.mark.slow
def test_two_workers_are_stopped_and_go_on(start: Any, postgresql: str, tmp_path: Path) -> None:
    running = start(STUDY, **{"space": {**STUDY["space"], "pause": 0.1}})
    until(lambda: len(ran(tmp_path)) == 2)
    assert postgresql not in "".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in processes("hpo"))
    running.send_signal(signal.SIGINT)
    _, error = running.communicate(timeout=180)
    assert (running.returncode, "the same command goes on" in error) == (130, True), error
    assert processes("hpo.cli", "worker", "cheap.yaml") == []
    assert set(states(postgresql)) == {TrialState.COMPLETE, TrialState.WAITING}

    running = start(STUDY, **{"space": {**STUDY["space"], "pause": 0.1}})
    out, error = running.communicate(timeout=300)
    assert running.returncode == 0, error
    assert states(postgresql) == {TrialState.COMPLETE: TRIALS}
    assert sum(ran(tmp_path).values()) == TRIALS  # once each
    assert {line.split()[1] for line in (tmp_path / "ran").read_text().splitlines()} == {"0"}  # of either node
    assert "report: runs/cheap/report.html" in out


@pytest.mark.slow
def test_a_node_is_lost_and_another_takes_its_place(start: Any, cluster: Any, postgresql: str, tmp_path: Path) -> None:
    running = start(STUDY, **{"space": {**STUDY["space"], "pause": 0.1}})
    until(lambda: len(ran(tmp_path)) == 2)
    first = set(ran(tmp_path))
    (tmp_path / "held").write_text(" ".join(first))
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    cluster.add_node(num_cpus=1, num_gpus=1, include_dashboard=False)
    until(lambda: len(ran(tmp_path)) == 3)
    (tmp_path / "held").write_text("")
    out, error = running.communicate(timeout=300)
    assert running.returncode == 0, error
    assert states(postgresql) == {TrialState.COMPLETE: TRIALS}
    assert sum(ran(tmp_path).values()) >= TRIALS  # of a trial that was lost all is done again
    assert "a worker was ended by the loss of its node; another takes its place" in out


@pytest.mark.slow
def test_what_the_user_has_to_mend_is_said_once(start: Any) -> None:
    running = start(STUDY, objective="cheap:missing")
    out, error = running.communicate(timeout=180)
    assert running.returncode == 2
    assert error.count("error: ") == 1
    assert "missing" in error
    assert "Traceback" not in out + error


@pytest.mark.slow
def test_the_example_runs_a_study_and_its_verdict_is_taken_on_the_cluster(
    cluster: Any, postgresql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    example = importlib.import_module("ray_cluster")
    assert "python examples/ray_cluster.py" in example.__doc__
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPO_STORAGE", postgresql)
    monkeypatch.setattr(example, "two_nodes", lambda: contextlib.nullcontext(cluster))
    YAML().dump(tiny.study(tmp_path, device="cpu"), tmp_path / "tiny.yaml")
    assert example.main(tmp_path / "tiny.yaml", workers=1, trials=2) == 0
    printed = capfd.readouterr().out
    assert "finished=2/2" in printed
    assert "test examples" in printed


def test_the_page_starts_ray_with_options_that_it_has() -> None:
    options = pytest.importorskip("ray.scripts.scripts", reason="Ray is not installed").cli.commands["start"].params
    known = {name for option in options for name in option.opts}
    shown = re.findall(r"^\$ ray start (.*?)(?:  +#.*)?$", (ROOT / "docs" / "clusters.md").read_text(), re.MULTILINE)
    assert {word for line in shown for word in line.split() if word.startswith("-")} <= known
    assert len(shown) == 2


# ---------------------------------------------------------------- without one


def run_together(tmp_path: Path, url: str, **options: Any) -> Any:
    (tmp_path / "cheap.py").write_text(OBJECTIVE)
    study = study_spec.build(STUDY, "test", tmp_path)
    return run_commands.run_together(study, url, Silent(), 2, "cheap.yaml", [], **options)


def test_a_storage_of_one_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"sqlite:///hpo.db is for one machine.*postgresql://"):
        run_together(tmp_path, "sqlite:///hpo.db", executor="ray")


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"--executor ray.*hpo\[ray\]"):
        run_together(tmp_path, "postgresql://nobody@localhost/none", executor="ray")


def test_an_address_without_a_cluster_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`)")
    with pytest.raises(StudyError, match=r"no Ray cluster answers at 127.0.0.1:1 .*--address"):
        run_together(tmp_path, "postgresql://nobody@localhost/none", executor="ray", address="127.0.0.1:1")


def test_options_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="there is no executor 'dask'; there are local, ray"):
        run_together(tmp_path, "sqlite:///hpo.db", executor="dask")
    with pytest.raises(StudyError, match="add --executor ray"):
        run_together(tmp_path, "sqlite:///hpo.db", address="127.0.0.1:1")


def test_a_worker_needs_a_gpu_where_there_are_some_and_as_many_cpus_as_threads(tmp_path: Path) -> None:
    def needs(gpus: int, **overrides: Any) -> dict[str, float]:
        study = study_spec.build(tiny.study(tmp_path, **{"device": "auto", **overrides}), "test", tmp_path)
        return ray_worker._needs(study, {"CPU": 8.0, "GPU": float(gpus)} if gpus else {"CPU": 8.0})

    assert needs(2) == {"num_cpus": 1, "num_gpus": 1}
    assert needs(2, threads=4) == {"num_cpus": 4, "num_gpus": 1}
    assert needs(2, device="cpu") == needs(0) == {"num_cpus": 1}


def test_workers_without_a_place_are_told_of(tmp_path: Path) -> None:
    class Heard(Silent):
        notes: list[str] = []

        def note(self, message: str) -> None:
            self.notes.append(message)

    for gpus in (1, 2, 3):
        ray_worker._note_waiting(Heard(), 2, {"num_cpus": 1, "num_gpus": 1}, {"CPU": 8.0, "GPU": gpus})
    assert len(Heard.notes) == 1
    assert "free GPUs for 1 of 2 workers" in Heard.notes[0]


def test_a_node_without_the_folder_says_so(tmp_path: Path) -> None:
    code, said = ray_worker.Host(tmp_path / "not_shared", [], "", Path("log")).ended()
    assert code == 2
    assert "not_shared" in said
    assert "must see the same files" in said
    assert ray_worker._finish_on_node(tmp_path / "not_shared", lambda: None) == (None, said)


# ---------------------------------------------------------------- supervising


class Scripted(local_worker.Worker):
    """A worker that ends with given codes, one a look; the last one stays."""

    def __init__(self, codes: list[int | None], log: list[str]) -> None:
        self.codes, self.log = codes, log
        log.append("started")

    def poll(self) -> int | None:
        return self.codes.pop(0) if len(self.codes) > 1 else self.codes[0]

    def last_words(self) -> str:
        return "the data has no column 'label'"

    def terminate(self) -> None:
        self.log.append("terminated")

    def kill(self) -> None:
        self.log.append("killed")


@pytest.fixture
def supervise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function that supervises two workers, each given as the codes of one life after the other."""
    monkeypatch.setattr(supervisor, "POLL", 0.0)
    monkeypatch.setattr(study_follower, "LOOK", 0.0)
    monkeypatch.setattr(supervisor, "STOPPING", 0.1)

    def run(*lives: list[list[int | None]]) -> list[str]:
        log: list[str] = []
        starters = [lambda life=life: Scripted(life.pop(0) if len(life) > 1 else list(life[0]), log) for life in lives]
        study = study_spec.build(STUDY, "test", tmp_path)
        try:
            supervisor.supervise(study, starters, f"sqlite:///{tmp_path}/none.db", Silent())
        except StudyError as error:
            log.append(str(error))
        return log

    return run


def test_a_worker_without_resources_does_not_hold_up_the_end(supervise: Any) -> None:
    assert supervise([[None, None, 0]], [[None]]) == ["started", "started", "terminated", "killed"]


def test_a_lost_worker_is_replaced(supervise: Any) -> None:
    assert supervise([[None, local_worker.LOST], [0]], [[None] * 9 + [0]]).count("started") == 3


def test_an_error_ends_the_run(supervise: Any) -> None:
    log = supervise([[None, 2]], [[None]])
    assert log[-1] == "a worker has ended: the data has no column 'label'"
    assert "terminated" in log


def test_workers_that_only_die_are_given_up(supervise: Any) -> None:
    log = supervise([[-9]], [[-9]])
    assert log.count("started") == 2 + 2 * supervisor.MOST_DEATHS
    assert log[-1].startswith("a worker has ended")
