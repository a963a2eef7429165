"""Reads a search space from plain values of YAML or Python, and reports all problems together.

learning_rate: {low: 1e-5, high: 1e-3, log: true}   # a range
batch_size: [16, 32]                                # a choice
epochs: 3                                           # fixed, the same in every trial
num_cycles: {values: [1, 2], when: {schedule: cosine_with_restarts}}
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, get_args

from pydantic import ValidationError

from hpo.core.errors import ConfigError, Problem, nearest
from hpo.core.numbers import is_number
from hpo.recipe.hyperparameters import Hyperparameter, defaults
from hpo.space.parameters import Categorical, Float, Int, Parameter, Scalar
from hpo.space.search_space import Params, SearchSpace

_KEYS = ("baseline", "configurations", "source")
"""Keys of a space beside `parameters`."""


def parse(
    raw: Mapping[str, Any],
    known: Mapping[str, Hyperparameter] | None = None,
    names: Iterable[str] | None = None,
    source: str = "the search space",
) -> SearchSpace:
    """Read a space from plain values.

    Args:
        raw: Either `{parameters: ...}`, with `baseline`, `configurations` and `source`, or the parameters alone. Each
            is a scalar (fixed), a list (choices), a mapping (`low`/`high` or `values`, `when` and `prior`), or a
            parameter object.
        known: The hyperparameters that the objective reads, with their ranges; None does not check.
        names: The names that the objective reads, if their ranges are unknown.
        source: The name of the space in an error message.

    Raises:
        ConfigError: The space has problems; the error has all of them.
    """
    whole = "parameters" in raw
    prefix: tuple[str, ...] = ("parameters",) if whole else ()
    parameters, baseline = (raw["parameters"], raw.get("baseline", {})) if whole else (raw, {})
    problems = [
        Problem((key,), f"is not a key of a search space{nearest(key, _KEYS)}")
        for key in raw
        if whole and key not in ("parameters", *_KEYS)
    ]
    if not isinstance(parameters, Mapping) or not parameters:
        raise ConfigError(source, [*problems, Problem(prefix, "must map parameter names to values or ranges")])
    searched, fixed = _parameters(parameters, known or {}, {*(known or {}), *(names or ())}, prefix, problems)
    problems += _baseline_problems(baseline, parameters, known or {})
    configurations = raw.get("configurations", []) if whole else []
    problems += _configuration_problems(configurations, searched, parameters)
    problems += _condition_problems(searched, fixed, prefix)
    ordered = _ordered(searched, prefix, problems)
    if not searched and not problems:
        problems.append(Problem(prefix, "searches nothing: give at least one parameter a range or a list"))
    if problems:
        raise ConfigError(source, problems)
    published = {**(defaults(parameters) if known else {}), **baseline}
    return SearchSpace(
        MappingProxyType(ordered),
        MappingProxyType(fixed),
        MappingProxyType({name: value for name, value in published.items() if name in searched}),
        str(raw.get("source", "")) if whole else "",
        tuple(configurations),
    )


def _parameters(
    raw: Mapping[str, Any],
    known: Mapping[str, Hyperparameter],
    read: Collection[str],
    prefix: tuple[str, ...],
    problems: list[Problem],
) -> tuple[dict[str, Parameter], Params]:
    """Return what is searched and what is fixed.

    `read` are the names that the objective reads; if it is empty, names are not checked.
    """
    searched: dict[str, Parameter] = {}
    fixed: Params = {}
    for name, value in raw.items():
        path = (*prefix, name)
        if read and name not in read:
            problems.append(Problem(path, f"is not read by the objective{nearest(name, read)}"))
            continue
        try:
            parsed = _parameter(value, known.get(name))
        except ValueError as error:
            problems += [Problem(path, message) for message in _messages(error)]
            continue
        if isinstance(parsed, get_args(Parameter)):
            searched[name] = parsed
        else:
            fixed[name] = parsed
        problems += _range_problems(path, parsed, known.get(name))
    return searched, fixed


def _baseline_problems(
    baseline: Any, parameters: Mapping[str, Any], known: Mapping[str, Hyperparameter]
) -> list[Problem]:
    """Return the problems of the published default that a space names."""
    if not isinstance(baseline, Mapping):
        return [Problem(("baseline",), "must map parameter names to values")]
    problems = []
    for name, value in baseline.items():
        if name not in parameters:
            problems.append(Problem(("baseline", name), "is not a parameter of this space"))
        elif name in known and (wrong := known[name].problem(value)):
            problems.append(Problem(("baseline", name), wrong))
    return problems


def _configuration_problems(
    configurations: Any, searched: Mapping[str, Parameter], parameters: Mapping[str, Any]
) -> list[Problem]:
    """Return the problems of the published configurations that a space names."""
    if not isinstance(configurations, Sequence) or not all(isinstance(entry, Mapping) for entry in configurations):
        return [Problem(("configurations",), "must be a list, each entry with the values of some parameters")]
    problems = []
    for index, values in enumerate(configurations):
        for name, value in values.items():
            path = ("configurations", index, name)
            if name not in parameters:
                problems.append(Problem(path, f"is not a parameter of this space{nearest(name, parameters)}"))
            elif name not in searched:
                problems.append(Problem(path, "is fixed in this space; leave it out"))
            elif not searched[name].has(value):
                problems.append(Problem(path, f"{value!r} is outside the range or not one of the values"))
    return problems


def _parameter(value: Any, hyperparameter: Hyperparameter | None) -> Parameter | Scalar | None:
    """Return a parameter, or the scalar at which it is fixed."""
    if isinstance(value, get_args(Parameter)):
        return value  # type: ignore[no-any-return]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must be finite, not {value}")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple) and len(value) == 2 and all(is_number(end) for end in value):
        raise ValueError(
            f"{value} can mean a range or a choice; write {{'low': {min(value)}, 'high': {max(value)}}} for all "
            f"numbers between, or the list {list(value)} for these two"
        )
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
    """Return the messages of an error, one for each field that Pydantic found wrong."""
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


def _ordered(searched: dict[str, Parameter], prefix: tuple[str, ...], problems: list[Problem]) -> dict[str, Parameter]:
    """Put each parameter after those that its condition names, otherwise in the order of the file."""
    ordered: dict[str, Parameter] = {}
    waiting = dict(searched)
    while waiting:
        ready = [n for n, p in waiting.items() if not any(other in waiting for other in p.when)]
        if not ready:
            problems.append(Problem((*prefix, next(iter(waiting)), "when"), "conditions run in a circle"))
            break
        for name in ready:
            ordered[name] = waiting.pop(name)
    return ordered


def _condition_problems(searched: dict[str, Parameter], fixed: Params, prefix: tuple[str, ...]) -> list[Problem]:
    """Return the conditions on an unknown parameter or on a value that its parameter never has."""
    problems = []
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
            required = wanted if isinstance(wanted, list) else [wanted]
            never = [value for value in required if possible is not None and value not in possible]
            if never:
                problems.append(Problem(path, f"is never {', '.join(map(repr, never))}{_choices(possible)}"))
    return problems


def _choices(possible: Sequence[Any] | None) -> str:
    """Return the values to choose from, if they are few."""
    return f"; it is one of {', '.join(map(repr, possible))}" if possible is not None and len(possible) < 20 else ""
