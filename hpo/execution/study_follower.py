"""Following a study that other processes run, by their logs and by the storage."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.config.study_spec import StudySpec
from hpo.core.errors import StorageGoneError
from hpo.core.events import Observer
from hpo.core.trainer import Evaluation, Seen
from hpo.execution.study_setup import planned_rows
from hpo.recipe.hyperparameters import DEFAULTS
from hpo.search.trial_marks import is_added
from hpo.storage import backends

LOOK = 1.0  # seconds between two reads of the storage


class WorkerActivity:
    """Reads from a worker's log what it is doing: loading and checking, before any trial runs.

    Args:
        log: The log; only what is added from now on is read.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._read = log.stat().st_size if log.exists() else 0

    def latest(self) -> str | None:
        """Return the latest activity since the last call; None if there is no new one."""
        with suppress(OSError), self._log.open("rb") as file:
            file.seek(self._read)
            whole, end, _ = file.read().rpartition(b"\n")
            self._read += len(whole) + len(end)
            lines = [line for line in whole.decode(errors="replace").splitlines() if line.startswith('doing "')]
            if lines:
                return str(json.JSONDecoder().raw_decode(lines[-1].removeprefix("doing "))[0])
        return None


class StudyFollower:
    """Tells an observer of the trials that other processes run, as the storage shows them.

    Args:
        study: The validated study.
        url: URL of the storage.
        watch: Told of the trials.
    """

    def __init__(self, study: StudySpec, url: str, watch: Observer) -> None:
        self._study, self._url, self._watch = study, url, watch
        self._opened: optuna.Study | None = None
        self._shown: dict[int, int] = {}  # trial -> number of evaluations that the observer knows
        self._ended: set[int] = set()
        self._seen: dict[int, Seen] = {}
        self._due = 0.0

    @property
    def found(self) -> bool:
        """Whether the study is in the storage."""
        return self._opened is not None

    def look(self, *, now: bool = False) -> bool:
        """Read the storage if that is due, or `now`; return whether a trial has ended since the last read."""
        if not now and time.monotonic() < self._due:
            return False
        try:
            rows = self._rows()
        except StorageGoneError:
            raise
        except Exception:  # the storage cannot be reached, or is not there yet; the workers report that
            rows = []
        before = len(self._ended)
        running = [row for row in rows if self._counts_examples and row.state == TrialState.RUNNING]
        self._seen = {row.number: (row.last_step or 0, self._whole(row)) for row in running}
        for row in rows:
            if row.number not in self._ended and row.state != TrialState.WAITING:
                self._show(row)
        self._due = time.monotonic() + LOOK
        return len(self._ended) > before

    @property
    def _counts_examples(self) -> bool:
        return self._study.config.objective is None  # the steps of a custom objective may be anything

    def _show(self, row: FrozenTrial) -> None:
        """Tell the observer what is new of a trial."""
        if row.number not in self._shown:
            self._watch.started(row.number, row.params)
        for step in sorted(row.intermediate_values)[self._shown.get(row.number, 0) :]:
            score = row.intermediate_values[step]
            evaluation = Evaluation(score, at=step, of=self._whole(row)) if self._counts_examples else Evaluation(score)
            self._watch.evaluated(row.number, evaluation)
        self._shown[row.number] = len(row.intermediate_values)
        if row.state.is_finished():
            self._watch.ended(row)
            self._ended.add(row.number)

    def _whole(self, row: FrozenTrial) -> int | None:
        """Return the examples of a trial's whole training, calculated from its last step; None if it has none."""
        config, evaluations = self._study.config, len(row.intermediate_values)
        if row.last_step is None:
            return None
        epochs = int(row.params.get("epochs", self._study.space.fixed.get("epochs", DEFAULTS["epochs"])))
        return max(round(row.last_step * config.evaluations_per_epoch * epochs / evaluations), row.last_step)

    def _rows(self) -> list[FrozenTrial]:
        """Return the trials, and tell the observer of the study when it is there for the first time."""
        name = self._study.config.name
        if self._opened is None:
            if not backends.exists(self._url):
                return []
            opened = optuna.load_study(study_name=name, storage=backends.look(self._url))
            facts = opened.user_attrs["fingerprint"]["facts"]
            rows = opened.get_trials(deepcopy=False)
            finished = [self._study.criteria.seen(row) for row in rows if row.state.is_finished()]
            total = planned_rows(self._study)[1] + sum(map(is_added, rows))
            metric = facts.get("metric") or self._study.config.metric or "value"
            self._watch.opened(name, metric, opened.direction.name.lower(), total, finished)
            self._ended = {row.number for row in finished}
            self._watch.follow(lambda: self._seen)
            self._opened = opened
        return self._opened.get_trials(deepcopy=False)
