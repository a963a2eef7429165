"""Limits and fronts on the command line: a real tiny transformer, and a custom objective."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from ruamel.yaml import YAML

import hpo

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(hpo_command: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Return a function that runs `hpo ...` in `tmp_path`: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPO_STORAGE", raising=False)
    return hpo_command


def test_a_study_of_a_transformer_from_no_best_trial_to_one(call: Call, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"limits": {"loss": 1e-9}, "second_metric": "f1_macro", "metric": "accuracy", "trials": 4}
    keys |= {"baseline": False, "pruner": "none"}
    YAML().dump(tiny.study(tmp_path, **keys), tmp_path / "tiny.yaml")
    code, out, err = call("run", "tiny.yaml", "-q")
    assert code == 0, err
    assert out.startswith(
        "none of 4 completed trials is within the limits of tiny, so none is the best. The nearest is"
    )
    for command in (("best", "tiny"), ("export", "tiny", "-o", "exported"), ("confirm", "tiny", "--top", "1")):
        code, out, err = call(*command)
        assert code == 2
        assert "within the limits of tiny, so none is the best" in err
    code, out, _ = call("show", "tiny")
    assert "limits: loss at most 1e-09; 0 of 4 completed trials are within them" in out
    shown = json.loads(call("show", "tiny", "--json")[1])
    assert (shown["best"], shown["verdict"], shown["front"]) == (None, None, [])
    assert shown["limits"]["nearest"] in range(4)

    code, out, err = call("run", "tiny.yaml", "-q", "--set", "limits.loss=10")
    assert code == 0, err
    assert (
        'limits: was {"loss": {"most": 1e-09}} for the 4 trials that have ended, is now {"loss": {"most": 10.0}}' in err
    )
    assert "is trained again" in err  # the weights of the best trial had not been kept
    assert "best: trial" in out
    found = json.loads(call("best", "tiny", "--json")[1])
    assert found["front"][0]["value"] == found["value"]
    assert {"loss", "f1_macro"} <= found["user_attrs"]["metrics"].keys()
    code, out, _ = call("best", "tiny")
    assert "front of accuracy and f1_macro (maximized)" in out
    assert call("export", "tiny", "-o", "exported")[0] == 0


def test_the_weights_of_the_front_are_kept(call: Call, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"second_metric": "device_seconds", "trials": 5, "baseline": False, "pruner": "none"}
    YAML().dump(tiny.study(tmp_path, **keys), tmp_path / "tiny.yaml")
    assert call("run", "tiny.yaml", "-q")[0] == 0
    best = json.loads(call("best", "tiny", "--json")[1])
    numbers = [trial["number"] for trial in best["front"]]
    assert best["number"] == numbers[0]
    assert sorted(path.name for path in Path("runs/tiny/trials").iterdir()) == sorted(map(str, numbers))
    code, out, err = call("export", "tiny", "-o", "exported", "--trial", str(numbers[-1]))
    assert (code, out.strip()) == (0, "exported"), err
    page = Path("runs/tiny/report.html").read_text("utf-8")
    assert "Front of accuracy and device_seconds (minimized)" in page


def test_an_export_beyond_the_limits_says_so(call: Call, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"limits": {"loss": 1e-9}, "trials": 2, "pruner": "none"}
    YAML().dump(tiny.study(tmp_path, **keys), tmp_path / "tiny.yaml")
    assert call("run", "tiny.yaml", "-q")[0] == 0
    code, _, err = call("export", "tiny", "-o", "exported", "--trial", "0")  # the published default's weights are kept
    assert code == 0, err
    assert "warning: Trial 0 is beyond the limits of the study: loss" in err
    assert "is beyond the limits of the study" in Path("exported/README.md").read_text("utf-8")


def test_a_metric_that_is_not_of_the_task_is_told_before_anything_is_written(call: Call, tmp_path: Path) -> None:
    YAML().dump(tiny.study(tmp_path, limits={"entity_f1": 0.5}), tmp_path / "tiny.yaml")
    code, _, err = call("run", "tiny.yaml")
    assert code == 2
    assert "entity_f1" in err
    assert "is not defined for" in err
    assert not Path("hpo.db").exists()


def test_the_front_of_a_custom_objective_is_a_table(call: Call) -> None:
    def objective(params: Any) -> hpo.Evaluation:
        return hpo.Evaluation(6 - abs(6 - params["width"]), metrics={"ms": 10 * params["width"]})

    hpo.optimize(
        objective,
        {"width": [1, 2, 6, 7]},
        sampler="grid",
        storage="sqlite:///hpo.db",
        limits={"ms": {"most": 65}},
        second_metric={"name": "ms", "direction": "minimize"},
        name="toy",
    )
    code, out, _ = call("best", "toy")
    assert code == 0
    lines = out.splitlines()
    at = lines.index("front of value and ms (minimized): 3 of 3 trials")
    assert lines[at + 1].split() == ["trial", "value", "ms", "width"]
    assert [line.split()[1:] for line in lines[at + 2 :]] == [["6", "60", "6"], ["2", "20", "2"], ["1", "10", "1"]]
    assert "limits: ms at most 65; 3 of 4 completed trials are within them" in call("show", "toy")[1]
