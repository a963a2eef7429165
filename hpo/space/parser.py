"""Reading a search space from plain values, as YAML or Python gives them: every problem at once.

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
from hpo.recipe.hyperparameters import Hyperparameter, defaults
from hpo.space.parameters import Categorical, Float, Int, Parameter, Scalar
from hpo.space.search_space import Params, SearchSpace


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
    parameters, baseline = (raw["parameters"], raw.get("baseline", {})) if whole else (raw, {})
    problems = [
        Problem((key,), f"is not a key of a search space{nearest(key, ['baseline', 'source'])}")
        for key in raw
        if whole and key not in ("parameters", "baseline", "source")
    ]
    if not isinstance(parameters, Mapping) or not parameters:
        raise ConfigError(source, [*problems, Problem(prefix, "must map parameter names to values or ranges")])
    searched, fixed = _parameters(parameters, known or {}, {*(known or {}), *(names or ())}, prefix, problems)
    problems += _baseline_problems(baseline, parameters, known or {})
    ordered = _ordered(searched, fixed, prefix, problems)
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
    )


def _parameters(
    raw: Mapping[str, Any],
    known: Mapping[str, Hyperparameter],
    read: Collection[str],
    prefix: tuple[str, ...],
    problems: list[Problem],
) -> tuple[dict[str, Parameter], Params]:
    """Return what is searched and what is fixed; `read`, unless it is empty, are the names that may occur."""
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
    """Check the values of the published default that a space gives itself."""
    if not isinstance(baseline, Mapping):
        return [Problem(("baseline",), "must map parameter names to values")]
    problems = []
    for name, value in baseline.items():
        if name not in parameters:
            problems.append(Problem(("baseline", name), "is not a parameter of this space"))
        elif name in known and (wrong := known[name].problem(value)):
            problems.append(Problem(("baseline", name), wrong))
    return problems


def _parameter(value: Any, hyperparameter: Hyperparameter | None) -> Parameter | Scalar | None:
    if isinstance(value, get_args(Parameter)):
        return value  # type: ignore[no-any-return]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must be finite, not {value}")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple) and len(value) == 2 and all(_is_number(end) for end in value):
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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
