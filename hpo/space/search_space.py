"""Search spaces: parameters, the conditions between them, and the published default.

`hpo/space/parser.py` reads a space and describes how it is written.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from hpo.space.parameters import MOST_POINTS, Float, Int, Parameter

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

Params = dict[str, Any]


@dataclass(frozen=True)
class SearchSpace:
    """What is searched, what is fixed, and where the search starts.

    Attributes:
        parameters: Name -> parameter. A parameter comes after those that its condition names.
        fixed: Name -> value, the same in every trial.
        baseline: Name -> value in the published default, for parameters that are searched.
        source: Where the space was published.
        configurations: Name -> value in each published configuration that is tried first, after the published default.
    """

    parameters: Mapping[str, Parameter]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    baseline: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    configurations: Sequence[Mapping[str, Any]] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all hyperparameters: those that are searched, then the fixed ones."""
        return (*self.parameters, *self.fixed)

    def active(self, name: str, params: Mapping[str, Any]) -> bool:
        """Return whether a parameter's condition holds, given the values of those before it."""
        known = {**self.fixed, **params}
        for other, wanted in self.parameters[name].when.items():
            if known.get(other) not in (wanted if isinstance(wanted, list) else [wanted]):
                return False
        return True

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return Optuna's distribution of every parameter."""
        return {name: parameter.distribution() for name, parameter in self.parameters.items()}

    def only_value(self, name: str) -> Any:
        """Return the value of a parameter that has only one."""
        points = self.parameters[name].points()
        assert points is not None
        assert len(points) == 1
        return points[0]

    def suggest(self, trial: optuna.Trial) -> Params:
        """Suggest every active parameter of a trial, and add the fixed ones.

        Args:
            trial: A running trial.

        Returns:
            Name -> value, the fixed ones first.
        """
        drawn: Params = {}
        for name, parameter in self.parameters.items():
            if self.active(name, drawn):
                drawn[name] = _suggest(trial, name, parameter)
        return {**self.fixed, **drawn}

    def contains(self, params: Mapping[str, Any]) -> bool:
        """Return whether values are in this space; those of continuous parameters are not checked."""
        return all(params[name] in values for name, values in self._values.items() if name in params)

    @cached_property
    def _values(self) -> dict[str, Container[Any]]:
        """Name -> the values of each parameter that is not continuous, in a container with fast look-up."""
        every = {name: parameter.points() for name, parameter in self.parameters.items()}
        return {
            name: points if isinstance(points, range) else frozenset(points)
            for name, points in every.items()
            if points is not None
        }

    def grid(self) -> list[Params] | None:
        """Return every point that the conditions allow; None if a parameter is continuous."""
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
        """The number of points; infinite if a parameter is continuous.

        Above `MOST_POINTS` the conditions are not counted, and the number is an upper bound.
        """
        every = [parameter.points() for parameter in self.parameters.values()]
        if any(points is None for points in every):
            return math.inf
        bound = math.prod(len(points) for points in every if points is not None)
        if bound > MOST_POINTS or not any(parameter.when for parameter in self.parameters.values()):
            return bound
        return len(self.grid() or [])

    def first_trial(self) -> Params:
        """Return the published default as a point of this space; see `nearest` of the parameters."""
        return self._point({})

    def first_configurations(self) -> list[Params]:
        """Return the published configurations as points of this space; what one leaves out is as in the default."""
        return [self._point(values) for values in self.configurations]

    def _point(self, values: Mapping[str, Any]) -> Params:
        """Return the point nearest to the published default with some of its values replaced."""
        wanted, point = {**self.baseline, **values}, Params()
        for name, parameter in self.parameters.items():
            if self.active(name, point):
                point[name] = parameter.nearest(wanted.get(name))
        return point

    def values_of(self, name: str, default: Any) -> Sequence[Any]:
        """Return the values of a parameter that has finitely many; else its fixed value or the default.

        Args:
            name: The parameter's name; the space may not have it.
            default: The value of a parameter that the space does not fix, and of one whose condition is not met.
        """
        parameter = self.parameters.get(name)
        points = None if parameter is None else parameter.points()
        if parameter is None or not points:
            return [self.fixed.get(name, default)]
        return [*points, default] if parameter.when and default not in points else points

    def fixing(self, name: str, value: Any) -> SearchSpace:
        """Return the part of the space in which a parameter has this value."""
        parameters = {}
        for other, parameter in self.parameters.items():
            wanted = parameter.when.get(name, value)
            if other != name and value in (wanted if isinstance(wanted, list) else [wanted]):
                when = {key: values for key, values in parameter.when.items() if key != name}
                parameters[other] = replace(parameter, when=when)
        return replace(self, parameters=parameters, fixed={**self.fixed, name: value})

    def moved_baseline(self) -> dict[str, tuple[Any, Any]]:
        """Return name -> (published, used) of the parameters whose published value is not among the choices."""
        point = self.first_trial()
        return {
            name: (wanted, point[name])
            for name, wanted in self.baseline.items()
            if name in point and point[name] != wanted
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the space as JSON values that `parse` reads."""
        adapter: TypeAdapter[Any] = TypeAdapter(Parameter)
        searched = {name: adapter.dump_python(p, mode="json") for name, p in self.parameters.items()}
        for written in searched.values():
            if written["prior"] is None:  # as studies of earlier versions have it
                del written["prior"]
        return {
            "parameters": {**searched, **self.fixed},
            "baseline": dict(self.baseline),
            "source": self.source,
            **({"configurations": [dict(values) for values in self.configurations]} if self.configurations else {}),
        }


def _suggest(trial: optuna.Trial, name: str, parameter: Parameter) -> Any:
    if isinstance(parameter, Float):
        return trial.suggest_float(name, parameter.low, parameter.high, step=parameter.step, log=parameter.log)
    if isinstance(parameter, Int):
        return trial.suggest_int(name, parameter.low, parameter.high, step=parameter.step, log=parameter.log)
    return trial.suggest_categorical(name, parameter.values)
