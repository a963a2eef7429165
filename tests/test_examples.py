from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from optuna.trial import TrialState

import hpo
from hpo.config import study_spec
from hpo.core.errors import ConfigError
from hpo.execution import run_study

os.environ["HF_HUB_OFFLINE"] = "1"

EXAMPLES = Path(__file__).parents[1] / "examples"
TRIALS = {
    "huggingface_trainer": 2,
    "optuna_objective": 3,
    "pytorch_lstm": 2,
    "pytorch_transformer": 2,
    "sklearn_pipeline": 4,
}
PARAMS = {"learning_rate": 3e-3, "batch_size": 16, "warmup_ratio": 0.1}


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Run in a folder of its own, find the examples, and use one thread: the models are tiny."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_example_is_known() -> None:
    found = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*") if path.suffix != ".pyc"}
    others = {"ray_cluster.py", "slurm", "slurm/hpo.sbatch"}  # see test_ray_worker.py and test_slurm.py
    others |= {"pytorch_lstm.yaml", "speech_questions.py"}  # see test_shipped_files.py
    others |= {
        "debian_descriptions.py",
        "minilm_encoder_decoder.py",
        "smollm2_model.py",
    }  # see test_language_examples.py
    assert found - {"__pycache__"} == {f"{name}.py" for name in TRIALS} | others


@pytest.mark.parametrize("name", TRIALS)
def test_an_example_says_how_to_run_it_and_does(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    example = importlib.import_module(name)
    assert f"python examples/{name}.py" in (example.__doc__ or "")
    study = example.main(trials=TRIALS[name])
    states = [trial.state for trial in study.trials]
    assert len(states) == TRIALS[name]
    assert set(states) <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert f"best of {TRIALS[name]} trials" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_study_file_runs_and_resumes(tmp_path: Path) -> None:
    for trials in (1, 3):
        study = study_spec.load(EXAMPLES / "pytorch_lstm.yaml", {"trials": trials})
        finished = run_study.run(study, f"sqlite:///{tmp_path / 'hpo.db'}")
        assert finished.stopped is None
        assert len(finished.study.trials) == trials
    assert finished.study.trials[0].params == dict(study.space.baseline)
    guessing_the_mean = 1 / 6
    assert finished.study.best_value < guessing_the_mean


def test_the_study_file_is_checked_against_what_the_objective_reads(tmp_path: Path) -> None:
    study = study_spec.load(EXAMPLES / "pytorch_lstm.yaml", {"space.parameters.hiden_size": [8, 16]})
    with pytest.raises(ConfigError, match=r"hiden_size.*did you mean hidden_size"):
        run_study.run(study, f"sqlite:///{tmp_path / 'hpo.db'}")


def test_the_adding_problem_marks_two_numbers_and_sums_them() -> None:
    inputs, sums = importlib.import_module("pytorch_lstm").sequences(50)
    assert torch.equal(inputs[..., 1].sum(dim=1), torch.full((50,), 2.0))
    assert torch.allclose((inputs[..., 0] * inputs[..., 1]).sum(dim=1), sums)


# ---------------------------------------------------------------- Trainer as a generator


@pytest.fixture
def trainers(small_machine: None) -> ModuleType:
    return importlib.import_module("huggingface_trainer")


def history(trainer: Any) -> list[dict[str, float]]:
    """Return all that a `Trainer` logged but the times."""
    timed = ("runtime", "per_second", "flos")
    return [
        {key: value for key, value in entry.items() if not any(word in key for word in timed)}
        for entry in trainer.state.log_history
    ]


def rates(trainer: Any) -> list[float]:
    return [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]


def training_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("trainer")]


def test_a_generator_trains_exactly_as_trainer_does(trainers: ModuleType, tmp_path: Path) -> None:
    plain = trainers.build(PARAMS, str(tmp_path))
    plain.train()
    driven = trainers.build(PARAMS, str(tmp_path))
    scores = list(trainers.evaluations(driven))
    assert history(driven) == history(plain)
    assert [score.at for score in scores] == list(range(128, 1025, 128))
    assert {score.of for score in scores} == {1024}
    logged = [entry["eval_accuracy"] for entry in history(plain) if "eval_accuracy" in entry]
    assert [score.value for score in scores] == logged
    assert training_threads() == []


def test_a_pruned_generator_has_followed_the_one_schedule(trainers: ModuleType, tmp_path: Path) -> None:
    whole = trainers.build(PARAMS, str(tmp_path))
    all_scores = list(trainers.evaluations(whole))
    pruned = trainers.build(PARAMS, str(tmp_path))
    running = trainers.evaluations(pruned)
    scores = [next(running) for _ in range(3)]
    assert len(training_threads()) == 1
    running.close()
    assert training_threads() == []
    assert scores == all_scores[:3]
    assert pruned.state.global_step == 3 * 128 // 16
    assert len(rates(whole)) == 64
    assert rates(pruned) == rates(whole)[:24]


def test_the_pruner_stops_the_training(trainers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    built, folders = [], []

    def build(params: dict[str, Any], folder: str) -> Any:
        folders.append(Path(folder))
        built.append(original(params, folder))
        return built[-1]

    original = trainers.build
    monkeypatch.setattr(trainers, "build", build)
    at_once = {"name": "threshold", "lower": 2.0}  # no accuracy is that high
    with pytest.warns(UserWarning, match="no trial of study has completed; the last ended with pruner"):
        study = hpo.optimize(trainers.objective, trainers.SPACE, trials=2, pruner=at_once)
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED] * 2
    assert [list(trial.intermediate_values) for trial in study.trials] == [[128]] * 2
    assert [trainer.state.global_step * trainer.args.train_batch_size for trainer in built] == [128] * 2
    assert training_threads() == []
    assert not any(folder.exists() for folder in folders)


def test_what_the_training_raises_reaches_the_caller(trainers: ModuleType, tmp_path: Path) -> None:
    trainer = trainers.build(PARAMS, str(tmp_path))
    trainer.data_collator = lambda rows: 1 / 0
    with pytest.raises(ZeroDivisionError):
        list(trainers.evaluations(trainer))
    assert training_threads() == []


def test_a_generator_that_is_never_asked_never_trains(trainers: ModuleType, tmp_path: Path) -> None:
    trainer = trainers.build(PARAMS, str(tmp_path))
    trainers.evaluations(trainer).close()
    assert trainer.state.global_step == 0
    assert training_threads() == []
