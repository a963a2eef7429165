"""Studies that are interrupted after some evaluations, and what became of their trials."""

from __future__ import annotations

import signal
from typing import Any

import optuna

from hpo.core.events import Silent
from hpo.core.trainer import Evaluation
from hpo.storage.snapshot import read


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
