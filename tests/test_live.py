from __future__ import annotations

import datetime
import io
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from rich.console import Console

from hpo.live import RECENT, LineView, LiveView, QuietView, view
from hpo.objective import Evaluation
from hpo.progress import Progress
from hpo.results import Results

PARAMS = {"learning_rate": 2.1234e-5, "name": "[red]x[/red]"}


def trial(number: int, value: float | None = 0.5, state: TrialState = TrialState.COMPLETE, **attrs: Any) -> FrozenTrial:
    made = create_trial(
        state=state,
        value=value,
        params=dict(PARAMS),
        distributions={
            "learning_rate": FloatDistribution(1e-5, 1e-3),
            "name": CategoricalDistribution(("[red]x[/red]",)),
        },
        user_attrs=attrs,
    )
    made.number = number
    made.datetime_start = datetime.datetime(2025, 3, 1)
    made.datetime_complete = made.datetime_start + datetime.timedelta(seconds=12)
    return made


def terminal(width: int = 140) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=40, color_system=None)


def picture(live: LiveView) -> str:
    console = Console(file=io.StringIO(), width=140, color_system=None)
    console.print(live._render())
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_a_terminal_gets_a_table_a_log_lines_and_quiet_nothing() -> None:
    assert isinstance(view(False, terminal()), LiveView)
    assert isinstance(view(False, Console(file=io.StringIO())), LineView)
    assert isinstance(view(True, terminal()), QuietView)


def test_the_table_follows_the_study() -> None:
    live = LiveView(terminal())
    live.opened("sst2 [b]", "accuracy", "maximize", 4, [trial(0, 0.8, baseline=True)])
    try:
        live.started(1, PARAMS)
        assert "sst2 [b]  1/4 trials  best accuracy 0.8 (trial 0)" in picture(live)
        assert "left 36 s" in picture(live)
        live.evaluated(1, Evaluation(0.8512, at=500, of=1000))
        shown = picture(live)
        assert re.search(r"1 +learning_rate 2\.1e-05, name \[red\]x\[/red\] +━+.* +0\.8512", shown)
        assert re.search(r"0 ★ +complete +0\.8 +12 s +published default", shown)
        live.ended(trial(1, 0.9))
        assert "best accuracy 0.9 (trial 1)" in picture(live)
        assert "hyperparameters" not in picture(live)
        live.ended(trial(2, 0.95, TrialState.PRUNED, reason="out_of_memory"))
        shown = picture(live)
        assert re.search(r"2 +pruned +0\.95 +12 s +out of memory", shown)
        assert "best accuracy 0.9 (trial 1)" in shown
    finally:
        live.closed()


def test_the_best_stays_in_sight() -> None:
    live = LiveView(terminal())
    live.opened("s", "loss", "minimize", 20, [trial(n, 0.1 + n) for n in range(15)])
    live.closed()
    ended = [line for line in picture(live).splitlines() if "complete" in line]
    assert len(ended) == RECENT
    assert ended[0].startswith("0 ★")


def test_a_table_can_be_closed_at_any_time() -> None:
    never_opened = LiveView(terminal())
    never_opened.closed()
    live = LiveView(terminal())
    live.opened("s", "accuracy", "maximize", 1, [])
    live.started(0, {})
    live.evaluated(0, Evaluation(float("nan")))
    live.evaluated(7, Evaluation(0.5))
    live.ended(trial(0, None, TrialState.FAIL))
    live.closed()
    live.closed()
    assert "1/1 trials  best accuracy -" in picture(live)


def test_notes_stand_above_the_table() -> None:
    console = terminal()
    live = LiveView(console)
    live.opened("s", "accuracy", "maximize", 1, [])
    live.note("the space is [bold]exhausted[/bold]\x1b[31m")
    live.closed()
    assert "the space is [bold]exhausted[/bold]�[31m" in console.file.getvalue()  # type: ignore[attr-defined]


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


def test_quiet_says_notes_on_the_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    quiet = QuietView()
    quiet.opened("s", "accuracy", "maximize", 1, [])
    quiet.started(0, PARAMS)
    quiet.evaluated(0, Evaluation(0.5))
    quiet.ended(trial(0))
    quiet.note("the space is exhausted")
    quiet.closed()
    assert capsys.readouterr() == ("", "the space is exhausted\n")


def test_time_left_counts_trials_that_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    progress = Progress.of("s", "accuracy", "maximize", 9, [])
    assert progress.left is None
    for number in range(4):
        progress.start(number, {})
    clock[0] = 10.0
    assert progress.end(trial(0)) == 10.0  # as measured here, not the 12 of its own dates
    assert progress.left == 8 * 10 / 4
    for number in range(1, 9):
        progress.end(trial(number))
    assert progress.left == 0.0


def test_a_whole_study_passes(sample_results: Callable[..., Results]) -> None:
    results = sample_results()
    ended = [t for t in results.trials if t.state.is_finished()]
    for shown in (LiveView(terminal(60)), LineView(Console(file=io.StringIO())), QuietView()):
        shown.opened(results.name, results.metric, results.direction, 30, ended[:20])
        for one in ended[20:]:
            shown.started(one.number, one.params)
            shown.ended(one)
        shown.closed()
