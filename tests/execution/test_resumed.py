"""Interrupted studies of real models go on from their checkpoints: nothing is trained or scored twice."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import optuna
import pytest
import tiny

from hpo.config import study_spec
from hpo.core.events import Silent
from hpo.core.trainer import Evaluation
from hpo.execution import run_study
from hpo.storage.snapshot import read

LORA = {"lora_rank": [1, 2], "batch_size": [8, 16], "epochs": 2}


class Interrupter(Silent):
    """Presses Ctrl-C after so many evaluations."""

    def __init__(self, after: int = 0) -> None:
        self.left = after
        self.evaluations: list[tuple[int, int | None]] = []
        self.notes: list[str] = []

    def evaluated(self, number: int, evaluation: Evaluation) -> None:
        self.evaluations.append((number, evaluation.at))
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)

    def note(self, message: str) -> None:
        self.notes.append(message)


def told(study: optuna.Study) -> list[Any]:
    return [
        (trial.state, trial.params, trial.value, trial.intermediate_values, trial.user_attrs["best_at"])
        for trial in read(study).trials
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"slots": 1},
        {"slots": 2},
        {"slots": 2, "fold": True},
        {"slots": 2, "fold": True, "space": LORA},
        {"slots": 2, "round_size": 4, "pruner": {"name": "asha", "reduction_factor": 2}},
    ],
    ids=["one by one", "side by side", "folded", "adapters", "in rounds"],
)
def test_an_interrupted_study_of_a_real_model_evaluates_nothing_twice(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = study_spec.build(tiny.study(tmp_path, evaluations_per_epoch=2, trials=3, **changes), "test", tmp_path)
    undisturbed, watch = run_study.run(study, "sqlite:///whole.db", found := Interrupter()).study, Interrupter(3)
    with pytest.raises(KeyboardInterrupt):
        run_study.run(study, "sqlite:///parts.db", watch)
    rest = Interrupter()
    gone_on = run_study.run(study, "sqlite:///parts.db", rest).study
    assert told(gone_on) == told(undisturbed)
    assert sorted(watch.evaluations + rest.evaluations) == sorted(found.evaluations)
    assert not [note for note in rest.notes if "begins anew" in note]
