"""`hpo show STUDY TRIAL`: one trial, and what the pruner decided about it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import hpo

Call = Callable[..., tuple[int, str, str]]
URL = "sqlite:///s.db"


@pytest.fixture
def call(hpo_command: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Return a function that runs `hpo ...` in `tmp_path`: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    return lambda *arguments: hpo_command(*arguments, "--storage", URL)


def ran(pruner: Any) -> None:
    """Run three trials: each begins lower than the one before, and falls."""
    heights = iter([0.9, 0.8, 0.7])

    def falling(params: Mapping[str, Any]) -> Iterator[float]:
        height = next(heights)
        yield from (round(height - 0.01 * step, 3) for step in range(4))

    hpo.optimize(falling, {"x": [0, 1, 2]}, sampler="grid", trials=3, name="s", storage=URL, pruner=pruner)


def lines(out: str) -> list[str]:
    return [" ".join(line.split()) for line in out.splitlines()]


def test_a_trial_that_the_pruner_ended_is_shown_with_what_it_was_compared_to(call: Call) -> None:
    ran({"name": "asha", "reduction_factor": 2})
    shown = lines(call("show", "s", "0")[1])
    assert shown[0] == "trial 0 of s: COMPLETE, 0.9"
    assert shown[2:5] == [
        "decisions of the pruner:",
        "after decision its value to reach compared with",
        "1 goes on 0.9 0.9 0 other trials",
    ]
    ended = lines(call("show", "s", "1")[1])
    assert ended[0] == "trial 1 of s: PRUNED, 0.8, pruner: 0.8 at 1, 0.9 needed"
    assert ended[4:] == ["1 ends 0.8 0.9 1 other trial"]
    assert "pruner: 0.8 at 1, 0.9 needed" in call("trials", "s")[1]


def test_pauses_are_among_the_decisions(call: Call) -> None:
    ran({"name": "asha", "reduction_factor": 2, "type": "promotion"})
    shown = lines(call("show", "s", "0")[1])
    assert shown[4:6] == [
        "1 pauses 0.9 0 other trials too few trials to compare with",
        "1 goes on 0.9 0.9 1 other trial",
    ]


def test_a_trial_as_json_has_its_curve_and_its_decisions(call: Call) -> None:
    ran({"name": "median", "n_startup_trials": 1})
    found = json.loads(call("show", "s", "1", "--json")[1])
    assert (found["number"], found["state"], found["intermediate_values"]) == (1, "PRUNED", {"1": 0.8})
    row = {"step": 1, "decision": "prune", "value": 0.8, "among": 1, "needed": 0.9, "why": None}
    assert found["decisions"] == [row]


def test_a_trial_without_decisions_says_so(call: Call) -> None:
    ran("none")
    assert lines(call("show", "s", "2")[1])[2:] == ["no decision of the pruner is stored with it"]


def test_a_trial_that_is_not_there_is_an_error(call: Call) -> None:
    ran("none")
    code, _, err = call("show", "s", "7")
    assert code == 2
    assert "study 's' has no trial 7; see hpo trials s" in err
