"""`hpo stop`: all processes of a study end as at SIGTERM, and the next run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

import hpo
from hpo.cli import run_commands
from hpo.cli.trial_commands import stop_trial
from hpo.core.errors import StorageError, StudyError
from hpo.execution.processes import joined, processes_of
from hpo.storage import backends

OBJECTIVE = """
import time
from pathlib import Path

def objective(params):
    for step in range(1, 5):
        Path("began").touch()
        time.sleep(0.1)
        yield params["x"] * step
"""


@pytest.fixture(params=["sqlite", "journal", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URL of a new storage of each kind; work in a folder with a long study."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slow.py").write_text(OBJECTIVE)
    content = {"objective": "slow:objective", "space": {"x": {"low": 0.0, "high": 1.0}}, "trials": 300}
    (tmp_path / "s.yaml").write_text(json.dumps({**content, "sampler": "random", "pruner": "none"}))
    made = request.getfixturevalue("postgresql") if request.param == "postgresql" else f"{request.param}:///it"
    monkeypatch.setenv("HPO_STORAGE", made)
    return str(made)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a starter of hpo's commands, which are gone when the test ends."""
    started: list[subprocess.Popen[str]] = []

    def run(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "hpo.cli", *words]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, **pipes))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def states(url: str) -> set[str]:
    return {row.state.name for row in optuna.load_study(study_name="s", storage=backends.look(url)).trials}


@pytest.mark.slow
def test_all_processes_end_and_the_next_run_goes_on(url: str, start: Any, call: Any) -> None:
    running = [start("run", "s.yaml", "--workers", "2"), start("worker", "s.yaml")]
    others = processes_of(url, "s")
    assert others is not None
    until(lambda: len(others.running()) == 2)
    until(Path("began").exists)
    code, printed = call("stop", "s")
    assert code == 0, printed
    for process in running:
        assert f"process {process.pid} on " in printed
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert "hpo stop asks this process to end" in err
    assert "all have ended" in printed
    assert states(url) <= {"COMPLETE", "WAITING"}  # put back, not left running
    assert call("stop", "s")[1].startswith("no process runs study s")
    Path("began").unlink()
    again = start("worker", "s.yaml")
    until(Path("began").exists)
    time.sleep(2.5)
    assert again.poll() is None  # the request is withdrawn
    others.close()


def test_a_study_of_a_script_puts_its_trial_back(url: str, call: Any) -> None:
    began = threading.Event()
    printed: list[Any] = []

    def objective(params: Any) -> Iterator[float]:
        for _ in range(400):
            began.set()
            time.sleep(0.02)
            yield 1.0

    def stop() -> None:
        began.wait(30)
        others = processes_of(url, "script")
        assert others is not None
        until(others.running)
        others.ask()
        until(lambda: not others.running())
        others.close()
        printed.append("ended")

    asking = threading.Thread(target=stop)
    asking.start()
    with pytest.raises(KeyboardInterrupt):
        hpo.optimize(objective, {"x": [1, 2]}, name="script", trials=1, pruner="none", storage=url)
    asking.join()
    assert list(Path().glob("it.locks/*-processes/[0-9]*")) == []  # it leaves nothing behind
    assert printed == ["ended"]
    (row,) = optuna.load_study(study_name="script", storage=backends.look(url)).trials
    assert row.state.name == "WAITING"


def test_who_does_not_end_is_named_and_another_study_is_left_alone(
    url: str, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hpo.optimize(lambda params: params["x"], {"x": [1, 2]}, name="s", trials=1, storage=url)
    monkeypatch.setattr(run_commands, "ENDING", 2.5)
    asked: list[str] = []
    with joined(url, "s", lambda: asked.append("s")), joined(url, "other", lambda: asked.append("other")):
        others = processes_of(url, "s")
        assert others is not None
        until(others.running)
        with pytest.raises(StudyError, match=rf"still running after 2.5 s: process {os.getpid()} on "):
            run_commands.stop("s", None, lambda message: None)
        others.close()
    assert asked == ["s"]


def test_a_killed_process_is_none_of_them_and_a_killed_request_is_none(url: str) -> None:
    optuna.create_study(study_name="s", storage=backends.connect(url))
    code = (
        "import sys\nfrom hpo.execution.processes import processes_of\nothers = processes_of(sys.argv[1], 's')\n"
        "others.join(); others.ask()\nprint('in', flush=True)\nsys.stdin.readline()"
    )
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, url], **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        others = processes_of(url, "s")
        assert others is not None
        assert [found.split(" on ")[0] for found in others.running()] == [f"process {process.pid}"]
        assert others.asked()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        until(lambda: not others.running())
        until(lambda: not others.asked())
        others.close()


