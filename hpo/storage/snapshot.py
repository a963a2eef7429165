"""A frozen snapshot of a study. All commands that show, export or evaluate a study read only this."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import NoneType
from typing import Any

import optuna
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.core.formatting import number
from hpo.core.types import Direction
from hpo.recipe.hyperparameters import MODEL, completed
from hpo.storage.criteria import Criteria, violation

STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "fail": TrialState.FAIL,
    "running": TrialState.RUNNING,
    "waiting": TrialState.WAITING,
}


LOOK = "test"  # an evaluation on the test split is in `test:<trial>`; former versions wrote only the last, in `test`

DECODING = "decoding"
"""Begins the attributes `decoding:<trial>` of a study: what `hpo.analysis.decoding.choice_of` returned."""

CONFIRMATION = "confirmation"
"""Attribute of a study: what `hpo.analysis.confirm.take_confirmation` returned."""

AUDIT = "audit"
"""Attribute of a study: what `hpo.analysis.audit.take_audit` returned."""

MEMORY = "memory"
"""Attribute of a study: what `hpo.execution.memory_use` stores, the estimate and what was used."""

CONFIGURATION = frozenset(
    [
        "name",
        "trial",
        "params",
        "searched",
        "validation",
        "scores",
        "mean",
        "sd",
        "optimism",
        "ended",
        "collapsed",
        "runs",
        "median_run",
        "to_default",
        "to_best",
    ]
)
"""Keys of each of its configurations."""

OF_TRIALS = (f"{LOOK}:", f"{DECODING}:")  # beginnings of attributes, followed by the number of a trial

# The types that readers rely on in the attributes that hpo writes to a study.
SHAPES: dict[str, dict[str, type | tuple[type, ...]]] = {
    "config": {"space": Mapping, "name": str, "metric": (str, NoneType)},
    "fingerprint": {"settings": Mapping, "facts": Mapping},
    "label_shares": {},
    LOOK: {
        "best": Mapping,
        "baseline": (Mapping, NoneType),
        "metric": str,
        "examples": int,
        "references": (Mapping, NoneType),
        "classes": (Mapping, NoneType),
        "trials": (int, NoneType),
    },
    DECODING: {"trial": int, "metric": str, "rows": int, "seconds": (int, float), "tried": list, "chosen": Mapping},
    CONFIRMATION: {
        "study": str,
        "metric": str,
        "split": str,
        "examples": (int, NoneType),
        "seeds": int,
        "confidence": float,
        "configurations": list,
        "best": (str, NoneType),
        "winner": (str, NoneType),
        "before": list,
    },
    MEMORY: {"estimated": Mapping, "settings": Mapping, "used": (int, NoneType), "checkpoint": bool},
    AUDIT: {
        "study": str,
        "trials": int,
        "best": (int, float),
        "best_trial": int,
        "pruned": int,
        "completed": int,
        "audited": list,
        "beaten": int,
        "untold": int,
        "repeated": int,
        "at_most": int,
        "confidence": float,
        "passed": (float, NoneType),
        "best_audited": (int, NoneType),
        "gain": (float, NoneType),
    },
}


@dataclass(frozen=True, eq=False)  # compared by identity: a snapshot can be a key of a cache
class Results:
    """A study as it was when it was read.

    Attributes:
        name: The study's name.
        direction: `maximize` or `minimize`.
        trials: All trials, by number.
        attrs: The study's user attributes: `config` (the study file as JSON), `fingerprint`, and `test:<trial>` for
            each evaluation on the test split.
    """

    name: str
    direction: Direction
    trials: tuple[FrozenTrial, ...]
    attrs: Mapping[str, Any]

    @property
    def metric(self) -> str:
        """What the values measure."""
        return str(self.attrs.get("config", {}).get("metric") or "value")

    @property
    def stopped(self) -> str | None:
        """Why the study stopped before its trials were used up, if it has."""
        reason = self.attrs.get("stopped")
        return reason if isinstance(reason, str) else None

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the results depend on besides the study file: the task (from the labels), versions, digests."""
        facts: Mapping[str, Any] = self.attrs.get("fingerprint", {}).get("facts", {})
        return facts

    @cached_property
    def counts(self) -> dict[str, int]:
        """Trials by state."""
        return {name: sum(t.state == state for t in self.trials) for name, state in STATES.items()}

    @cached_property
    def complete(self) -> tuple[FrozenTrial, ...]:
        """The trials that are COMPLETE with a finite value."""
        return tuple(
            t for t in self.trials if t.state == TrialState.COMPLETE and t.value is not None and math.isfinite(t.value)
        )

    @cached_property
    def criteria(self) -> Criteria:
        """The limits that the best trial has to meet, and the second metric."""
        return Criteria.stored(self.attrs.get("config", {}))

    @cached_property
    def trained(self) -> tuple[FrozenTrial, ...]:
        """The completed trials without duplicates, which are not trained and have no weights."""
        return tuple(trial for trial in self.complete if "duplicate_of" not in trial.user_attrs)

    @cached_property
    def within_limits(self) -> tuple[FrozenTrial, ...]:
        """Those of `trained` that meet all limits."""
        return tuple(trial for trial in self.trained if not violation(trial))

    @property
    def _sign(self) -> int:
        return -1 if self.direction == "maximize" else 1

    @cached_property
    def ranked(self) -> tuple[FrozenTrial, ...]:
        """Those of `within_limits`, the best first; of equal values the better second metric, then the lower number."""
        return tuple(sorted(self.within_limits, key=lambda trial: self.criteria.rank(trial, self._sign)))

    @property
    def best(self) -> FrozenTrial | None:
        """The best trial within the limits."""
        return next(iter(self.ranked), None)

    @cached_property
    def nearest(self) -> FrozenTrial | None:
        """The trial that is the least beyond the limits, where none is within them."""
        if self.best is not None:
            return None
        return min(self.trained, key=lambda t: (violation(t), self.criteria.rank(t, self._sign)), default=None)

    @cached_property
    def front(self) -> tuple[FrozenTrial, ...]:
        """The Pareto front of value and second metric among the trials within the limits, the best value first."""
        return tuple(self.criteria.front(self.within_limits, self._sign))

    @property
    def why_no_best(self) -> str:
        """Why no trial is the best, and what to do."""
        near = self.nearest
        if near is None:
            return (
                f"no trial of {self.name} has completed; run it (hpo run {self.name}), or read why its trials ended: "
                f"hpo trials {self.name}"
            )
        count = len(self.trained)
        are = "the one completed trial is not" if count == 1 else f"none of {count} completed trials is"
        beyond = "; ".join(self.criteria.beyond(near)) or "by its constraints"
        return (
            f"{are} within the limits of {self.name}, so none is the best. The nearest is trial {near.number}, with "
            f"{self.metric} {number(near.value)}: {beyond}. Change the limits and run the same study again, which "
            "trains no trial twice, or search on with more trials"
        )

    @cached_property
    def baseline(self) -> FrozenTrial | None:
        """The trial of the published default, if the study has one."""
        return next((t for t in self.trials if t.user_attrs.get("baseline")), None)

    @cached_property
    def looks(self) -> tuple[Mapping[str, Any], ...]:
        """Every look at the test split, the first one first: what `hpo.analysis.verdict.take_verdict` returned."""
        named = sorted((name for name in self.attrs if name.partition(":")[0] == LOOK), key=len)
        by_trial = {self.attrs[name]["best"].get("number"): self.attrs[name] for name in named}
        return tuple(sorted(by_trial.values(), key=lambda look: look.get("trials") or 0))

    @cached_property
    def verdict(self) -> Mapping[str, Any] | None:
        """The evaluation on the test split of the current best trial, if there is one."""
        number = self.best.number if self.best else None
        return next((look for look in self.looks if look["best"].get("number") == number), None)

    @property
    def confirmation(self) -> Mapping[str, Any] | None:
        """What the last confirmation of the study showed, if there is one."""
        found: Mapping[str, Any] | None = self.attrs.get(CONFIRMATION)
        whole = found is not None and all(
            isinstance(each, Mapping) and each.keys() >= CONFIGURATION for each in found["configurations"]
        )
        return found if whole else None

    @property
    def audit(self) -> Mapping[str, Any] | None:
        """What the last audit of the study showed, if there is one."""
        return self.attrs.get(AUDIT)

    def params(self, trial: FrozenTrial) -> dict[str, Any]:
        """Return all hyperparameters of a trial, with those that the space fixes."""
        space = self.attrs.get("config", {}).get("space", {}).get("parameters", {})
        fixed = {name: value for name, value in space.items() if not isinstance(value, dict)}
        return {**fixed, **trial.params}

    def model(self, trial: FrozenTrial) -> str | None:
        """Return the pretrained model of a trial; None with an objective of one's own."""
        config = self.attrs.get("config", {})
        given: str | None = trial.params.get(MODEL) if self.several_models else config.get("model")
        return given

    @property
    def several_models(self) -> bool:
        """Whether the study chooses between pretrained models."""
        return isinstance(self.attrs.get("config", {}).get("model"), list)

    def not_searched(self, trial: FrozenTrial) -> dict[str, Any]:
        """Return the hyperparameters that were not searched: those that the space fixes, and the defaults in use."""
        config = self.attrs.get("config", {})
        settings = self.params(trial)
        if config.get("model") and not config.get("objective"):
            settings = completed(settings)
        return {name: value for name, value in settings.items() if name not in trial.params}

    def as_study(self, trials: Sequence[FrozenTrial] | None = None) -> optuna.Study:
        """Return the snapshot, or some of its trials, as an Optuna study for Optuna's own plots and importances."""
        storage = _SnapshotStorage(self.trials if trials is None else trials)
        return optuna.create_study(storage=storage, study_name=self.name, direction=self.direction)

    def sample(self, trials: Sequence[FrozenTrial], most: int) -> Sequence[FrozenTrial]:
        """Return at most `most` trials in their order: the best, the default, and evenly spaced others."""
        if len(trials) <= most:
            return trials
        marked = {trial.number for trial in (self.best, self.baseline) if trial is not None}
        others = [trial.number for trial in trials if trial.number not in marked]
        room = most - sum(trial.number in marked for trial in trials)
        chosen = marked | {others[index * len(others) // room] for index in range(room)}
        return [trial for trial in trials if trial.number in chosen]


class _SnapshotStorage(InMemoryStorage):
    """A storage in memory of one study, which has the given trials unchanged.

    `Study.add_trials` would number them again, and refuse a published default that lies outside its range.
    """

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        super().__init__()
        self._trials = list(trials)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials, not copies: plots only read them."""
        return [trial for trial in self._trials if states is None or trial.state in states]

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """Return the best trial, as any storage finds it."""
        return BaseStorage.get_best_trial(self, study_id)


def attrs_of(study: optuna.Study) -> dict[str, Any]:
    """Return a study's attributes, without those that have a name of hpo's but not the types that hpo writes."""
    return {
        name: value
        for name, value in study.user_attrs.items()
        if _has_shape(value, SHAPES.get(name.partition(":")[0] if name.startswith(OF_TRIALS) else name))
    }


def _has_shape(value: Any, shape: Mapping[str, type | tuple[type, ...]] | None) -> bool:
    if shape is None:
        return True
    return isinstance(value, Mapping) and all(isinstance(value.get(key), kind) for key, kind in shape.items())


def read(study: optuna.Study) -> Results:
    """Read a whole study once."""
    attrs = attrs_of(study)
    # Optuna's storages replace a trial that changes, so these objects do not change.
    trials = tuple(study.get_trials(deepcopy=False))
    if "config" in attrs:  # the limits in force count, and not those of when a trial ended
        trials = tuple(map(Criteria.stored(attrs["config"]).seen, trials))
    direction: Direction = "maximize" if study.direction == StudyDirection.MAXIMIZE else "minimize"
    return Results(study.study_name, direction, trials, attrs)
