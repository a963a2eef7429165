from __future__ import annotations

import io
import logging
import os
import re
import signal
import sys
from collections.abc import Callable

import pytest
import typer
from optuna.trial import TrialState
from rich.console import Console
from views import PARAMS, trial

from hpo.cli.line_view import LineView
from hpo.cli.live import RECENT, LiveView, view, watched
from hpo.cli.view import QuietView
from hpo.core.formatting import wrapped
from hpo.core.trainer import Evaluation
from hpo.storage.snapshot import Results


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


def test_quiet_says_notes_on_the_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    quiet = QuietView()
    quiet.opened("s", "accuracy", "maximize", 1, [])
    quiet.started(0, PARAMS)
    quiet.evaluated(0, Evaluation(0.5))
    quiet.ended(trial(0))
    quiet.note("the space is exhausted")
    quiet.closed()
    assert capsys.readouterr() == ("", "the space is exhausted\n")


# ---------------------------------------------------------------- what else is done


@pytest.mark.parametrize("kind", [LiveView, LineView])
def test_what_hpo_logs_is_shown_while_the_view_is_open(kind: type[LiveView | LineView]) -> None:
    console = terminal()
    log = logging.getLogger("hpo.tasks.loading")
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


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_says_what_is_put_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], signal_: signal.Signals
) -> None:
    monkeypatch.setattr(sys, "argv", ["hpo", "run"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(typer.Exit) as caught, watched(True, False, "trials that ran"):
            os.kill(os.getpid(), signal_)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.exit_code == 130
    said = " ".join(capsys.readouterr().err.split())
    assert said == "stopped; trials that ran are put back, and the same command goes on from here"
