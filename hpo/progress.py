"""How far a running study is: what has ended, what runs, the best so far, and the time left."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo.formatting import finite, plain, seconds
from hpo.objective import Evaluation


@dataclass
class Running:
    """A trial that runs."""

    params: Mapping[str, Any]
    since: float
    evaluation: Evaluation | None = None


@dataclass
class Progress:
    """What the views of a running study count."""

    name: str = ""
    metric: str = "value"
    sign: int = 1
    total: int = 0
    finished: int = 0
    best: FrozenTrial | None = None
    running: dict[int, Running] = field(default_factory=dict)
    at_once: int = 1
    spans: list[float] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, name: str, metric: str, direction: str, total: int, finished: Sequence[FrozenTrial]) -> Progress:
        """Return the progress of a study that has just been opened, perhaps not for the first time."""
        progress = cls(plain(name), plain(metric), -1 if direction == "minimize" else 1, total)
        for trial in finished:
            progress.end(trial)
        return progress

    def start(self, number: int, params: Mapping[str, Any]) -> None:
        """Count a trial that runs."""
        self.running[number] = Running(params, time.monotonic())
        self.at_once = max(self.at_once, len(self.running))

    def end(self, trial: FrozenTrial) -> float | None:
        """Count an ended trial and return its seconds: as it says itself, or since it started here."""
        here = self.running.pop(trial.number, None)
        span = seconds(trial) if here is None or "seconds" in trial.user_attrs else time.monotonic() - here.since
        if span is not None:
            self.spans.append(span)
        self.finished += 1
        if trial.state == TrialState.COMPLETE and self._better(finite(trial)):
            self.best = trial
        return span

    def _better(self, value: float | None) -> bool:
        best = finite(self.best) if self.best else None
        return value is not None and (best is None or self.sign * value > self.sign * best)

    @property
    def elapsed(self) -> float:
        """Seconds since the study was opened."""
        return time.monotonic() - self.since

    @property
    def left(self) -> float | None:
        """Seconds that the rest will take if trials go on as so far; None while nobody knows."""
        rest = max(self.total - self.finished, 0)
        if not rest:
            return 0.0
        if not self.spans:
            return None
        return rest * sum(self.spans) / len(self.spans) / min(self.at_once, rest)
