from __future__ import annotations

import datetime
import io
import itertools
import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from rich.console import Console
from ruamel.yaml import YAML

from hpo.cli.line_view import LineView
from hpo.cli.live import RECENT, LiveView, view
from hpo.cli.progress import Progress
from hpo.cli.view import QuietView
from hpo.core.formatting import wrapped
from hpo.core.trainer import Evaluation
from hpo.storage.snapshot import Results

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


def picture(live: LiveView, width: int = 140) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(live)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_a_terminal_gets_a_table_a_log_lines_and_quiet_nothing() -> None:
    assert isinstance(view(False, terminal()), LiveView)
    assert isinstance(view(False, Console(file=io.StringIO())), LineView)
    assert isinstance(view(True, terminal()), QuietView)


def test_the_table_follows_the_study() -> None:
    with LiveView(terminal()) as live:
        live.opened("sst2 [b]", "accuracy", "maximize", 4, [trial(0, 0.8, baseline=True)])
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
        live.closed()


def test_the_best_stays_in_sight() -> None:
    live = LiveView(terminal())
    live.opened("s", "loss", "minimize", 20, [trial(n, 0.1 + n) for n in range(15)])
    live.closed()
    ended = [line for line in picture(live).splitlines() if "complete" in line]
    assert len(ended) == RECENT
    assert ended[0].startswith("0 ★")


def test_a_table_can_be_closed_at_any_time() -> None:
    with LiveView(terminal()) as never_opened:
        never_opened.closed()
    with LiveView(terminal()) as live:
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
    with LiveView(console) as live:
        live.opened("s", "accuracy", "maximize", 1, [])
        live.note("the space is [bold]exhausted[/bold]\x1b[31m")
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
    assert progress.left == 5 * 10 / 4  # the three others have run for as long
    for number in range(1, 9):
        progress.end(trial(number))
    assert progress.left == 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the time, in seconds, as one number that a test sets."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_time_left_is_known_from_the_first_step_and_moves_with_every_further_one(clock: list[float]) -> None:
    progress = Progress.of("s", "accuracy", "maximize", 6, [])
    for number in range(2):
        progress.start(number, {})
    progress.measure({0: (0, 1000), 1: (0, 1000)})
    clock[0] = 5.0
    progress.measure({0: (0, 1000), 1: (0, 1000)})
    assert progress.left is None
    assert progress.speed is None
    clock[0] = 10.0
    progress.measure({0: (100, 1000), 1: (100, 1000)})
    assert progress.speed == pytest.approx(20)
    assert progress.left == pytest.approx((2 * 900 + 4 * 1000) / 20)
    clock[0] = 20.0
    progress.measure({0: (200, 1000), 1: (200, 1000)})
    assert progress.left == pytest.approx((2 * 800 + 4 * 1000) / 20)


def test_time_left_learns_from_trials_that_were_pruned(clock: list[float]) -> None:
    progress = Progress.of("s", "accuracy", "maximize", 11, [])
    progress.start(0, {})
    progress.measure({0: (0, 1000)})
    clock[0] = 10.0
    progress.measure({0: (100, 1000)})
    whole = progress.left
    assert whole == pytest.approx((900 + 10 * 1000) / 10)
    progress.end(trial(0, 0.5, TrialState.PRUNED))
    assert progress.left == pytest.approx(10 * 100 / 10)


def test_the_last_trial_takes_the_time_of_one_slot(clock: list[float]) -> None:
    progress = Progress.of("s", "accuracy", "maximize", 4, [])
    for number in range(4):
        progress.start(number, {})
    progress.measure(dict.fromkeys(range(4), (0, 1000)))
    clock[0] = 10.0
    progress.measure({0: (500, 1000)} | dict.fromkeys(range(1, 4), (1000, 1000)))
    for number in range(1, 4):
        progress.end(trial(number))
    assert progress.left == pytest.approx(500 / (3500 / 40))


