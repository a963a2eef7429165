"""Search spaces: parameters, the conditions between them, and the published default to beat.

A space is read from YAML or from a plain dict:

    learning_rate: {low: 1e-5, high: 1e-3, log: true}   # a range
    batch_size: [16, 32]                                # a choice
    epochs: 3                                           # fixed, the same in every trial
    num_cycles: {values: [1, 2], when: {schedule: cosine_with_restarts}}
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass as validated

from hpo.errors import ConfigError, Problem
from hpo.hyperparameters import Hyperparameter, Value

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


# ---------------------------------------------------------------- reading


def parse(
    raw: Mapping[str, Any],
    known: Mapping[str, Hyperparameter] | None = None,
    names: Iterable[str] | None = None,
    source: str = "the search space",
) -> SearchSpace:
    """Read a space from plain values.

    Args:
        raw: Either `{parameters: ..., baseline: ..., source: ...}` or the parameters alone. Each is a scalar
            (fixed), a list (choices), a mapping (`low`/`high` or `values`, and `when`), or a parameter object.
        known: The hyperparameters that the objective reads, with their ranges; None does not check.
        names: The names that the objective reads, where their ranges are not known.
        source: What to call the space in an error.

    Raises:
        ConfigError: With every problem found.
    """
    whole = "parameters" in raw
    prefix: tuple[str, ...] = ("parameters",) if whole else ()
    parameters = raw["parameters"] if whole else raw
    problems: list[Problem] = []
    if whole:
        extra = [key for key in raw if key not in ("parameters", "baseline", "source")]
        problems += [
            Problem((key,), f"is not a key of a search space{nearest(key, ['baseline', 'source'])}") for key in extra
        ]
    if not isinstance(parameters, Mapping) or not parameters:
        raise ConfigError(source, [*problems, Problem(prefix, "must map parameter names to values or ranges")])
    read = set(known or {}) | set(names or ())
    searched: dict[str, Parameter] = {}
    fixed: Params = {}
    for name, value in parameters.items():
        if read and name not in read:
            problems.append(Problem((*prefix, name), f"is not read by the objective{nearest(name, read)}"))
            continue
        try:
            parsed = _parameter(value, (known or {}).get(name))
        except ValueError as error:
            problems += [Problem((*prefix, name), message) for message in _messages(error)]
            continue
        if isinstance(parsed, get_args(Parameter)):
            searched[name] = parsed
        else:
            fixed[name] = parsed
        problems += _range_problems((*prefix, name), parsed, (known or {}).get(name))
    baseline = raw.get("baseline", {}) if whole else {}
    if not isinstance(baseline, Mapping):
        problems.append(Problem(("baseline",), "must map parameter names to values"))
        baseline = {}
    for name, value in baseline.items():
        if name not in parameters:
            problems.append(Problem(("baseline", name), "is not a parameter of this space"))
        elif known and name in known and (wrong := known[name].problem(value)):
            problems.append(Problem(("baseline", name), wrong))
    ordered = _ordered(searched, fixed, prefix, problems)
    if not searched and not problems:
        problems.append(Problem(prefix, "searches nothing: give at least one parameter a range or a list"))
    if problems:
        raise ConfigError(source, problems)
    published = {name: entry.default for name, entry in (known or {}).items()} | dict(baseline)
    return SearchSpace(
        MappingProxyType(ordered),
        MappingProxyType(fixed),
        MappingProxyType({name: value for name, value in published.items() if name in searched}),
        str(raw.get("source", "")) if whole else "",
    )


def _parameter(value: Any, hyperparameter: Hyperparameter | None) -> Parameter | Scalar | None:
    if isinstance(value, get_args(Parameter)):
        return value  # type: ignore[no-any-return]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must be finite, not {value}")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Sequence):
        return Categorical(list(value))
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a value, a list or a range, not {type(value).__name__}")
    if "values" in value:
        return Categorical(**value)
    if "low" not in value and "high" not in value:
        raise ValueError("needs low and high for a range, or values for a choice")
    ends = [value.get(key) for key in ("low", "high", "step") if value.get(key) is not None]
    whole = all(isinstance(end, int) for end in ends)
    integer = hyperparameter.kind is int if hyperparameter else whole
    return (Int if integer else Float)(**value)


def _messages(error: ValueError) -> list[str]:
    if not isinstance(error, ValidationError):
        return [str(error)]
    return [
        ".".join(str(part) for part in item["loc"])
        + (": " if item["loc"] else "")
        + item["msg"].removeprefix("Value error, ")
        for item in error.errors()
    ]


def _range_problems(path: tuple[str, ...], parsed: Any, hyperparameter: Hyperparameter | None) -> list[Problem]:
    if hyperparameter is None:
        return []
    if isinstance(parsed, Categorical):
        values: list[Any] = parsed.values
    elif isinstance(parsed, Float | Int):
        values = [parsed.low, parsed.high]
    else:
        values = [parsed]
    return [Problem(path, wrong) for value in values if (wrong := hyperparameter.problem(value))]


def _ordered(
    searched: dict[str, Parameter], fixed: Params, prefix: tuple[str, ...], problems: list[Problem]
) -> dict[str, Parameter]:
    """Put each parameter after those that its condition names; keep the file's order otherwise."""
    ordered: dict[str, Parameter] = {}
    waiting = dict(searched)
    for name, parameter in searched.items():
        for other, wanted in parameter.when.items():
            path = (*prefix, name, "when", other)
            if other in fixed:
                possible: Sequence[Any] | None = [fixed[other]]
            elif other in searched:
                possible = searched[other].points()
            else:
                problems.append(Problem(path, f"is not a parameter of this space{nearest(other, searched)}"))
                continue
            wishes = wanted if isinstance(wanted, list) else [wanted]
            never = [wish for wish in wishes if possible is not None and wish not in possible]
            if never:
                problems.append(Problem(path, f"is never {', '.join(map(repr, never))}{_offer(possible)}"))
    while waiting:
        ready = [n for n, p in waiting.items() if not any(other in waiting for other in p.when)]
        if not ready:
            problems.append(Problem((*prefix, next(iter(waiting)), "when"), "conditions run in a circle"))
            break
        for name in ready:
            ordered[name] = waiting.pop(name)
    return ordered


def _offer(possible: Sequence[Any] | None) -> str:
    return f"; it is one of {', '.join(map(repr, possible))}" if possible is not None and len(possible) < 20 else ""


def nearest(name: Any, names: Iterable[str]) -> str:
    """Return `; did you mean X?` for an error message, or all the names where none is close."""
    close = difflib.get_close_matches(str(name), list(names), 1, 0.5)
    return f"; did you mean {close[0]}?" if close else f"; one of {', '.join(sorted(names))}"
