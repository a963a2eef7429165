"""Latency and size of the models as limits and as the second metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import two_models
from safetensors.torch import load_file

from hpo.analysis import preflight
from hpo.cli.study_text import front_text
from hpo.config import study_spec
from hpo.execution import model_costs, run_study, trial_arrays
from hpo.execution.memory_use import MEMORY
from hpo.finetune.several_models import SeveralModels
from hpo.storage.snapshot import read

URL = "sqlite:///hpo.db"
COSTS = {"words": {"latency_ms": 4.0, "size_mb": 9.0}, "characters": {"latency_ms": 2.0, "size_mb": 3.0}}
ROWS = [{"model": two_models.MODELS[number % 2], "learning_rate": 1e-3 * (number + 1)} for number in range(4)]


def build(folder: Path, **changes: Any) -> study_spec.StudySpec:
    parameters = {"learning_rate": {"low": 1e-3, "high": 1e-2}, "batch_size": 16, "epochs": 1}
    space = {"parameters": parameters, "configurations": ROWS}
    return study_spec.build(two_models.study(folder, space=space, baseline=False, **changes), "test", folder)


def test_the_front_is_the_best_trial_of_each_model_that_is_worth_its_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    measured = []
    monkeypatch.setattr(SeveralModels, "measured_costs", lambda self: measured.append(1) or COSTS)
    study = build(tmp_path, second_metric="size_mb", slots=2, threads=2)
    done = run_study.run(study, URL)
    run_study.run(build(tmp_path, second_metric="size_mb", trials=5), URL)  # other processes use the same numbers
    assert len(measured) == 1
    found = read(done.study)
    assert [trial.user_attrs["metrics"]["size_mb"] for trial in found.complete[:4]] == [9.0, 3.0, 9.0, 3.0]
    best = {model: max(t.value or 0 for t in found.complete if found.model(t) == model) for model in COSTS}
    expected = ["words", "characters"] if best["words"] > best["characters"] else ["characters"]
    assert sorted({str(found.model(trial)) for trial in found.front}) == sorted(expected)
    assert "size_mb (minimized)" in front_text(found)[0]
    assert found.attrs[MEMORY]["estimated"]["weights"] > 0

    limited = build(tmp_path, name="limited", limits={"latency_ms": 3})
    assert (
        preflight.check(limited, URL).notes[-1].startswith("no trial of words can be within the limits: its latency_ms")
    )
    within = read(run_study.run(limited, URL).study).within_limits
    assert {found.model(trial) for trial in within} == {"characters"}


def test_they_are_measured_of_the_model_as_it_is_exported(tmp_path: Path) -> None:
    array = trial_arrays.open_array(build(tmp_path))
    assert isinstance(array, SeveralModels)
    found = array.measured_costs()
    for model in two_models.MODELS:
        weights = load_file(tmp_path / model / "model.safetensors")
        published = sum(tensor.nbytes for tensor in weights.values()) / 1e6
        assert published * 0.9 < found[model]["size_mb"] < published * 1.3  # a head more, perhaps a pooler less
        assert 0.05 < found[model]["latency_ms"] < 10_000
    assert model_costs.costs_text(COSTS, ["size_mb"]) == "size_mb words 9, characters 3"
