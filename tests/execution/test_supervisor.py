from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest

from hpo.config import study_spec
from hpo.core.events import Silent
from hpo.execution import local_worker, supervisor

OBJECTIVE = """
import os, time
from pathlib import Path

def objective(params):
    Path("by").mkdir(exist_ok=True)
    (Path("by") / str(os.getpid())).touch()
    while len(list(Path("by").iterdir())) < int(Path("awaited").read_text()):  # until the awaited processes have begun
        time.sleep(0.05)
    for step in range(1, 4):
        time.sleep(0.2)
        yield params["x"] * step
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working folder with a study of a slow objective, which waits until enough processes run it."""
    monkeypatch.chdir(tmp_path)
    Path("slow.py").write_text(OBJECTIVE)
    Path("awaited").write_text("1")
    content = {"objective": "slow:objective", "space": {"x": {"low": 0.0, "high": 1.0}}, "trials": 12}
    Path("s.yaml").write_text(json.dumps({**content, "sampler": "random", "pruner": "none"}))
    return tmp_path


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hpo.cli", *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **environment}, **pipes)


def rows() -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="s", storage="sqlite:///hpo.db").trials


def processes(count: int) -> list[int]:
    """Wait until so many processes have had a trial, and return them."""
    deadline = time.monotonic() + 120
    while len(found := sorted(int(path.name) for path in Path("by").glob("*"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def ended(pid: int) -> bool:
    """Return whether a process is gone, or waits for its parent to take notice."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


@pytest.mark.slow
def test_workers_run_a_study_together_and_a_killed_one_is_replaced(folder: Path) -> None:
    Path("awaited").write_text("3")
    running = start("run", "s.yaml", "--workers", "2", "--storage", "sqlite:///hpo.db")
    os.kill(processes(2)[0], signal.SIGKILL)
    out, err = running.communicate(timeout=180)
    assert running.returncode == 0, err
    assert len(processes(3)) == 3
    assert "a worker was ended by signal 9" in out
    assert "trial 11 state=complete" in out
    assert "finished=12/12" in out
    assert "report: runs/s/report.html" in out
    assert [row.state.name for row in rows()] == ["COMPLETE"] * 12
    assert all(row.value == 3 * row.params["x"] for row in rows())


@pytest.mark.slow
def test_a_worker_joins_a_study_that_runs_and_ctrl_c_stops_one_of_them_only(folder: Path) -> None:
    Path("awaited").write_text("2")
    first = start("worker", "s.yaml")
    processes(1)
    second = start("worker", "s")  # by its name in the storage
    processes(2)
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=180)
    assert first.returncode == 130, err
    _, err = second.communicate(timeout=300)
    assert second.returncode == 0, err
    assert [row.state.name for row in rows()] == ["COMPLETE"] * 12


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_supervisor(folder: Path, sent: int) -> None:
    Path("awaited").write_text("2")
    running = start("run", "s.yaml", "--workers", "2", "--set", "trials=400")  # for longer than is waited below
    pids = processes(2)
    running.send_signal(sent)
    _, err = running.communicate(timeout=180)
    assert running.returncode == (130 if sent == signal.SIGINT else -9), err
    deadline = time.monotonic() + 60
    while not all(map(ended, pids)):
        assert time.monotonic() < deadline, "a worker is left"
        time.sleep(0.1)
    assert {row.state.name for row in rows()} <= {"COMPLETE", "WAITING"}


@pytest.mark.slow
def test_an_error_that_the_user_can_mend_is_said_once(folder: Path) -> None:
    Path("slow.py").write_text("def objective(params):\n    raise KeyError('text')\n")
    running = start("run", "s.yaml", "--workers", "2")
    _, err = running.communicate(timeout=300)
    assert running.returncode == 2
    assert err.count("3 trials failed in a row, the last with KeyError") == 1
    assert "Traceback" not in err


def test_the_password_of_the_storage_is_on_no_command_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Process:
        def __init__(self, command: Any, **settings: Any) -> None:
            seen.append((command, settings["env"][local_worker.STORAGE]))

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(local_worker.subprocess, "Popen", Process)
    study = study_spec.load(Path("s.yaml"))
    url = "postgresql://tuner:canary@127.0.0.1:1/none"
    assert supervisor.run(study, ["s.yaml"], url, 2, Silent(), lambda: "done") == "done"
    assert len(seen) == 2
    assert all("canary" not in " ".join(command) and given == url for command, given in seen)


@pytest.mark.slow
def test_when_the_time_is_up_what_is_left_waits(folder: Path) -> None:
    running = start("run", "s.yaml", "--workers", "2", "--set", "trials=200", "--timeout", "3")
    out, err = running.communicate(timeout=300)
    assert running.returncode == 0, err
    assert {row.state.name for row in rows()} == {"COMPLETE", "WAITING"}
    assert "report: runs/s/report.html" in out


def test_a_supervisor_says_what_its_workers_do_before_any_trial(folder: Path) -> None:
    process = start("run", "s.yaml", "--workers", "2", "--trials", "2")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    said = out.splitlines()
    assert said[0] == 'doing "loading Optuna"'
    assert 'doing "starting 2 workers, whose output goes to runs/s/workers"' in said
    first = next(n for n, line in enumerate(said) if line.startswith("study s"))
    shown = any(line.startswith("trial ") for line in said[first:])
    assert shown or "finished=2/2" in said[first]  # on a busy machine both have ended before the first look
    assert "examples" not in out  # whose number an objective of one's own does not say
