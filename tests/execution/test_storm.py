"""Kill storms: whatever is killed, stopped or away, every row ends once, with what an undisturbed run gives it."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chats
import choices
import documents
import optuna
import paired
import pytest
import several
import squad_rows
import storm
import tagged
import tiny
from optuna.trial import TrialState

from hpo.storage import backends

SUPPORT = Path(__file__).parents[1] / "support"
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=["sqlite", "journal", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """Return the URL of an empty storage of each kind."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgresql"))
    return {"sqlite": "sqlite:///a.db", "journal": "journal:///a.log"}[request.param]


@pytest.fixture(scope="module")
def undisturbed() -> Callable[[str, int], str]:
    """Return the digest of a study's table, run alone, in memory, without a pause."""
    known: dict[tuple[str, int], str] = {}

    def digest(name: str, trials: int) -> str:
        if (name, trials) not in known:
            pause, storm.PAUSE = storm.PAUSE, 0.0
            known[name, trials] = storm.described(storm.run(name, None, trials), trials)["table"]
            storm.PAUSE = pause
        return known[name, trials]

    return digest


def storm_of(url: str, *arguments: object, **environment: str) -> dict[str, Any]:
    """Run `storm.py` and return what it says."""
    command = [sys.executable, str(SUPPORT / "storm.py"), url, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=900)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def assert_nothing_is_lost(said: dict[str, Any], trials: int) -> None:
    counts = {name: said[name] for name in ("rows", "lost", "duplicated", "stuck")}
    assert counts == {"rows": trials, "lost": 0, "duplicated": 0, "stuck": 0}, said


# ---------------------------------------------------------------- killed at random


@pytest.mark.parametrize("study", ["random", "rounds", "auto"])
def test_a_kill_storm_loses_nothing_and_changes_nothing(
    url: str, study: str, undisturbed: Any, pytestconfig: pytest.Config
) -> None:
    trials, kills = (1000, 200) if pytestconfig.getoption("--full-storm") else (60, 30)
    said = storm_of(url, "--study", study, "--trials", trials, "--kills", kills, "--gap", 0.15, "--pause", 0.15)
    assert_nothing_is_lost(said, trials)
    assert said["kills"] == kills
    assert said["adopted"] > 0  # a process was killed while it owned a trial
    assert said["table"] == undisturbed(study, trials)


def test_a_grid_has_each_point_once(undisturbed: Any) -> None:
    said = storm_of("journal:///a.log", "--study", "grid", "--kills", 20)
    assert_nothing_is_lost(said, 120)
    assert said["table"] == undisturbed("grid", 120)


def test_free_running_trials_all_end() -> None:
    assert_nothing_is_lost(storm_of("journal:///a.log", "--study", "free", "--kills", 20), 120)


def test_trials_that_pause_are_promoted_by_the_rule_whatever_is_killed(url: str) -> None:
    said = storm_of(url, "--study", "promotion", "--trials", 60, "--kills", 20, "--gap", 0.15, "--pause", 0.1)
    assert_nothing_is_lost(said, 60)
    assert said["adopted"] > 0
    rows = optuna.load_study(study_name="storm", storage=backends.look(url)).trials
    for row in rows:
        curve = storm.curve(row.params)
        assert row.intermediate_values == {step: curve[step - 1] for step in range(1, (row.last_step or 0) + 1)}
        if row.state == TrialState.PRUNED:  # at the end, it is not among the best at its rung
            step = row.last_step
            reached = [other.intermediate_values[step] for other in rows if step in other.intermediate_values]
            better = sum(value > row.intermediate_values[step] for value in reached)
            assert better >= max(1, len(reached) // 3), row.number


@pytest.mark.parametrize(
    "study_of",
    [
        tiny.study,
        tagged.study,
        squad_rows.study,
        choices.study,
        paired.study,
        chats.study,
        several.study,
        documents.study,
    ],
    ids=["texts", "tags", "questions", "choices", "pairs", "chats", "several", "documents"],
)
def test_arrays_that_train_are_restored_to_the_bit(
    folder: Path, pytestconfig: pytest.Config, study_of: Callable[..., dict[str, Any]]
) -> None:
    tiny.write_csv(folder / "data.csv", 200)
    tagged.write_conll(folder / "data.conll", tagged.sentences(200))
    squad_rows.write(folder / "questions.jsonl", squad_rows.topics(240))
    choices.write(folder / "swag.jsonl", choices.rows(200))
    paired.write_jsonl(folder / "pairs.jsonl", paired.pairs(200))
    chats.write(folder / "chats.jsonl", chats.rows(200))
    documents.write(folder / "documents.jsonl", documents.texts(200))
    kills = 20 if pytestconfig.getoption("--full-storm") else 8
    pruner = {"name": "asha", "min_resource": 500, "reduction_factor": 2}
    settings = {"sampler": "tpe", "pruner": pruner, "round_size": 6, "evaluations_per_epoch": 4, "keep_best": 2}
    space = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "batch_size": [8, 16], "epochs": 6}
    content = study_of(folder, name="storm", slots=3, seed=3, space=space, **settings)
    Path("finetune.yaml").write_text(json.dumps(content))
    found = []
    for name, workers, shots, pause in (("alone", 1, 0, 0.0), ("together", 3, kills, 0.5)):
        Path(name).mkdir()
        os.rename("finetune.yaml", f"{name}/finetune.yaml")
        os.chdir(name)
        arguments = ("--study", "finetune", "--trials", 12, "--workers", workers, "--kills", shots, "--gap", 0.5)
        said = storm_of("sqlite:///a.db", *arguments, "--pause", pause)
        assert said["kills"] == shots, "the study was over too soon for a storm"
        assert_nothing_is_lost(said | {"duplicated": 0}, 12)
        kept = {path.parent.name: path.read_bytes() for path in Path("runs/storm/trials").glob("*/model.safetensors")}
        found.append((said["table"], said["states"], kept))
        os.chdir("..")
        os.rename(f"{name}/finetune.yaml", "finetune.yaml")
    assert found[0] == found[1]
    assert len(found[0][2]) in (2, 3)


