"""The job script for Slurm, run with stand-ins for `srun` and `scontrol`: no scheduler is tested here."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import optuna
import pytest
from optuna.trial import TrialState

import hpo
from hpo.storage import backends

ROOT = Path(hpo.__file__).parents[1]
SCRIPT = ROOT / "examples" / "slurm" / "hpo.sbatch"

PROGRAMS = {
    "srun": 'while [[ $1 == --* ]]; do shift; done; echo "$$" > step; exec "$@"',
    "scontrol": 'echo "$@" > requeued',
    "hpo": f'exec {sys.executable} -m hpo.cli "$@"',
}

STUDY = """
objective: slow:objective
space: {x: {low: 0.0, high: 1.0}}
sampler: random
pruner: none
"""

OBJECTIVE = """
import time

def objective(params):
    for step in range(5):
        time.sleep(0.1)
        yield params["x"]
"""


@pytest.fixture
def job(tmp_path: Path, postgresql: str) -> Callable[..., subprocess.Popen[str]]:
    """Return a function that starts the script in `tmp_path`, as Slurm would; the password is in a file."""
    for name, body in PROGRAMS.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/usr/bin/env bash\n{body}\n")
        program.chmod(0o755)
    (tmp_path / "slow.py").write_text(OBJECTIVE)
    (tmp_path / "slow.yaml").write_text(STUDY)
    url = urlsplit(postgresql)
    (tmp_path / ".pgpass").write_text(f"{url.hostname}:{url.port}:*:{url.username}:{url.password}\n")
    (tmp_path / ".pgpass").chmod(0o600)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "HPO_STORAGE": postgresql.replace(":canary@", "@"),
        "SLURM_JOB_ID": "7",
    }

    def start(*options: str, **changes: str | None) -> subprocess.Popen[str]:
        given = {name: value for name, value in {**environment, **changes}.items() if value is not None}
        pipe = subprocess.PIPE
        command = ["bash", str(SCRIPT), "slow.yaml", *options]
        return subprocess.Popen(command, cwd=tmp_path, env=given, stdout=pipe, stderr=pipe, text=True)

    return start


def test_the_script_is_a_script_and_asks_for_what_its_worker_needs() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", SCRIPT.read_text(), re.MULTILINE))
    assert asked["gpus-per-task"] == "1"
    assert asked["ntasks"] == "1"
    assert asked["signal"] == "TERM@60"  # to the step, not to the script
    assert "requeue" in asked


def test_the_page_submits_this_script() -> None:
    page = (ROOT / "docs" / "clusters.md").read_text()
    submitted = re.findall(r"^\$ sbatch .*?(\S+\.sbatch) \S+$", page, re.MULTILINE)
    assert [ROOT / script for script in submitted] == [SCRIPT]


@pytest.mark.slow
def test_a_job_whose_time_is_up_goes_back_into_the_queue_and_goes_on(
    job: Callable[..., subprocess.Popen[str]], postgresql: str, tmp_path: Path
) -> None:
    first = job("--set", "trials=4")
    deadline = time.monotonic() + 180
    while "trial 0 state=complete" not in (line := first.stdout.readline()):  # type: ignore[union-attr]
        assert line or time.monotonic() < deadline
    os.kill(int((tmp_path / "step").read_text()), signal.SIGTERM)
    _, error = first.communicate(timeout=180)
    assert (first.returncode, "put back" in error) == (130, True), error
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    (tmp_path / "requeued").unlink()
    opened = optuna.load_study(study_name="slow", storage=backends.connect(postgresql))
    assert {trial.state for trial in opened.trials} == {TrialState.COMPLETE, TrialState.WAITING}

    again = job("--set", "trials=4")
    _, error = again.communicate(timeout=180)
    assert again.returncode == 0, error
    assert {trial.state for trial in opened.trials} == {TrialState.COMPLETE}
    assert not (tmp_path / "requeued").exists()


def test_a_job_without_a_storage_or_with_a_wrong_study_ends(
    job: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    _, error = (without := job(HPO_STORAGE=None)).communicate(timeout=180)
    assert without.returncode != 0
    assert "HPO_STORAGE" in error
    _, error = (wrong := job("--set", "trails=4")).communicate(timeout=180)
    assert wrong.returncode == 2
    assert "trails" in error
    assert not (tmp_path / "requeued").exists()