def test_a_study_that_is_not_there_is_an_error(url: str, call: Any) -> None:
    code, printed = call("stop", "none")
    assert code == 2
    assert "no study 'none'" in printed


def test_a_server_that_goes_away_meanwhile_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Away:
        looks = iter([["process 1 on host"]])

        def running(self) -> list[str]:
            try:
                return next(self.looks)
            except StopIteration:
                raise OSError("the server closed the connection") from None

        def ask(self) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr(run_commands, "processes_of", lambda url, study: Away())
    with pytest.raises(StorageError, match=r"cannot be opened \(OSError: the server closed the connection\)"):
        run_commands.stop("s", f"sqlite:///{tmp_path}/a.db", lambda message: None)


# ---------------------------------------------------------------- one trial


def test_one_trial_is_ended_at_its_next_evaluation_and_the_others_run_on(url: str, call: Any) -> None:
    began = threading.Event()
    said: list[Any] = []

    def objective(params: Any) -> Iterator[float]:
        steps = 2 if began.is_set() else 2000  # the first trial is long
        began.set()
        for _ in range(steps):
            time.sleep(0.02)
            yield params["x"]

    def stop() -> None:
        began.wait(30)
        said.append(stop_trial("script", url, 0).text)

    asking = threading.Thread(target=stop)
    asking.start()
    study = hpo.optimize(objective, {"x": [1, 2]}, name="script", trials=2, sampler="grid", pruner="none", storage=url)
    asking.join()
    stopped, other = study.trials
    assert (stopped.state.name, stopped.user_attrs["reason"]) == ("PRUNED", "stopped_by_the_user")
    assert len(stopped.intermediate_values) < 2000
    assert other.state.name == "COMPLETE"
    assert "ends at its next evaluation" in said[0]
    assert "stopped by the user" in call("trials", "script")[1]


@pytest.mark.parametrize(
    ("name", "number", "message"),
    [
        ("none", "0", "no study 'none'"),
        ("s", "7", "has no trial 7"),
        ("s", "0", "trial 0 of 's' has ended already"),
        ("s", "1", "trial 1 of 's' is waiting, and only a running one can be stopped"),
    ],
)
def test_a_trial_that_does_not_run_cannot_be_stopped(url: str, call: Any, name: str, number: str, message: str) -> None:
    study = hpo.optimize(lambda params: params["x"], {"x": [1, 2]}, name="s", trials=1, storage=url)
    study.enqueue_trial({"x": 2})
    code, printed = call("stop", name, number)
    assert (code, message in printed) == (2, True), printed


def test_a_trial_whose_process_was_killed_is_ended_where_it_is_adopted(url: str, call: Any) -> None:
    def objective(params: Any) -> Iterator[float]:
        yield from (1.0, 2.0, 3.0)

    settings: dict[str, Any] = {"name": "s", "trials": 1, "pruner": "none", "storage": url}
    with pytest.raises(KeyboardInterrupt):
        hpo.optimize(interrupted, {"x": [1, 2]}, same_objective=True, **settings)
    opened = optuna.load_study(study_name="s", storage=backends.connect(url))
    opened._storage.set_trial_state_values(opened.trials[0]._trial_id, optuna.trial.TrialState.RUNNING)
    code, printed = call("stop", "s", "0")
    assert (code, "no process runs study s" in printed) == (0, True), printed
    with pytest.warns(UserWarning, match="the last ended with stopped_by_the_user"):
        (row,) = hpo.optimize(objective, {"x": [1, 2]}, same_objective=True, **settings).trials
    assert (row.state.name, list(row.intermediate_values)) == ("PRUNED", [1])


def interrupted(params: Any) -> float:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)
    raise KeyboardInterrupt