@pytest.mark.parametrize("study", ["sqlite:///a.db", "journal:///a.log"])
def test_killed_before_any_write_the_study_comes_to_the_same_end(study: str) -> None:
    command = [sys.executable, str(SUPPORT / "every_step.py"), study]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40  # writes, and replacements of files


# ---------------------------------------------------------------- killed and stopped in their start-up


def test_processes_killed_and_stopped_while_they_start_lose_nothing(url: str, undisturbed: Any) -> None:
    arguments = ("--starts", 4, "--study", "rounds", "--trials", 6, "--workers", 4, "--kills", 8, "--pause", 0.01)
    said = storm_of(url, *arguments)
    assert {name: said[name] for name in ("lost", "duplicated", "stuck", "crashes")} == {
        "lost": 0, "duplicated": 0, "stuck": 0, "crashes": 0
    }, said  # fmt: skip
    storm.AT_WORK.mkdir()  # where the undisturbed run says that it is at work
    assert said["tables"] == [undisturbed("rounds", 6)]
    assert min(said["harm"][kind] for kind in ("kill", "stop", "both")) > 0


def test_supervisors_killed_and_stopped_while_they_start_lose_nothing(url: str) -> None:
    Path("adding.py").write_text("def objective(params):\n    yield from (params['x'] * i for i in range(1, 4))\n")
    content = {"name": "s", "objective": "adding:objective", "space": {"x": {"low": 0.0, "high": 1.0}}, "trials": 8}
    Path("s.yaml").write_text(json.dumps({**content, "sampler": "random", "pruner": "none"}))
    command = [sys.executable, "-m", "hpo.cli", "run", "s.yaml", "--quiet", "--workers", "2"]

    def start() -> subprocess.Popen[str]:
        pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env={**os.environ, "HPO_STORAGE": url}, **pipes)

    chance = random.Random(11)
    for signals in (
        [signal.SIGKILL],
        [signal.SIGSTOP, signal.SIGKILL],
        [signal.SIGSTOP, signal.SIGCONT, signal.SIGTERM],
    ):
        supervisor = start()
        for number in signals:
            time.sleep(chance.uniform(0.3, 2.5))
            supervisor.send_signal(number)
        supervisor.communicate(timeout=60)
    together = [start(), start()]
    together[0].send_signal(signal.SIGSTOP)
    time.sleep(1)
    together[0].send_signal(signal.SIGCONT)
    for supervisor in together:
        _, err = supervisor.communicate(timeout=180)
        assert supervisor.returncode == 0, err
    rows = optuna.load_study(study_name="s", storage=backends.look(url)).trials
    assert [row.state for row in rows] == [TrialState.COMPLETE] * 8
    assert all(row.value == 3 * row.params["x"] and len(row.intermediate_values) == 3 for row in rows)


# ---------------------------------------------------------------- a storage that is away, or full


@pytest.mark.parametrize("seconds", [1, 10])
def test_a_server_that_is_away_is_waited_for(
    postgresql: str, postgresql_cluster: Any, seconds: int, undisturbed: Any
) -> None:
    arguments = ["--study", "random", "--trials", "40", "--workers", "3", "--kills", "0"]
    command = [sys.executable, str(SUPPORT / "storm.py"), postgresql, *arguments]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while len(list(Path("at_work").glob("*"))) < 3:
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    postgresql_cluster.stop()
    time.sleep(seconds)
    assert running.poll() is None
    postgresql_cluster.start()
    out, err = running.communicate(timeout=300)
    assert running.returncode == 0, err
    said = json.loads(out)
    assert_nothing_is_lost(said, 40)
    assert said["crashes"] == 0, err
    assert said["table"] == undisturbed("random", 40)


@pytest.mark.parametrize("url", ["sqlite:///a.db", "journal:///a.log"])
def test_a_full_disk_stops_the_study_with_an_error_and_it_goes_on_when_there_is_room(url: str) -> None:
    Path("adding.py").write_text("def objective(params):\n    yield from (params['x'] * i for i in range(1, 9))\n")
    content = {"name": "s", "objective": "adding:objective", "space": {"x": {"low": 0.0, "high": 1.0}}, "trials": 30}
    Path("s.yaml").write_text(json.dumps({**content, "sampler": "random", "pruner": "none"}))

    def run(limit: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hpo.cli", "run", "s.yaml", "--quiet", "--storage", url]
        limited = [sys.executable, "-c", LIMITED, str(limit), *command]
        return subprocess.run(limited, capture_output=True, text=True, timeout=120)

    full = run(200_000 if url.startswith("sqlite") else 12_000)
    assert full.returncode == 2, full.stderr
    assert full.stderr.startswith("error: the storage"), full.stderr
    assert "run the same command again" in full.stderr
    done = run(resource.RLIM_INFINITY)
    assert done.returncode == 0, done.stderr
    rows = optuna.load_study(study_name="s", storage=backends.connect(url)).trials
    assert [row.state for row in rows] == [TrialState.COMPLETE] * 30
    assert all(row.value == 8 * row.params["x"] and len(row.intermediate_values) == 8 for row in rows)


LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
os.execv(sys.argv[2], sys.argv[2:])
"""
