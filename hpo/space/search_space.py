"""Search spaces: parameters, the conditions between them, and the published default to beat.

How one is written down, and read, is in `hpo/space/parser.py`.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass as validated

from hpo.recipe.hyperparameters import Value

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

Scalar = bool | int | float | str
Params = dict[str, Any]
When = Mapping[str, Scalar | list[Scalar]]
# A lattice, or a grid, with more points than this is not written out.
MOST_POINTS = 100_000
STRICT = ConfigDict(extra="forbid", strict=True)


@validated(frozen=True, config=STRICT)
class Float:
    """A real number in [low, high], drawn on a logarithmic scale with `log`, on a lattice with `step`."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    when: When = field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Float:
        _check_range(self)
        return self

    def distribution(self) -> BaseDistribution:
        """Return Optuna's distribution."""
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, self.log, self.step)

    def points(self) -> list[float] | None:
        """Return every value, or None for a continuous range or one with so small a step that it is as good as one."""
        if self.low == self.high:
            return [self.low]
        if self.step is None or (self.high - self.low) / self.step > MOST_POINTS:
            return None
        low, high, step = (Decimal(str(end)) for end in (self.low, self.high, self.step))
        count = int((high - low) // step)
        top = float(low + count * step)
        return [min(self.low + i * self.step, top) for i in range(count + 1)]  # to the bit as Optuna draws them

    def nearest(self, value: Value) -> Value:
        """Return the value as it is: Optuna stores a number outside its range too."""
        return float(value) if isinstance(value, int | float) else self.low


@validated(frozen=True, config=STRICT)
class Int:
    """A whole number in [low, high]."""

    low: int
    high: int
    log: bool = False
    step: int = 1
    when: When = field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Int:
        _check_range(self)
        return self

    def distribution(self) -> BaseDistribution:
        """Return Optuna's distribution."""
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high, self.log, self.step)

    def points(self) -> Sequence[int] | None:
        """Return every value."""
        return range(self.low, self.high + 1, self.step)

    def nearest(self, value: Value) -> Value:
        """Return the value as it is: Optuna stores a number outside its range too."""
        return int(value) if isinstance(value, int | float) else self.low


