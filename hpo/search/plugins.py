"""Settings that name a sampler or a pruner: `median`, or `{name: median, n_startup_trials: 3}`."""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import numpy
import optuna
from pydantic import ConfigDict, TypeAdapter, ValidationError

from hpo.core.errors import HpoError, Problem, nearest

# The names in Optuna's annotations, which Optuna imports for type checkers only.
_MODULES = (
    collections.abc,
    typing,
    optuna,
    optuna.distributions,
    optuna.trial,
    optuna.samplers,
    optuna.samplers.nsgaii,
)
_NAMES = {name: value for module in _MODULES for name, value in vars(module).items()} | {"np": numpy}


def name_and_arguments(setting: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Split a setting into a name and arguments."""
    if isinstance(setting, str):
        return setting, {}
    arguments = dict(setting)
    return str(arguments.pop("name", "")), arguments


def problems(kind: str, module: types.ModuleType, setting: str | Mapping[str, Any]) -> list[Problem]:
    """Check the setting of a sampler or a pruner, which `module` makes: its name, its arguments and their values."""
    name, arguments = name_and_arguments(setting)
    factory = module.factory(name)
    if factory is None:
        return [Problem((kind,), f"{name!r} is not a {kind}{nearest(name, module.names())}")]
    accepted = inspect.signature(factory).parameters
    if unknown := [key for key in arguments if key not in accepted]:
        return [Problem((kind, key), f"is not an argument of {name}{nearest(key, accepted)}") for key in unknown]
    if wrong := argument_problems(factory, arguments):
        return [Problem((kind, key), message) for key, message in wrong.items()]
    try:
        module.make(name, arguments)
    except (ValueError, TypeError, HpoError) as error:
        return [Problem((kind,), str(error))]
    return []


def argument_problems(build: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return argument -> what is wrong with its value, according to the annotations of `build`."""
    hints = _hints(build)
    return {
        key: wrong for key, value in arguments.items() if key in hints and (wrong := _type_problem(value, hints[key]))
    }


def _hints(build: Callable[..., Any]) -> dict[str, Any]:
    function = build.__init__ if inspect.isclass(build) else build
    try:
        return typing.get_type_hints(function, localns=_NAMES)
    except (NameError, TypeError):  # annotated with a name that only its module knows; it checks its arguments itself
        return {}


def _type_problem(value: Any, hint: Any) -> str | None:
    adapter: TypeAdapter[Any] = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True, strict=True))
    try:
        adapter.validate_python(value)
    except ValidationError:
        return f"must be {_described(hint)}, not {value!r}"
    return None


def _described(hint: Any) -> str:
    """Return a type in the words of a study file."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return " or ".join(_described(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    plain = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", types.NoneType: "null"}
    origin = typing.get_origin(hint) or hint
    if hint in plain:
        return plain[hint]
    if origin is collections.abc.Callable:
        return "a Python function"
    return f"a Python object ({getattr(origin, '__name__', origin)})"
