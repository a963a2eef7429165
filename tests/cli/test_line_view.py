from __future__ import annotations

import io
import itertools
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from optuna.trial import TrialState
from rich.console import Console
from ruamel.yaml import YAML
from views import PARAMS, trial

from hpo.cli.line_view import LineView
from hpo.core.trainer import Evaluation


def lines_of(console: Console) -> list[str]:
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text.splitlines()


def test_one_plain_line_an_ended_trial() -> None:
    console = Console(file=io.StringIO(), width=20)
    lines = LineView(console)
    lines.opened("sst2", "accuracy", "maximize", 3, [trial(0, 0.8)])
    lines.started(1, PARAMS)
    lines.evaluated(1, Evaluation(0.5, at=10))
    lines.ended(trial(1, 0.9))
    lines.ended(trial(2, None, TrialState.FAIL, reason="ValueError:\nbad\x1b[31m"))
    lines.note("the space is exhausted")
    lines.closed()
    opened, first, second, note = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert opened == "study sst2 metric=accuracy direction=maximize finished=1/3"
    assert first.startswith("trial 1 state=complete value=0.9 seconds=0.0 finished=2/3 best=0.9 best_trial=1")
    assert first.endswith('learning_rate=2.123e-05 name="[red]x[/red]"')
    assert "\x1b" not in second
    assert re.match(r'trial 2 state=fail seconds=12.0 reason="ValueError: bad.*" finished=3/3 best=0.9', second)
    assert note == 'note "the space is exhausted"'


def test_an_evaluation_is_a_line_unless_the_trial_has_just_had_one(clock: list[float]) -> None:
    lines = LineView(Console(file=io.StringIO()))
    lines.opened("s", "accuracy", "maximize", 2, [])
    lines.started(0, PARAMS)
    for now, at in ((1.0, 100), (20.0, 200), (21.0, 300), (36.0, 400)):
        clock[0] = now
        lines.evaluated(0, Evaluation(0.5, at=at, of=1000))
    said = [line for line in lines_of(lines.console) if line.startswith("trial 0")]
    assert [line.split()[3] for line in said] == ["at=200", "at=400"]
    assert said[1].startswith("trial 0 value=0.5 at=400 of=1000 left=")


def test_the_state_is_a_line_of_what_is_done_or_of_how_far_the_trials_are(clock: list[float]) -> None:
    lines = LineView(Console(file=io.StringIO()))
    lines.doing("loading torch")
    clock[0] = 20.0
    assert lines._state() == 'doing "loading torch" seconds=20'
    lines.opened("s", "accuracy", "maximize", 3, [])
    assert lines._state() == "running trials=- finished=0/3 left=unknown"
    lines.started(0, PARAMS)
    lines.started(1, PARAMS)
    assert lines._state() == "running trials=0,1 finished=0/3 left=unknown"
    lines.follow(lambda: {0: (0, 1000), 1: (0, 1000)})
    clock[0] = 30.0
    lines.follow(lambda: {0: (100, 1000), 1: (50, 1000)})
    assert lines._state() == (
        'running trials=0,1 seen=100/1000,50/1000 examples_per_second=15 finished=0/3 left="3 min 10 s"'
    )


def test_a_log_is_never_silent_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpo.cli.line_view.SILENCE", 0.2)
    with LineView(Console(file=io.StringIO())) as lines:
        lines.opened("s", "accuracy", "maximize", 1, [])
        lines.started(0, PARAMS)
        deadline = time.monotonic() + 30
        while len(lines_of(lines.console)) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
    said = lines_of(lines.console)
    assert said[1:4] == ["running trials=0 finished=0/1 left=unknown"] * 3
    time.sleep(0.5)
    assert lines_of(lines.console) == said


SLOW = """
import time
def objective(params):
    for step in range(2):
        time.sleep(8)
        yield params["x"]
"""


def test_a_slow_study_speaks_to_a_log_from_the_start_and_all_along(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "slow.yaml").write_text("objective: slow:objective\nspace: {x: [1, 2]}\ntrials: 1\npruner: none\n")
    code = "import hpo.cli.line_view; hpo.cli.line_view.SILENCE = 1.0; from hpo.cli import app; app.main()"
    command = [sys.executable, "-c", code, "run", "slow.yaml"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        times, said = [time.monotonic()], []
        for line in process.stdout:
            times.append(time.monotonic())
            said.append(line.rstrip())
    assert process.returncode == 0
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert max(gaps) < 6, said  # the objective is silent for eight seconds
    assert said[0] == 'doing "loading Optuna"'
    assert 'doing "reading slow.yaml"' in said
    assert "running trials=0 finished=0/1 left=unknown" in said


def test_torch_is_named_before_it_is_loaded_and_every_step_of_loading_after_it(tmp_path: Path) -> None:
    YAML().dump(tiny.study(tmp_path, trials=1, fold=True), tmp_path / "tiny.yaml")
    code = (
        "import logging, sys\n"
        "class Told(logging.Handler):\n"
        "    def emit(self, record): print('torch' in sys.modules, record.getMessage(), flush=True)\n"
        "logging.getLogger('hpo').addHandler(Told())\n"
        "from hpo.cli import app; app.main()"
    )
    command = [sys.executable, "-c", code, "run", "tiny.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    said = [line for line in done.stdout.splitlines() if line.startswith(("True ", "False "))]
    for step in (f"reading {tmp_path}/data.csv", "loading torch and transformers"):
        assert f"False {step}" in said, step
    for step in (
        f"loading the model {tmp_path}/model",
        "tokenising 60 rows of train",
        "tokenising 30 rows of validation",
        "tokenising 30 rows of test",
        "checking that trials of BertForSequenceClassification can train as one model",
        "opening the study in sqlite:///hpo.db",
        "scoring trial 0 on the test split",
        "writing the report",
    ):
        assert f"True {step}" in said, step