@validated(frozen=True, config=STRICT)
class Categorical:
    """One of some values."""

    values: list[Scalar | None]
    when: When = field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Categorical:
        if not self.values:
            raise ValueError("needs at least one value")
        if any(isinstance(value, float) and not math.isfinite(value) for value in self.values):
            raise ValueError(f"must have finite values, not {self.values}")
        if len(set(self.values)) < len(self.values):  # 1, 1.0 and true are one value to Optuna
            raise ValueError(f"has a value twice: {self.values}")
        return self

    def distribution(self) -> BaseDistribution:
        """Return Optuna's distribution."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)

    def points(self) -> list[Scalar | None] | None:
        """Return every value."""
        return list(self.values)

    def nearest(self, value: Value) -> Value:
        """Return the value if it is a choice, else the closest number, else the first choice."""
        if value in self.values:
            return value
        numbers = [v for v in self.values if isinstance(v, int | float)]
        if isinstance(value, int | float) and numbers:
            return min(numbers, key=lambda number: abs(number - value))
        return self.values[0]


Parameter = Float | Int | Categorical


def _check_range(range_: Float | Int) -> None:
    if not (math.isfinite(range_.low) and math.isfinite(range_.high)):
        raise ValueError(f"low and high must be finite, not {range_.low} and {range_.high}")
    if range_.low > range_.high:
        raise ValueError(f"is empty: low {range_.low:g} is above high {range_.high:g}")
    if range_.log and range_.low <= 0:
        raise ValueError(f"with log, low must be above 0, not {range_.low:g}")
    if range_.step is not None and range_.step <= 0:
        raise ValueError(f"step must be above 0, not {range_.step:g}")
    if range_.log and range_.step not in (None, 1):
        raise ValueError("takes either log or step, not both")


@dataclass(frozen=True)
class SearchSpace:
    """What is searched, what is fixed, and where the search starts.

    Attributes:
        parameters: Name -> parameter, a controlling parameter before those it controls.
        fixed: Name -> value that every trial has.
        baseline: Name -> value of the published default, for parameters that are searched.
        source: Where the space was published.
    """

    parameters: Mapping[str, Parameter]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    baseline: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    def active(self, name: str, params: Mapping[str, Any]) -> bool:
        """Return whether a parameter's condition holds, given those decided before it."""
        known = {**self.fixed, **params}
        for other, wanted in self.parameters[name].when.items():
            if known.get(other) not in (wanted if isinstance(wanted, list) else [wanted]):
                return False
        return True

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return Optuna's distribution of every parameter."""
        return {name: parameter.distribution() for name, parameter in self.parameters.items()}

    def only_value(self, name: str) -> Any:
        """Return the value of a parameter that has just one."""
        points = self.parameters[name].points()
        assert points is not None
        assert len(points) == 1
        return points[0]

    def suggest(self, trial: optuna.Trial) -> Params:
        """Suggest every active parameter of a trial, and add the fixed ones.

        Args:
            trial: An Optuna trial that runs.

        Returns:
            Name -> value, fixed ones first.
        """
        drawn: Params = {}
        for name, parameter in self.parameters.items():
            if self.active(name, drawn):
                drawn[name] = _suggest(trial, name, parameter)
        return {**self.fixed, **drawn}

    def contains(self, params: Mapping[str, Any]) -> bool:
        """Return whether parameters are a point of this space, as far as it is finite."""
        return all(params[name] in values for name, values in self._values.items() if name in params)

    @cached_property
    def _values(self) -> dict[str, Container[Any]]:
        """Name -> the values of each parameter that is not continuous, quick to look up."""
        every = {name: parameter.points() for name, parameter in self.parameters.items()}
        return {
            name: points if isinstance(points, range) else frozenset(points)
            for name, points in every.items()
            if points is not None
        }

    def grid(self) -> list[Params] | None:
        """Return every point, conditions respected; None if a parameter is continuous."""
        points: list[Params] = [{}]
        for name, parameter in self.parameters.items():
            values = parameter.points()
            if values is None:
                return None
            points = [
                {**point, **choice}
                for point in points
                for choice in ([{name: value} for value in values] if self.active(name, point) else [{}])
            ]
        return points

    @cached_property
    def size(self) -> float:
        """How many points there are; infinite if a parameter is continuous."""
        every = [parameter.points() for parameter in self.parameters.values()]
        if any(points is None for points in every):
            return math.inf
        bound = math.prod(len(points) for points in every if points is not None)
        if bound > MOST_POINTS or not any(parameter.when for parameter in self.parameters.values()):
            return bound
        return len(self.grid() or [])

    def first_trial(self) -> Params:
        """Return the published default as a point of this space (see `nearest` of the parameters)."""
        point: Params = {}
        for name, parameter in self.parameters.items():
            if self.active(name, point):
                point[name] = parameter.nearest(self.baseline.get(name))
        return point

    def values_of(self, name: str, default: Any) -> Sequence[Any]:
        """Return the values that a parameter can have, if it is a whole number or a choice; else what it is fixed at.

        Args:
            name: The parameter's; it may be no part of the space.
            default: Its value where the space says nothing of it.
        """
        points: Sequence[Any] | None = self.parameters[name].points() if name in self.parameters else None
        return points or [self.fixed.get(name, default)]

    def moved_baseline(self) -> dict[str, tuple[Any, Any]]:
        """Return name -> (published, used) where a choice does not offer the published value."""
        point = self.first_trial()
        return {
            name: (wanted, point[name])
            for name, wanted in self.baseline.items()
            if name in point and point[name] != wanted
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the space as plain JSON values that `parse` reads."""
        adapter: TypeAdapter[Any] = TypeAdapter(Parameter)
        searched = {name: adapter.dump_python(p, mode="json") for name, p in self.parameters.items()}
        return {
            "parameters": {**searched, **self.fixed},
            "baseline": dict(self.baseline),
            "source": self.source,
        }


def _suggest(trial: optuna.Trial, name: str, parameter: Parameter) -> Any:
    if isinstance(parameter, Float):
        return trial.suggest_float(name, parameter.low, parameter.high, step=parameter.step, log=parameter.log)
    if isinstance(parameter, Int):
        return trial.suggest_int(name, parameter.low, parameter.high, step=parameter.step, log=parameter.log)
    return trial.suggest_categorical(name, parameter.values)