def test_what_a_trial_had_seen_before_it_came_here_counts_for_no_speed(clock: list[float]) -> None:
    progress = Progress.of("s", "accuracy", "maximize", 1, [])
    progress.start(0, {})
    progress.measure({0: (900, 1000)})
    clock[0] = 10.0
    progress.measure({0: (910, 1000)})
    assert progress.speed == pytest.approx(1)
    assert progress.left == pytest.approx(90)


def test_a_trial_that_pauses_is_not_measured_meanwhile(clock: list[float]) -> None:
    progress = Progress.of("s", "accuracy", "maximize", 1, [])
    progress.start(0, {})
    progress.measure({0: (0, 1000)})
    clock[0] = 10.0
    progress.measure({0: (100, 1000)})
    progress.measure({})
    assert progress.speed is None
    clock[0] = 500.0
    progress.measure({0: (100, 1000)})
    clock[0] = 510.0
    progress.measure({0: (200, 1000)})
    assert progress.speed == pytest.approx(10)
    assert progress.left == pytest.approx(80)


def test_a_trial_that_begins_anew_is_measured_anew(clock: list[float]) -> None:
    progress = Progress.of("s", "accuracy", "maximize", 1, [])
    progress.start(0, {})
    for now, seen in ((0.0, 500), (10.0, 600), (20.0, 0), (30.0, 100)):
        clock[0] = now
        progress.measure({0: (seen, 1000)})
        if seen == 600:
            progress.start(0, {})  # put back, and loaded again from its seeds
    assert progress.speed == pytest.approx(10)


def test_without_examples_the_time_that_a_trial_has_run_is_taken_off_what_is_left(clock: list[float]) -> None:
    progress = Progress.of("s", "value", "maximize", 3, [])
    progress.start(0, {})
    progress.evaluate(0, Evaluation(0.5))
    clock[0] = 10.0
    progress.end(trial(0))
    progress.start(1, {})
    assert progress.left == pytest.approx(20)
    clock[0] = 14.0
    assert progress.left == pytest.approx(16)
    progress.start(2, {})
    clock[0] = 40.0
    assert progress.left is None  # both run for longer than any has


# ---------------------------------------------------------------- what else is done


@pytest.mark.parametrize("kind", [LiveView, LineView])
def test_what_hpo_logs_is_shown_while_the_view_is_open(kind: type[LiveView | LineView]) -> None:
    console = terminal()
    log = logging.getLogger("hpo.finetune.data.sources")
    with kind(console) as shown:
        log.info("tokenising %s rows of train", "6,000")
        log.debug("no word of this")
        seen = picture(shown) if isinstance(shown, LiveView) else console.file.getvalue()  # type: ignore[attr-defined]
        assert "tokenising 6,000 rows of train" in seen
        assert "no word" not in seen
    log.info("after the end")
    assert "after the end" not in console.file.getvalue()  # type: ignore[attr-defined]
    assert not logging.getLogger("hpo").handlers
    assert not (isinstance(shown, LiveView) and "tokenising" in picture(shown))


def test_training_takes_the_place_of_what_was_done_before() -> None:
    with LiveView(terminal()) as live:
        live.doing("loading torch")
        assert re.search(r"loading torch  0\.\d s", picture(live))
        live.opened("s", "accuracy", "maximize", 1, [])
        assert "loading" not in picture(live)
        live.doing("waiting for others")
        live.follow(lambda: {0: (10, 100)})
        assert "waiting" not in picture(live)
        live.closed()
        live.doing("scoring the test split")
        assert "scoring the test split" in picture(live)


def test_a_bar_moves_within_a_segment() -> None:
    with LiveView(terminal()) as live:
        live.opened("s", "accuracy", "maximize", 1, [])
        live.started(0, {"x": 1})
        bars = []
        for seen in (100, 900):
            live.follow(lambda seen=seen: {0: (seen, 1000)})  # type: ignore[misc]
            bars.append(picture(live).splitlines()[-1])
        assert bars[0] != bars[1]


