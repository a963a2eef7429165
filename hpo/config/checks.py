"""The checks of a study file: each returns all problems that it finds."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ValidationError

from hpo.config import criteria, several_tasks
from hpo.config.schema import FINE_TUNING, GenerateConfig, StopConfig, StudyConfig, keys_of, model_of, task_in
from hpo.core.errors import ConfigError, HpoError, Problem, nearest
from hpo.data.keys import DataKeys
from hpo.recipe.hyperparameters import trains_adapters
from hpo.search import pruners, samplers
from hpo.search.comparison import TIE_BREAK
from hpo.search.plugins import argument_problems, name_and_arguments
from hpo.space.parameters import MOST_POINTS
from hpo.space.search_space import SearchSpace
from hpo.tasks.metrics import METRICS, of_generated_text, refused, searchable, suggested
from hpo.tasks.registry import TASKS, reader_of

MAPPINGS: dict[str, type[BaseModel]] = {"stop": StopConfig, "generate": GenerateConfig}
"""Key of a study -> the keys of its mapping."""


def is_custom(raw: Mapping[str, Any]) -> bool:
    """Return whether a study has a custom objective, and not the built-in one, which fine-tunes a model."""
    return raw.get("objective") is not None


def validated(raw: Mapping[str, Any]) -> tuple[StudyConfig | None, list[Problem]]:
    """Return the settings, None if a value is wrong, and the problems of keys, values and names."""
    problems: list[Problem] = []
    config: StudyConfig | None = None
    try:
        config = model_of(raw).model_validate(dict(raw))
    except ValidationError as error:
        problems += _pydantic_problems(error, raw)
    if not is_custom(raw):
        needed = ("model", "data") if raw.get("tasks") is None else ("model",)
        problems += [Problem((key,), "is missing") for key in needed if raw.get(key) is None]
    return config, [
        *problems,
        *_metric_problems(raw),
        *_objective_problems(raw),
        *([] if is_custom(raw) else several_tasks.problems(raw)),
        *_comparison_problems(raw),
        *criteria.problems(raw),
        *_plugin_problems(raw),
    ]


def combination_problems(
    raw: Mapping[str, Any], config: StudyConfig | None, space: SearchSpace | None
) -> list[Problem]:
    """Return the problems of settings that do not go together.

    Args:
        raw: The study as plain values.
        config: The settings, if each of them is valid.
        space: The search space, if it is valid.
    """
    problems: list[Problem] = []
    custom = is_custom(raw)
    if space is not None:
        problems += _grid_problems(raw, space)
        if not custom and raw.get("fold") is False and _has_adapters(space):
            problems.append(Problem(("fold",), "adapters (lora_rank) always train folded; leave it out"))
        problems += [] if custom else [*_frozen_problems(raw, space), *_base_problems(raw, space)]
        problems += [] if custom else several_tasks.space_problems(raw, space)
    if config is not None and config.data is not None and config.tasks is None:
        problems += _data_problems(config.task, config.data, ("data",))
    tasks = None if config is None else config.tasks
    for name, part in (tasks or {}).items():
        problems += _data_problems(part.task, part.data, ("tasks", name, "data"))
    if config is not None and config.generate is not None and not custom:
        problems += _generate_problems(config, config.generate)
    if config is not None and config.shards > 1 and not custom:
        problems += _shard_problems(config, space)
    if config is not None and config.round_size is not None and pruners.promotes(config.pruner):
        message = "in rounds trials pause at rungs and are promoted anyway; leave it out, or leave round_size out"
        problems.append(Problem(("pruner", "type"), message))
    return problems


def sampler_problems(config: StudyConfig, space: SearchSpace) -> list[Problem]:
    """Return why the sampler cannot sample from the space, for a study without other problems."""
    message = samplers.problem(*name_and_arguments(config.sampler), space)
    return [Problem(("sampler",), message)] if message else []


def _pydantic_problems(error: ValidationError, raw: Mapping[str, Any]) -> list[Problem]:
    found: dict[tuple[Any, ...], str] = {}
    for item in error.errors():
        # pydantic reports every member of a union; the field is one problem.
        loc = several_tasks.untagged(item["loc"])
        path = tuple(part for part in loc if isinstance(part, int) or part.isidentifier())
        path = loc if item["type"] == "extra_forbidden" else path
        path = path[:-1] if path and path[-1] in ("str", "int", "float", "bool", "dict", "list") else path
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            mappings: dict[Any, type[BaseModel]] = {"data": keys_of(raw), **MAPPINGS}
            model = mappings.get(path[0], StudyConfig) if path[1:] else StudyConfig
            if path[0] == "tasks":
                model = several_tasks.keys_at(path, raw)
            message = f"is not a key{nearest(path[-1], model.model_fields)}"
        elif not isinstance(item["input"], Mapping) and item["type"] != "value_error":
            message = f"{message}, not {item['input']!r}"
        found[path] = f"{found[path]}, or {message}" if path in found else message
    return [Problem(path, message) for path, message in found.items()]


# ---------------------------------------------------------------- names


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
            problems += _arguments_problems(kind, module, *name_and_arguments(setting))
    return problems


def _arguments_problems(kind: str, module: ModuleType, name: str, arguments: Mapping[str, Any]) -> list[Problem]:
    """Check a sampler or a pruner; `module` is the module that makes it."""
    factory = module.factory(name)
    if factory is None:
        return [Problem((kind,), f"{name!r} is not a {kind}{nearest(name, module.names())}")]
    accepted = inspect.signature(factory).parameters
    unknown = [key for key in arguments if key not in accepted]
    if unknown:
        return [Problem((kind, key), f"is not an argument of {name}{nearest(key, accepted)}") for key in unknown]
    wrong = argument_problems(factory, arguments)
    if wrong:
        return [Problem((kind, key), message) for key, message in wrong.items()]
    try:
        module.make(name, arguments)
    except (ValueError, TypeError, HpoError) as error:
        return [Problem((kind,), str(error))]
    return []


# ---------------------------------------------------------------- combinations


def _data_problems(task: str, data: DataKeys, where: tuple[str, ...]) -> list[Problem]:
    """Check the keys of the data at a place of the study: those of the task, and those that only files have."""
    found = [Problem((*where, *place), message) for place, message in reader_of(task).key_problems(data)]
    if data.dataset is not None:
        unread = [key for key in ("encoding", "separator") if getattr(data, key) is not None]
        found += [Problem((*where, key), "is for files, not data sets of the Hub; leave it out") for key in unread]
    return found


def _generate_problems(config: StudyConfig, generate: GenerateConfig) -> list[Problem]:
    """Check that the task generates, and that no setting is unread."""
    problems = []
    if config.task not in TASKS or not TASKS[config.task].generates:
        generating = ", ".join(name for name, task in TASKS.items() if task.generates) or "no task yet"
        message = f"is for tasks whose models generate text ({generating}), not {config.task}; leave it out"
        problems.append(Problem(("generate",), message))
    if config.shards > 1:
        problems.append(Problem(("generate",), "a model that is divided (shards) does not generate; leave one out"))
    if generate.length_penalty != 1.0 and all(decoding.num_beams == 1 for decoding in generate.decodings):
        message = "is read with two beams or more; write num_beams, or leave it out"
        problems.append(Problem(("generate", "length_penalty"), message))
    return problems + _chosen_by_problems(config.task, generate)


def _chosen_by_problems(task: str, generate: GenerateConfig) -> list[Problem]:
    """Check the score by which a way of decoding is chosen."""
    place, offered = ("generate", "metric"), of_generated_text(task)
    if generate.metric is None or not offered:
        return []
    if generate.metric not in offered:
        near = nearest(generate.metric, offered)
        return [Problem(place, f"{generate.metric!r} is not a score of generated text{near}")]
    if len(generate.decodings) == 1:
        message = "chooses between several num_beams or length_penalty, and there is one of each; leave it out"
        return [Problem(place, message)]
    return []


def _shard_problems(config: StudyConfig, space: SearchSpace | None) -> list[Problem]:
    """Check the settings that do not go together with a trial that is divided over several devices."""
    problems = []
    if config.slots != 1:
        problems.append(Problem(("slots",), f"must be 1 with shards: one trial is divided, not {config.slots!r}"))
    if isinstance(config.model, list):
        problems.append(Problem(("shards",), "for one model only, not for several (model); leave it out"))
    if config.fold:
        problems.append(Problem(("fold",), "a model is folded or divided (shards), not both; leave one out"))
    if config.device == "mps":
        problems.append(Problem(("device",), "shards are for cuda or cpu, not mps"))
    if space is not None and _has_adapters(space):
        problems.append(Problem(("shards",), "whole models only, not adapters (lora_rank); leave it out"))
    if space is not None and set(frozen_layers(space)) != {0}:
        problems.append(Problem(("shards",), "whole models only, not models with frozen_layers; leave it out"))
    if config.gradient_checkpointing:
        message = "is for trials that are not divided (shards); leave one out"
        problems.append(Problem(("gradient_checkpointing",), message))
    return problems


def frozen_layers(space: SearchSpace) -> tuple[int, ...]:
    """Return the numbers of frozen layers that a trial of a space may have."""
    values = set(space.values_of("frozen_layers", 0))
    sometimes = "frozen_layers" in space.parameters and space.parameters["frozen_layers"].when
    return tuple(sorted(values | {0} if sometimes else values))


def _frozen_problems(raw: Mapping[str, Any], space: SearchSpace) -> list[Problem]:
    """Check what frozen layers do not go together with."""
    numbers = frozen_layers(space)
    if numbers == (0,):
        return []
    if reader_of(task_in(raw)).redraws:
        message = (
            f"what the lowest layers yield is not the same in two steps of {raw['task']}, whose masks are drawn anew"
        )
        return [Problem(("space", "frozen_layers"), f"{message}; leave it out")]
    if _has_adapters(space):
        message = "adapters (lora_rank) are trained on a model whose layers are all frozen; leave it out"
        return [Problem(("space", "frozen_layers"), message)]
    if raw.get("fold") and len(numbers) > 1:
        message = f"trials that are folded freeze the same layers, not {', '.join(map(str, numbers))}; write one number"
        return [Problem(("space", "frozen_layers"), f"{message}, or fold: false")]
    return []


def _base_problems(raw: Mapping[str, Any], space: SearchSpace) -> list[Problem]:
    """Check what a base in few bits does not go together with."""
    if raw.get("base_weights") is None:
        return []
    problems = []
    if not _has_adapters(space):
        message = "is for adapters (lora_rank in the space), below which the layers are frozen; leave it out"
        problems.append(Problem(("base_weights",), message))
    if raw.get("device") == "mps":
        problems.append(Problem(("base_weights",), "is for cpu and cuda, not mps; leave it out, or write device: cpu"))
    return problems


def _has_adapters(space: SearchSpace) -> bool:
    return trains_adapters({*space.parameters, *space.fixed})


def _grid_problems(raw: Mapping[str, Any], space: SearchSpace) -> list[Problem]:
    setting = raw.get("sampler", "tpe")
    if not isinstance(setting, str | Mapping) or name_and_arguments(setting)[0] != "grid":
        return []
    ranges = [
        Problem(("space", name), "is a range; a grid needs a list of values, or a step")
        for name, parameter in space.parameters.items()
        if parameter.points() is None
    ]
    if not ranges and space.size > MOST_POINTS:
        return [Problem(("space",), f"has {space.size:,.0f} points, and a grid plans each of {MOST_POINTS:,} at most")]
    return ranges


# ---------------------------------------------------------------- the objective


def custom_parameters(config: StudyConfig, space: SearchSpace, objective: Any) -> None:
    """Check a space against the `parameters` that a custom objective declares, if it declares any.

    Raises:
        ConfigError: The space has a parameter that the objective does not read.
    """
    declared: Sequence[str] | None = getattr(objective, "parameters", None)
    if declared is None:
        return
    unread = [name for name in (*space.parameters, *space.fixed) if name not in declared]
    if unread:
        raise ConfigError(
            config.name,
            [Problem(("space", n), f"is not read by {config.objective}{nearest(n, declared)}") for n in unread],
        )
