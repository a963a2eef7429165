"""How far a running study is: what has ended, what runs, the best so far, and the time left."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo.analysis.trial_summary import finite_value, seconds
from hpo.core.formatting import plain
from hpo.core.trainer import Evaluation, Seen
from hpo.storage.criteria import violation


@dataclass
class Running:
    """A trial that runs.

    Attributes:
        params: Its hyperparameters.
        since: When it started here, by the monotonic clock.
        evaluation: Its last evaluation.
        seen: Examples that it has seen.
        of: Examples of its whole training, if known.
        fresh: Whether its examples have not been read yet.
        mark: When its measurement began, and the examples it had seen then; None while it does not train.
    """

    params: Mapping[str, Any]
    since: float
    evaluation: Evaluation | None = None
    seen: int = 0
    of: int | None = None
    fresh: bool = True
    mark: tuple[float, int] | None = None

    def look(self, now: float, seen: int, of: int | None) -> None:
        """Record how far the trial is. If it starts again or resumes, its measurement begins here."""
        if self.mark is None or seen < self.mark[1]:
            self.mark = now, seen
        self.seen, self.of, self.fresh = seen, of or self.of, False


@dataclass
class Progress:
    """What the views count of a running study."""

    name: str = ""
    metric: str = "value"
    sign: int = 1
    total: int = 0
    finished: int = 0
    best: FrozenTrial | None = None
    running: dict[int, Running] = field(default_factory=dict)
    at_once: int = 1
    spans: list[float] = field(default_factory=list)
    works: list[int] = field(default_factory=list)
    """Examples that each ended trial has seen."""
    trained: int = 0
    """Examples of finished measurements, of trials that do not train now."""
    busy: float = 0.0
    """Seconds of finished measurements, summed over slots."""
    since: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, name: str, metric: str, direction: str, total: int, finished: Sequence[FrozenTrial]) -> Progress:
        """Return the progress of a study that has just been opened, with the trials that ended before."""
        progress = cls(plain(name), plain(metric), -1 if direction == "minimize" else 1, total)
        for trial in finished:
            progress.end(trial)
        return progress

    def start(self, number: int, params: Mapping[str, Any]) -> None:
        """Count a trial that runs."""
        if number in self.running:
            self._end_measurement(self.running[number])
        self.running[number] = Running(params, time.monotonic())
        self.at_once = max(self.at_once, len(self.running))

    def measure(self, seen: Mapping[int, Seen]) -> None:
        """Record how far the running trials are.

        Args:
            seen: Trial -> examples seen and examples of its whole training; a trial that is missing does not train now.
        """
        now = time.monotonic()
        for number, running in self.running.items():
            if number in seen:
                running.look(now, *seen[number])
            else:
                self._end_measurement(running)

    def evaluate(self, number: int, evaluation: Evaluation) -> None:
        """Record a trial's latest score."""
        running = self.running.get(number)
        if running is None:
            return
        running.evaluation = evaluation
        if evaluation.at is None:
            return
        if running.fresh:  # scored before its examples were read
            running.mark = running.since, 0
        if running.mark is not None:
            running.look(time.monotonic(), max(evaluation.at, running.seen), evaluation.of)

    def end(self, trial: FrozenTrial) -> float | None:
        """Count an ended trial and return its seconds: those stored with it, or else those since it started here."""
        here = self.running.pop(trial.number, None)
        span = seconds(trial) if here is None or "seconds" in trial.user_attrs else time.monotonic() - here.since
        if span is not None:
            self.spans.append(span)
        if here is not None:
            self._end_measurement(here)
        self.works.append((here.seen if here else 0) or trial.last_step or 0)
        self.finished += 1
        if trial.state == TrialState.COMPLETE and not violation(trial) and self._better(finite_value(trial)):
            self.best = trial
        return span

    def _end_measurement(self, running: Running) -> None:
        """Finish the measurement of a trial that does not train any more."""
        if running.mark is not None:
            since, seen = running.mark
            self.trained += running.seen - seen
            self.busy += time.monotonic() - since
            running.mark = None

    def _better(self, value: float | None) -> bool:
        best = finite_value(self.best) if self.best else None
        return value is not None and (best is None or self.sign * value > self.sign * best)

    # ------------------------------------------------------------ time

    @property
    def elapsed(self) -> float:
        """Seconds since the study was opened."""
        return time.monotonic() - self.since

    @property
    def speed(self) -> float | None:
        """Examples a second of all trials that train now together; None before the first step."""
        rate = self._rate()
        training = sum(running.mark is not None for running in self.running.values())
        return rate * training if rate and training else None

    @property
    def left(self) -> float | None:
        """Estimated seconds to the end of the study; None before the first measured step.

        A waiting trial is estimated as the mean of the known ones: the examples seen by ended trials and the whole
        training of running ones. Where examples are not counted, the mean seconds of ended trials are used. Then the
        estimate is None if all trials that are left have run for longer than that.
        """
        if self.finished >= self.total:
            return 0.0
        running = self.running.values()
        works = [float(work) for work in (*self.works, *(trial.of for trial in running if trial.of))]
        if (rate := self._rate()) and works:
            usual = sum(works) / len(works)
            return self._remaining(usual, [(trial.of or usual) - trial.seen for trial in running]) / rate
        if not self.spans:
            return None
        usual, now = sum(self.spans) / len(self.spans), time.monotonic()
        return self._remaining(usual, [usual - (now - trial.since) for trial in running]) or None

    def _rate(self) -> float | None:
        """Return the examples a second of one slot, on average since the start."""
        now = time.monotonic()
        marks = [(trial.seen - trial.mark[1], now - trial.mark[0]) for trial in self.running.values() if trial.mark]
        trained = self.trained + sum(seen for seen, _ in marks)
        busy = self.busy + sum(span for _, span in marks)
        return trained / busy if trained > 0 and busy > 0 else None

    def _remaining(self, usual: float, running: Sequence[float]) -> float:
        """Return the work that is left for the slot that has most of it.

        Args:
            usual: Work of a waiting trial.
            running: Work that is left of each running trial.
        """
        each = [max(rest, 0.0) for rest in running]
        waiting = max(self.total - self.finished - len(each), 0)
        return max([(sum(each) + waiting * usual) / self.at_once, *each, *([usual] if waiting else [])])
