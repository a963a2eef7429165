"""What a study asks of its trials beside their value: limits that they have to meet, and a second metric.

Both are compared with what a trial has measured, each time anew, as they may change when a study goes on. Optuna's
samplers read how far a trial is beyond a limit from its constraints: `Criteria.seen` returns a trial with those of the
limits in force.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from optuna.trial import FrozenTrial, TrialState

from hpo.core.errors import ConfigError, Problem
from hpo.core.formatting import number, plain
from hpo.core.numbers import is_number
from hpo.core.types import Direction
from hpo.storage.step_metrics import METRICS_AT

Item = TypeVar("Item")

DEVICE_SECONDS = "device_seconds"
"""User attribute of a trial: seconds of its training, times the devices used, divided by the trials on them."""

COSTS: tuple[str, ...] = (DEVICE_SECONDS,)
"""What hpo measures of every trial. Less is better."""

MODEL_COSTS: tuple[str, ...] = ("latency_ms", "size_mb")
"""What hpo measures of every model before its first trial, in a study of several models. Less is better. Trials report
them as metrics, as trials of an objective of one's own may do under the same names."""

CONSTRAINTS = "constraints:"
"""Prefix of the system attributes in which Optuna stores a trial's constraints; one above 0 is not met."""

UNKNOWN = 1.0
"""The excess of what a trial has not measured: as if it were beyond the limit by the limit itself."""


@dataclass(frozen=True)
class Limit:
    """The range in which something that trials measure has to be.

    Attributes:
        name: One of the trial's metrics, or of `COSTS`.
        least: The smallest value allowed; None for no such limit.
        most: The largest value allowed; None for no such limit.
    """

    name: str
    least: float | None = None
    most: float | None = None

    def excess(self, value: float | None) -> float:
        """Return how far a value is beyond the limit, as a share of the limit; at most 0 if it is within.

        Beyond a limit of 0 it is the distance itself. A value that is unknown or not finite exceeds it by `UNKNOWN`.
        """
        if value is None or not math.isfinite(value):
            return UNKNOWN
        beyond = []
        if self.most is not None:
            beyond.append((value - self.most) / (abs(self.most) or 1.0))
        if self.least is not None:
            beyond.append((self.least - value) / (abs(self.least) or 1.0))
        return max(beyond, default=0.0)

    def says(self) -> str:
        """Return the limit in words."""
        parts = (("at least", self.least), ("at most", self.most))
        return " and ".join(f"{word} {number(bound)}" for word, bound in parts if bound is not None)


@dataclass(frozen=True)
class Second:
    """A second metric, with which the value forms a Pareto front.

    Attributes:
        name: One of the trials' metrics, or of `COSTS`.
        direction: Which way is better.
    """

    name: str
    direction: Direction


