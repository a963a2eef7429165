"""The keys `limits` and `second_metric` of a study file: their checks, and the criteria that they mean."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from hpo.config.schema import StudyConfig, is_custom, task_in
from hpo.core.errors import Problem, nearest
from hpo.core.numbers import is_number
from hpo.core.types import Direction
from hpo.search.plugins import name_and_arguments
from hpo.storage.criteria import COSTS, MODEL_COSTS, Criteria, Limit, Second
from hpo.tasks.metrics import METRICS, of_generated_text, searchable, suggested
from hpo.tasks.registry import TASKS

BOUNDS = ("least", "most")

OF_ONE_MODEL = (
    "is measured of the model, and all trials of a study of one model end with the same, so there is nothing to choose "
    "between; name several models (model: [A, B]), or leave it out"
)


def direction_of(name: str, custom: bool) -> Direction | None:
    """Return which way a metric or a cost is better; None if that is not known, as of most of a custom objective."""
    if name in COSTS or (name in MODEL_COSTS and not custom):
        return "minimize"
    return METRICS[name].direction if name in METRICS else None


def criteria_of(config: StudyConfig) -> Criteria:
    """Return the criteria of a study whose keys have no problem."""
    custom = config.objective is not None
    limits = tuple(_limit(name, setting, custom) for name, setting in (config.limits or {}).items())
    second = None
    if config.second_metric is not None:
        name, arguments = name_and_arguments(config.second_metric)
        second = Second(name, arguments.get("direction") or direction_of(name, custom) or "minimize")
    criteria = Criteria(limits, second)
    texts = () if custom else of_generated_text(config.task)
    return replace(criteria, at_end=tuple(name for name in criteria.names if name in texts))


def _limit(name: str, setting: float | Mapping[str, float], custom: bool) -> Limit:
    if isinstance(setting, Mapping):
        return Limit(name, **{bound: float(value) for bound, value in setting.items()})
    return Limit(name, **{"least" if direction_of(name, custom) == "maximize" else "most": float(setting)})


def problems(raw: Mapping[str, Any]) -> list[Problem]:
    """Return the problems of the two keys in a study given as plain values."""
    return [*_limits_problems(raw), *_second_problems(raw)]


def _limits_problems(raw: Mapping[str, Any]) -> Iterator[Problem]:
    limits = raw.get("limits")
    if not isinstance(limits, Mapping):
        return
    for name, setting in limits.items():
        if (wrong := _name_problem(str(name), raw)) is not None:
            yield Problem(("limits", str(name)), wrong)
        elif isinstance(setting, Mapping):
            yield from _bounds_problems(str(name), setting)
        elif not _is_finite(setting):
            message = f"must be a number, {{most: NUMBER}} or {{least: NUMBER}}, not {setting!r}"
            yield Problem(("limits", str(name)), message)
        elif direction_of(str(name), is_custom(raw)) is None:
            message = (
                f"is that the largest value allowed or the smallest? Write {{most: {setting}}} or {{least: {setting}}}"
            )
            yield Problem(("limits", str(name)), message)


def _bounds_problems(name: str, setting: Mapping[Any, Any]) -> Iterator[Problem]:
    unknown = [key for key in setting if key not in BOUNDS]
    for key in unknown:
        yield Problem(("limits", name, str(key)), f"is not a key{nearest(str(key), BOUNDS)}; write least or most")
    wrong = [key for key in BOUNDS if key in setting and not _is_finite(setting[key])]
    for key in wrong:
        yield Problem(("limits", name, key), f"must be a number, not {setting[key]!r}")
    if not setting:
        yield Problem(("limits", name), "names no limit; write {most: NUMBER}, {least: NUMBER} or both")
    elif not unknown and not wrong and setting.get("least", -math.inf) > setting.get("most", math.inf):
        yield Problem(("limits", name), f"no value is at least {setting['least']} and at most {setting['most']}")


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


def _second_problems(raw: Mapping[str, Any]) -> Iterator[Problem]:
    setting = raw.get("second_metric")
    if not isinstance(setting, str | Mapping):
        return
    name, arguments = name_and_arguments(setting)
    for key in arguments:
        if key != "direction":
            yield Problem(("second_metric", key), "is not a key; write {name: NAME, direction: minimize}")
    direction, known = arguments.get("direction"), direction_of(name, is_custom(raw))
    if not name:
        yield Problem(("second_metric", "name"), "is missing: name what forms a front with the metric")
    elif (wrong := _name_problem(name, raw)) is not None:
        yield Problem(("second_metric",), wrong)
    elif direction is None and known is None:
        message = f"say which way {name!r} is better: {{name: {name}, direction: minimize}}, or maximize"
        yield Problem(("second_metric",), message)
    elif direction not in (None, "minimize", "maximize"):
        yield Problem(("second_metric", "direction"), f"must be 'minimize' or 'maximize', not {direction!r}")
    elif not is_custom(raw) and direction not in (None, known):
        yield Problem(("second_metric", "direction"), f"leave it out: {name} knows its own, {known}")


def _name_problem(name: str, raw: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a name for this study, if anything; a custom objective may report any."""
    if is_custom(raw) or name in COSTS:
        return None
    if name in MODEL_COSTS:
        return None if isinstance(raw.get("model"), list) else OF_ONE_MODEL
    if name == raw.get("metric"):
        return "is the metric that is optimised; name another one"
    task = task_in(raw)
    offered = searchable(task) if task in TASKS else list(METRICS)
    if name not in METRICS:
        return f"{name!r} is neither a metric nor one of {', '.join((*COSTS, *MODEL_COSTS))}{suggested(name, task)}"
    if name in of_generated_text(task):
        if raw.get("generate") is not None:
            return None
        return f"{name!r} is a score of generated text, and the study generates none; write generate: {{}} too"
    return None if name in offered else f"{name!r} is not defined for {task}; one of {', '.join([*offered, *COSTS])}"
