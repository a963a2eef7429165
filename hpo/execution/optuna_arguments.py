"""Error messages for arguments that Optuna's functions have and `hpo.optimize` has not."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

from hpo.core.errors import Problem, nearest
from hpo.search import pruners, samplers

# Argument of `optuna.create_study` or `Study.optimize` -> what to write instead.
REPLACED = {
    "n_trials": "write trials=N: trials of the study in all, those of earlier runs included",
    "callbacks": "write watch=W, a subclass of hpo.core.events.Observer; its ended(trial) is called after each trial",
    "n_jobs": "leave it out: trials run one after the other; run the script several times with one storage=URL instead",
    "catch": "leave it out: a trial that raises fails, and the study goes on until max_consecutive_failures",
    "gc_after_trial": "leave it out; call gc.collect() in the objective",
    "show_progress_bar": "leave it out; for progress write watch=W, a subclass of hpo.core.events.Observer",
    "study_name": "write name=...",
    "load_if_exists": "leave it out: a study of that name in the storage always goes on",
    "directions": "write direction=...: a study has one objective value",
}

_SHORT = {"GridSampler": "grid", "PatientPruner": "patient"}  # classes whose short name builds another class


def argument_problems(given: Iterable[str], known: Iterable[str]) -> list[Problem]:
    """Return a problem for each argument that `hpo.optimize` does not have.

    Args:
        given: Names of the arguments.
        known: Names of those that it has.
    """
    return [
        Problem((name,), REPLACED.get(name) or f"is not an argument of optimize{nearest(name, known)}")
        for name in given
    ]


def object_problems(sampler: Any, pruner: Any) -> list[Problem]:
    """Return a problem for a sampler and a pruner given as objects, which cannot be stored with the study."""
    kinds: dict[str, tuple[Any, ModuleType, Mapping[str, Callable[..., Any]]]] = {
        "sampler": (sampler, samplers, samplers.SAMPLERS),
        "pruner": (pruner, pruners, pruners.PRUNERS),
    }
    return [
        Problem((kind,), _instead(kind, given, module.factory, entries))
        for kind, (given, module, entries) in kinds.items()
        if not isinstance(given, str | Mapping)
    ]


def _instead(
    kind: str,
    given: Any,
    factory: Callable[[str], Callable[..., Any] | None],
    entries: Mapping[str, Callable[..., Any]],
) -> str:
    """Return what to write instead of an object or a class: its short name, else that of its class."""
    cls = given if inspect.isclass(given) else type(given)
    build = factory(cls.__name__)
    short = next((name for name, entry in entries.items() if entry is build and build is not None), cls.__name__)
    short = _SHORT.get(cls.__name__, short)
    is_own = build is None and hasattr(cls, "sample_independent" if kind == "sampler" else "prune")
    if is_own:
        place = f"hpo.search.{kind}s.{kind.upper()}S"
        return f"is a {cls.__name__} object; add its class to {place} under a name, and write {kind}=that name"
    if build is None:
        return f"must be a name or a mapping, e.g. {kind}={next(iter(entries))!r}, not {given!r}"
    arguments = f"{{'name': {short!r}, ARGUMENT: VALUE}}"
    return f"is a {cls.__name__} object, which cannot be stored with the study; write {kind}={short!r} or {arguments}"
