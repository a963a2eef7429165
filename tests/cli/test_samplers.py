"""The command `hpo compare --samplers`, end to end on an objective of one's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

OBJECTIVE = """
def objective(params):
    for step in range(1, 4):
        yield 1 - (params["x"] - 0.7) ** 2 - 1 / step
"""
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(hpo_command: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Return a function that runs `hpo ...` beside a study file: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPO_STORAGE", raising=False)
    (tmp_path / "parabola.py").write_text(OBJECTIVE)
    raw: dict[str, Any] = {"name": "s", "objective": "parabola:objective", "trials": 5, "pruner": "none"}
    (tmp_path / "s.yaml").write_text(json.dumps({**raw, "space": {"x": {"low": 0.0, "high": 1.0}}}))

    return hpo_command


def test_samplers_are_run_and_compared(call: Call) -> None:
    code, out, err = call("compare", "s.yaml", "--samplers", "random,tpe,auto", "--seeds", "3", "-q")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("Samplers at equal cost, 3 seeds each: all are compared at 15 steps")
    assert "Best value so far, over the steps that all trials have trained: mean of 3 seeds (lowest to highest):" in out
    assert "to random (97.5% confidence)" in out
    assert lines[-1] == "page: runs/s/samplers.html"
    assert Path("runs/s/samplers.html").stat().st_size > 1_000_000
    names = sorted(optuna.get_all_study_names("sqlite:///hpo.db"))
    assert names == sorted(f"s.{name}{seed}" for name in ("random", "tpe", "auto") for seed in ("", ".2", ".3"))
    shown = json.loads(call("show", "s.tpe", "--json")[1])
    found = json.loads(call("compare", "s.yaml", "--samplers", "random,tpe,auto", "--seeds", "3", "--json")[1])
    assert found["samplers"][1]["studies"][0]["best"] == shown["best"]["value"]
    assert found["samplers"][1]["studies"][0]["counts"] == shown["counts"]


def test_the_budget_of_the_command_line_is_that_of_all(call: Call) -> None:
    code, out, err = call("compare", "s.yaml", "--samplers", "random,qmc", "--set", "trials=2", "-q")
    assert code == 0, err
    assert "One seed cannot tell samplers apart" in out
    code, out, err = call("compare", "s.yaml", "--samplers", "random,qmc", "--set", "trials=3", "--json")
    assert [sum(each["studies"][0]["counts"].values()) for each in json.loads(out)["samplers"]] == [3, 3]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["s.yaml"], "takes two studies, or one study and --samplers random,tpe"),
        (["s.yaml", "other", "--samplers", "random,tpe"], "takes two studies, or one study and --samplers random,tpe"),
        (["s.yaml", "--samplers", "tpe, tpe"], "write two samplers or more with commas between"),
        (["s.yaml", "--samplers", "random,grid,tpee"], "--samplers: 2 problems"),
    ],
)
def test_a_mistake_is_said_and_nothing_is_written(call: Call, arguments: list[str], said: str) -> None:
    code, _, err = call("compare", *arguments)
    assert code == 2
    assert said in err
    assert not Path("hpo.db").exists()


def test_a_study_that_fails_ends_the_comparison(call: Call) -> None:
    Path("parabola.py").write_text("def objective(params):\n    raise RuntimeError('no')\n")
    code, out, _ = call("compare", "s.yaml", "--samplers", "random,tpe", "-q")
    assert code == 1
    assert "s.random: " in out
    assert "nothing is compared" in out
    assert optuna.get_all_study_names("sqlite:///hpo.db") == ["s.random"]
