"""Studies of several models: end to end, killed and gone on with, exported, trained again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import two_models
from interrupted import Interrupter, told

from hpo.analysis import preflight
from hpo.analysis.export import export, study_file
from hpo.cli import run_commands
from hpo.config import study_spec, yaml
from hpo.core.events import Silent
from hpo.execution import run_study
from hpo.storage.snapshot import read

URL = "sqlite:///hpo.db"
RATES = [{"learning_rate": 3e-3}, {"learning_rate": 4e-3}, {"learning_rate": 5e-3}, {"learning_rate": 6e-3}]
PARAMETERS = {"learning_rate": {"low": 1e-3, "high": 1e-2}, "batch_size": 8, "epochs": 2}


def build(folder: Path, **changes: Any) -> study_spec.StudySpec:
    return study_spec.build(two_models.study(folder, **changes), "test", folder)


def test_each_trial_is_that_of_a_study_of_its_model_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found: dict[str, list[Any]] = {}
    for name, model in (("both", two_models.MODELS), *((model, model) for model in two_models.MODELS)):
        rows = [{"model": two_models.MODELS[n % 2], **row} if name == "both" else row for n, row in enumerate(RATES)]
        space = {"parameters": PARAMETERS, "configurations": rows}
        study = build(tmp_path, name=name, model=model, space=space, slots=2, threads=2, baseline=False)
        done = run_study.run(study, URL)
        assert [trial.params.get("model", name) for trial in done.study.trials] == [
            row.get("model", name) for row in rows
        ]
        found[name] = [(state, value, curve, at) for state, _, value, curve, at in told(done.study)]
    assert found["both"] == [found[two_models.MODELS[number % 2]][number] for number in range(4)]


@pytest.mark.parametrize(
    "changes",
    [{"slots": 2, "threads": 2}, {"slots": 2, "round_size": 4, "pruner": {"name": "asha", "reduction_factor": 2}}],
    ids=["side by side", "in rounds"],
)
def test_an_interrupted_study_goes_on_and_evaluates_nothing_twice(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = build(tmp_path, trials=4, **changes)
    undisturbed, watch = run_study.run(study, "sqlite:///whole.db", found := Interrupter()).study, Interrupter(3)
    assert {trial.params["model"] for trial in undisturbed.trials} == set(two_models.MODELS)
    with pytest.raises(KeyboardInterrupt):
        run_study.run(study, "sqlite:///parts.db", watch)
    gone_on = run_study.run(study, "sqlite:///parts.db", rest := Interrupter()).study
    assert told(gone_on) == told(undisturbed)
    assert sorted(watch.evaluations + rest.evaluations) == sorted(found.evaluations)
    assert not [note for note in rest.notes if "begins anew" in note]


def test_a_check_describes_each_model(tmp_path: Path) -> None:
    plan = preflight.check(build(tmp_path, slots=2, fold=False), URL)
    assert plan.facts["models"] == "words, characters, fp32 on cpu"
    words, characters = (plan.facts[f"tokens a text with {name}"] for name in two_models.MODELS)
    assert words != characters
    assert [row.partition(": [CLS] ")[0] for row in plan.examples] == [*["words"] * 3, *["characters"] * 3]


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], run_commands.Outcome]:
    """Return a function that runs, or goes on with, a study whose best trial has the second model."""
    monkeypatch.chdir(tmp_path)
    space = {
        "parameters": {**PARAMETERS, "epochs": {"values": [1, 8], "when": {"model": "words"}}, "batch_size": [8, 32]},
        "baseline": {"model": "characters", "learning_rate": 1e-3, "batch_size": 32},
        "configurations": [{"model": "words", "learning_rate": 3e-3, "batch_size": 8, "epochs": 8}],
    }
    study = build(tmp_path, trials=2, space=space)
    return lambda: run_commands.run(study, URL, Silent())


def test_the_verdict_the_export_and_the_next_study_name_the_models_of_their_trials(
    finished: Callable[[], run_commands.Outcome], tmp_path: Path
) -> None:
    outcome = finished()
    look = outcome.json["test"]
    assert (look["best"]["number"], look["best"]["model"]) == (1, "words")
    assert (look["baseline"]["number"], look["baseline"]["model"]) == (0, "characters")
    assert "trial 1 of model words scores" in outcome.text
    assert "the published default (trial 0) of model characters scores" in outcome.text
    assert "<dd>words, characters</dd>" in (tmp_path / "runs" / "tiny" / "report.html").read_text()
    results = read(optuna.load_study(study_name="tiny", storage=URL))
    for number, family in ((None, "bert"), (0, "distilbert")):
        target = export(results, tmp_path / "runs" / "tiny" / "trials", tmp_path / family, number)
        assert json.loads((target / "config.json").read_text())["model_type"] == family
        assert f"Fine-tuned from {look['best' if number is None else 'baseline']['model']}" in (
            target / "README.md"
        ).read_text().replace("\\", "")
    written = study_spec.load(tmp_path / "bert" / "study.yaml")
    names = [str(tmp_path / name) for name in two_models.MODELS]
    assert written.config.model == names
    assert written.space.parameters["epochs"].when == {"model": names[0]}
    assert [written.space.first_trial()["model"], *(row["model"] for row in written.space.configurations)] == [
        names[1],
        names[0],
    ]
    assert yaml.read(tmp_path / "bert" / "study.yaml")[0]["space"] == study_file(results.attrs["config"])["space"]


def test_weights_that_are_missing_are_trained_again_with_their_model(
    finished: Callable[[], run_commands.Outcome], tmp_path: Path
) -> None:
    first = finished()
    shutil.rmtree(tmp_path / "runs" / "tiny" / "trials")
    shutil.rmtree(tmp_path / "runs" / "tiny" / "predictions")
    assert finished().json["test"] == first.json["test"]
    kinds = {
        number: json.loads((tmp_path / "runs" / "tiny" / "trials" / number / "config.json").read_text())["model_type"]
        for number in ("0", "1")
    }
    assert kinds == {"0": "distilbert", "1": "bert"}