@dataclass(frozen=True)
class Criteria:
    """The limits of a study and its second metric.

    Attributes:
        limits: The limits; a trial has to meet all of them.
        second: The second metric, if there is one.
        at_end: Those of their metrics that a trial measures at its end only, as the scores of generated text are. Not
            stored: only who runs trials asks for what is known at a step.
    """

    limits: tuple[Limit, ...] = ()
    second: Second | None = None
    at_end: tuple[str, ...] = ()

    @classmethod
    def stored(cls, config: Mapping[str, Any]) -> Criteria:
        """Read the criteria from a study as it is stored, by `to_dict`; what is not as written there is left out."""
        limits, second = config.get("limits"), config.get("second_metric")
        found = []
        for name, bounds in limits.items() if isinstance(limits, Mapping) else ():
            ends = bounds if isinstance(bounds, Mapping) else {}
            known = {bound: float(ends[bound]) for bound in ("least", "most") if is_number(ends.get(bound))}
            if known:
                found.append(Limit(str(name), **known))
        fields = second if isinstance(second, Mapping) else {}
        direction: Direction = "maximize" if fields.get("direction") == "maximize" else "minimize"
        return cls(tuple(found), Second(str(fields["name"]), direction) if "name" in fields else None)

    def to_dict(self) -> dict[str, Any]:
        """Return the two keys of a study file, with all directions written out."""
        bounds = {limit.name: {"least": limit.least, "most": limit.most} for limit in self.limits}
        second = self.second and {"name": self.second.name, "direction": self.second.direction}
        return {
            "limits": {name: {k: v for k, v in ends.items() if v is not None} for name, ends in bounds.items()} or None,
            "second_metric": second,
        }

    @property
    def names(self) -> tuple[str, ...]:
        """What is limited, and the second metric."""
        names = [limit.name for limit in self.limits] + ([self.second.name] if self.second else [])
        return tuple(dict.fromkeys(names))

    @property
    def reported(self) -> tuple[str, ...]:
        """Those of `names` that evaluations have to report."""
        return tuple(name for name in self.names if not self._known_at_end(name))

    def require(self, metrics: Mapping[str, float]) -> None:
        """Check that an evaluation reports what is needed.

        Raises:
            ConfigError: A metric is missing.
        """
        lacking = [name for name in self.reported if name not in metrics]
        if not lacking:
            return
        reports = f"it reports {', '.join(metrics)}" if metrics else "it reports none"
        said = f"is not a metric that the objective reports beside the value ({reports})"
        said += "; see `metrics` of hpo.Evaluation"
        limited = {limit.name for limit in self.limits}
        places = [("limits", name) if name in limited else ("second_metric",) for name in lacking]
        raise ConfigError(
            "the study", [Problem(at, f"{name!r} {said}") for at, name in zip(places, lacking, strict=True)]
        )

    def excesses(self, measures: Mapping[str, float]) -> dict[str, float]:
        """Return the excess over each limit; at most 0 where it is met."""
        return {limit.name: limit.excess(measures.get(limit.name)) for limit in self.limits}

    def constraints(self, attrs: Mapping[str, Any]) -> dict[str, float]:
        """Return the system attributes with the constraints of a trial that has the given user attributes."""
        return {f"{CONSTRAINTS}{name}": excess for name, excess in self.excesses(measures_of(attrs)).items()}

    def seen(self, trial: FrozenTrial) -> FrozenTrial:
        """Return an ended trial with the constraints of these limits only; any other one unchanged."""
        if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED) or not (self.limits or is_constrained(trial)):
            return trial
        return _constrained(trial, self.constraints(trial.user_attrs))

    def seen_at(self, trial: FrozenTrial, step: int) -> FrozenTrial:
        """Return a trial with the constraints of what it had reported at a step; see `excesses_at`."""
        if not (self.limits or is_constrained(trial)):
            return trial
        excesses = self.excesses_at(trial, step)
        return _constrained(trial, {f"{CONSTRAINTS}{name}": excess for name, excess in excesses.items()})

    def excesses_at(self, trial: FrozenTrial, step: int) -> dict[str, float]:
        """Return the excess over each limit at a step; what is known when a trial ends does not count."""
        at: Mapping[str, Mapping[str, float]] = trial.system_attrs.get(METRICS_AT, {})
        limits = [limit for limit in self.limits if not self._known_at_end(limit.name)]
        return {limit.name: limit.excess(at.get(limit.name, {}).get(str(step))) for limit in limits}

    def _known_at_end(self, name: str) -> bool:
        return name in COSTS or name in self.at_end

    def rank(self, trial: FrozenTrial, sign: int) -> tuple[float, float, int]:
        """Return what orders completed trials: the value, of equal ones the second metric, then the number.

        Args:
            trial: A completed trial.
            sign: 1 if lower values are better, -1 if higher ones are.
        """
        second = 0.0 if self.second is None else self._second_of(trial)
        return sign * (trial.value or 0.0), math.inf if second is None else second, trial.number

    def _second_of(self, trial: FrozenTrial) -> float | None:
        """Return the second metric of a trial, lower is better; None if the trial has not measured it."""
        assert self.second is not None
        value = measures_of(trial.user_attrs).get(self.second.name)
        return -value if value is not None and self.second.direction == "maximize" else value

    def front(self, trials: Sequence[FrozenTrial], sign: int) -> list[FrozenTrial]:
        """Return the trials of the Pareto front of value and second metric, the best value first.

        Trials that have not measured the second metric are left out; without a second metric there is no front.

        Args:
            trials: Completed trials that may be on it.
            sign: 1 if lower values are better, -1 if higher ones are.
        """
        if self.second is None:
            return []
        points = {
            trial.number: (sign * trial.value, second)
            for trial in trials
            if trial.value is not None and (second := self._second_of(trial)) is not None
        }
        return front([trial for trial in trials if trial.number in points], lambda trial: points[trial.number])

    def beyond(self, trial: FrozenTrial) -> list[str]:
        """Return in words what of a trial is beyond a limit."""
        measures = measures_of(trial.user_attrs)
        broken = [limit for limit in self.limits if limit.excess(measures.get(limit.name)) > 0]
        values = [number(measures[limit.name]) if limit.name in measures else "unknown" for limit in broken]
        return [f"{plain(limit.name)} {value} ({limit.says()})" for limit, value in zip(broken, values, strict=True)]


NO_CRITERIA = Criteria()


def measures_of(attrs: Mapping[str, Any]) -> dict[str, float]:
    """Return what a trial measured beside its value, from its user attributes: metrics and costs that are finite."""
    metrics = attrs.get("metrics")
    found = {**(metrics if isinstance(metrics, Mapping) else {}), **{name: attrs.get(name) for name in COSTS}}
    return {name: float(value) for name, value in found.items() if is_number(value) and math.isfinite(value)}


def is_constrained(trial: FrozenTrial) -> bool:
    """Return whether constraints are stored with a trial."""
    return any(name.startswith(CONSTRAINTS) for name in trial.system_attrs)


def violation(trial: FrozenTrial) -> float:
    """Return how far a trial is beyond its constraints in all; 0 if it meets them or has none."""
    found = (value for name, value in trial.system_attrs.items() if name.startswith(CONSTRAINTS))
    return sum(max(0.0, float(value)) for value in found if is_number(value))


def front(items: Sequence[Item], point: Callable[[Item], tuple[float, float]]) -> list[Item]:
    """Return the items that no other one dominates, in order of their points.

    A point dominates another one if it is at least as low in both coordinates and not equal to it. Equal points do not
    dominate each other.

    Args:
        items: The items.
        point: The coordinates of an item. Lower is better.
    """
    return list(_undominated(sorted(items, key=point), point))


def _undominated(ordered: Sequence[Item], point: Callable[[Item], tuple[float, float]]) -> Iterator[Item]:
    last = (math.nan, math.inf)
    for item in ordered:
        at = point(item)
        if at[1] < last[1] or at == last:
            last = at
            yield item


def _constrained(trial: FrozenTrial, constraints: Mapping[str, float]) -> FrozenTrial:
    seen = copy.copy(trial)
    others = {name: value for name, value in trial.system_attrs.items() if not name.startswith(CONSTRAINTS)}
    seen.system_attrs = {**others, **constraints}
    return seen