# ---------------------------------------------------------------- width

LONG = {"learning_rate": 2.1234e-5, "batch_size": 16, "weight_decay": 0.01, "warmup_ratio": 0.1, "schedule": "linear"}


def crowded() -> LiveView:
    """Return a view with all that a table may have to hold."""
    live = LiveView(terminal())
    failed = {"reason": "ValueError", "detail": "the tensors of layer seven have other shapes than those expected"}
    ended = [trial(0, 0.8, baseline=True), trial(11, 0.75, TrialState.PRUNED, reason="out_of_memory")]
    live.opened("reviews", "accuracy", "maximize", 40, [*ended, trial(3, None, TrialState.FAIL, **failed)])
    for number in (4, 12):
        live.started(number, LONG)
        live.evaluated(number, Evaluation(0.8512 + number / 1000, at=500, of=1000))
    return live


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_number_and_score_are_whole_at_every_width(width: int) -> None:
    lines = picture(crowded(), width).splitlines()
    assert max(map(len, lines)) <= width
    words = [line.split() for line in lines]
    heads = [row for row in words if row[:1] in (["running"], ["ended"])]
    assert [row[0] for row in heads] == ["running", "ended"]
    assert all("accuracy" in row for row in heads)
    scores = {row[0]: row[-1] for row in words if row and row[0] in ("4", "12")}
    assert scores == {"4": "0.8552", "12": "0.8632"}
    assert ["0", "★", "complete", "0.8"] in [row[:4] for row in words]
    assert ["11", "pruned", "0.75"] in [row[:3] for row in words]
    assert ["3", "fail", "-"] in [row[:3] for row in words]
    whole = {"running", "hyperparameters", "progress", "accuracy", "ended", "state", "time", "reason"}
    assert {word for row in heads for word in row} <= whole


@pytest.mark.parametrize(
    ("width", "there"),
    [
        (40, {"progress", "time"}),
        (60, {"progress", "time", "hyperparameters", "reason"}),
        (120, {"progress", "time", "hyperparameters", "reason"}),
    ],
)
def test_columns_give_way_in_the_order_of_their_use(width: int, there: set[str]) -> None:
    shown = picture(crowded(), width)
    assert {name for name in ("progress", "time", "hyperparameters", "reason") if name in shown} == there


def test_the_bar_is_wide_only_where_all_hyperparameters_are_too() -> None:
    for width, widest in ((80, 8), (140, 16)):
        row = next(line for line in picture(crowded(), width).splitlines() if line.startswith("4 "))
        assert max(map(len, re.findall("[━╸╺]+", row))) <= widest
        assert ("schedule linear" in row) == (width == 140)
    row = next(line for line in picture(crowded(), 80).splitlines() if line.startswith("4 "))
    assert re.search(r"learning_rate 2\.1e-05, batch_size 16, …", row)  # whole pairs


def test_notes_and_results_break_between_words() -> None:
    console = terminal(40)
    said = "the checkpoint of trial 3 is unreadable and so it begins anew from /tmp/" + "long" * 20
    with LiveView(console) as live:
        live.note(said)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(word in shown for word in said.split())
    assert wrapped("  hpo show a\n\n" + said, 40).split() == ["hpo", "show", "a", *said.split()]
    assert wrapped("  hpo show a\n\nb", 40) == "  hpo show a\n\nb"


# ---------------------------------------------------------------- a log


def lines_of(console: Console) -> list[str]:
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text.splitlines()


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


def test_a_whole_study_passes(sample_results: Callable[..., Results]) -> None:
    results = sample_results()
    ended = [t for t in results.trials if t.state.is_finished()]
    for shown in (LiveView(terminal(60)), LineView(Console(file=io.StringIO())), QuietView()):
        shown.opened(results.name, results.metric, results.direction, 30, ended[:20])
        with shown:
            for one in ended[20:]:
                shown.started(one.number, one.params)
                shown.ended(one)
            shown.closed()
