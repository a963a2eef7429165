"""The checks of `tasks:`, the key of a study of several tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpo.core.errors import Problem
from hpo.tasks.metrics import METRICS, WEIGHTED_MEAN, searchable, suggested
from hpo.tasks.multitask.keys import TOGETHER
from hpo.tasks.registry import AUTO

OF_ONE_TASK = {
    "task": "name the task of each under tasks",
    "data": "name the data of each under tasks",
    "metric": "a trial's value is the weighted mean of their metrics; name the metric of each under tasks",
}
"""Key of a study of one task -> what to write in a study of several."""


def problems(raw: Mapping[str, Any]) -> list[Problem]:
    """Return the problems of the key in a study given as plain values, beside those of its types."""
    tasks = raw.get("tasks")
    if tasks is None:
        return []
    found = [
        Problem((key,), f"is for a study of one task, and this one has several (tasks): {instead}; leave it out")
        for key, instead in OF_ONE_TASK.items()
        if raw.get(key) is not None and raw[key] not in (AUTO, WEIGHTED_MEAN)
    ]
    if isinstance(raw.get("shards"), int) and raw["shards"] > 1:
        found.append(Problem(("shards",), "is for a study of one task, not of several (tasks); leave it out"))
    for name, part in tasks.items() if isinstance(tasks, Mapping) else ():
        if isinstance(part, Mapping) and isinstance(metric := part.get("metric"), str):
            message = _metric_problem(metric, str(part.get("task", AUTO)))
            found += [Problem(("tasks", str(name), "metric"), message)] if message else []
    return found


def _metric_problem(metric: str, task: str) -> str | None:
    """Return why a metric cannot be one of a weighted mean, or None."""
    if metric not in METRICS:
        return f"{metric!r} is not a metric{suggested(metric, task)}"
    if METRICS[metric].direction == "minimize":
        return f"less is better in {metric!r}, and in a weighted mean of metrics more is better; name another one"
    if task in TOGETHER and task not in METRICS[metric].tasks:
        offered = [name for name in searchable(task) if METRICS[name].direction == "maximize"]
        return f"{metric!r} is not defined for {task}; one of {', '.join(offered)}"
    return None
