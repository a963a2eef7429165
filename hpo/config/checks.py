"""The checks of single keys that a schema cannot express: each returns all problems that it finds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpo.config import criteria, several_tasks
from hpo.config.schema import FINE_TUNING, StudyConfig, is_custom, task_in
from hpo.core.errors import Problem
from hpo.search import plugins, pruners, samplers
from hpo.search.comparison import TIE_BREAK
from hpo.search.plugins import name_and_arguments
from hpo.tasks.metrics import METRICS, refused, searchable, suggested
from hpo.tasks.registry import TASKS


def problems(raw: Mapping[str, Any]) -> list[Problem]:
    """Return the problems of the keys of a study given as plain values, beside those of their types."""
    return [
        *_metric_problems(raw),
        *_objective_problems(raw),
        *([] if is_custom(raw) else several_tasks.problems(raw)),
        *_comparison_problems(raw),
        *criteria.problems(raw),
        *_plugin_problems(raw),
    ]


def _metric_problems(raw: Mapping[str, Any]) -> list[Problem]:
    metric, task = raw.get("metric"), task_in(raw)
    if not isinstance(metric, str) or is_custom(raw) or raw.get("tasks") is not None:  # see `several_tasks`
        return []
    if metric not in METRICS:
        return [Problem(("metric",), f"{metric!r} is not a metric{suggested(metric, task)}")]
    if task in TASKS and task not in METRICS[metric].tasks:
        return [Problem(("metric",), f"{metric!r} is not defined for {task}; one of {', '.join(searchable(task))}")]
    reason = refused(metric, task)
    return [Problem(("metric",), reason)] if reason else []


def _objective_problems(raw: Mapping[str, Any]) -> list[Problem]:
    """Check that no key is set which the study's kind of objective does not read."""
    if is_custom(raw):
        unread = [key for key in FINE_TUNING if key in raw and raw[key] != StudyConfig.model_fields[key].default]
        problems = [Problem((key,), "is not read with an objective of your own; leave it out") for key in unread]
        if raw.get("slots") == "auto":
            problems.append(Problem(("slots",), "must be a number with an objective of your own, not 'auto'"))
        if isinstance(raw.get("stop"), Mapping) and raw["stop"].get("examples") is not None:
            problems.append(Problem(("stop", "examples"), "is not read with an objective of your own; leave it out"))
        return problems
    problems = []
    if raw.get("direction") is not None:
        problems.append(Problem(("direction",), "is for a custom objective; a metric knows its own, so leave it out"))
    if raw.get("same_objective"):
        problems.append(Problem(("same_objective",), "is for an objective of your own; leave it out"))
    return problems


def _comparison_problems(raw: Mapping[str, Any]) -> list[Problem]:
    """Check `prune_on`, which the pruner compares in place of the metric."""
    setting = raw.get("prune_on")
    if not isinstance(setting, str | Mapping):
        return []
    name, arguments = name_and_arguments(setting)
    if not is_custom(raw) and (name != TIE_BREAK or arguments):
        given = {"name": name, **arguments} if arguments else name
        message = f"must be loss, the one metric that is reported beside the study's own, not {given!r}"
        return [Problem(("prune_on",), message)]
    problems = [
        Problem(("prune_on", key), "is not a key; write {name: NAME, direction: minimize}")
        for key in arguments
        if key != "direction"
    ]
    direction = arguments.get("direction")
    if not name:
        problems.append(Problem(("prune_on", "name"), "is missing: name a metric that the objective reports"))
    elif direction is None and name not in METRICS:
        message = f"say which way {name!r} is better: {{name: {name}, direction: minimize}}, or maximize"
        problems.append(Problem(("prune_on",), message))
    elif direction not in (None, "minimize", "maximize"):
        problems.append(Problem(("prune_on", "direction"), f"must be 'minimize' or 'maximize', not {direction!r}"))
    return problems


def _plugin_problems(raw: Mapping[str, Any]) -> list[Problem]:
    """Check the sampler and the pruner, and their arguments."""
    problems = []
    for kind, module in (("sampler", samplers), ("pruner", pruners)):
        setting = raw.get(kind, StudyConfig.model_fields[kind].default)
        if isinstance(setting, str | Mapping):
            problems += plugins.problems(kind, module, setting)
    return problems
