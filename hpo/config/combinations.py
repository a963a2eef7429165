"""Settings of a study that do not go together: each check returns all problems that it finds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpo.config.schema import GenerateConfig, StudyConfig, is_custom, task_in
from hpo.core.errors import Problem, nearest
from hpo.data.keys import DataKeys
from hpo.recipe.hyperparameters import trains_adapters
from hpo.search import pruners, samplers
from hpo.search.plugins import name_and_arguments
from hpo.space.parameters import MOST_POINTS
from hpo.space.search_space import SearchSpace
from hpo.tasks.metrics import of_generated_text
from hpo.tasks.registry import TASKS, reader_of

TEMPERATURE = "sampling_temperature"


def problems(raw: Mapping[str, Any], config: StudyConfig | None, space: SearchSpace | None) -> list[Problem]:
    """Return the problems of settings that do not go together.

    Args:
        raw: The study as plain values.
        config: The settings, if each of them is valid.
        space: The search space, if it is valid.
    """
    found: list[Problem] = []
    if space is not None:
        found += _grid_problems(raw, space)
        found += [] if is_custom(raw) else _space_problems(raw, space)
    if config is not None:
        found += _data_problems(config)
        if not is_custom(raw):
            found += [] if config.generate is None else _generate_problems(config, config.generate)
            found += _shard_problems(config, space) if config.shards > 1 else []
        found += _round_problems(config)
    return found


def sampler_problems(config: StudyConfig, space: SearchSpace) -> list[Problem]:
    """Return why the sampler cannot sample from the space, for a study without other problems."""
    message = samplers.problem(*name_and_arguments(config.sampler), space)
    return [Problem(("sampler",), message)] if message else []


# ---------------------------------------------------------------- the search space


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


def _space_problems(raw: Mapping[str, Any], space: SearchSpace) -> list[Problem]:
    """Check the settings and hyperparameters that change what of a model is trained, and on what."""
    found = []
    if raw.get("fold") is False and trains_adapters(space.names):
        found.append(Problem(("fold",), "adapters (lora_rank) always train folded; leave it out"))
    found += [*_frozen_problems(raw, space), *_base_problems(raw, space)]
    if raw.get("tasks") is None and TEMPERATURE in space.names:
        message = "mixes several tasks (tasks), and this study has one; leave it out"
        found.append(Problem(("space", TEMPERATURE), message))
    return found


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
    if trains_adapters(space.names):
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
    if not trains_adapters(space.names):
        message = "is for adapters (lora_rank in the space), below which the layers are frozen; leave it out"
        problems.append(Problem(("base_weights",), message))
    if raw.get("device") == "mps":
        problems.append(Problem(("base_weights",), "is for cpu and cuda, not mps; leave it out, or write device: cpu"))
    return problems


# ---------------------------------------------------------------- the data


def _data_problems(config: StudyConfig) -> list[Problem]:
    """Check the keys of the data of each task: those of the task, and those that only files have."""
    found = []
    parts: dict[tuple[str, ...], tuple[str, DataKeys]] = {}
    if config.tasks is not None:
        parts = {("tasks", name, "data"): (part.task, part.data) for name, part in config.tasks.items()}
    elif config.data is not None:
        parts = {("data",): (config.task, config.data)}
    for where, (task, data) in parts.items():
        found += [Problem((*where, *place), message) for place, message in reader_of(task).key_problems(data)]
        if data.dataset is not None:
            unread = [key for key in ("encoding", "separator") if getattr(data, key) is not None]
            found += [Problem((*where, key), "is for files, not data sets of the Hub; leave it out") for key in unread]
    return found


# ---------------------------------------------------------------- how trials run


def _round_problems(config: StudyConfig) -> list[Problem]:
    if config.round_size is None or not pruners.promotes(config.pruner):
        return []
    message = "in rounds trials pause at rungs and are promoted anyway; leave it out, or leave round_size out"
    return [Problem(("pruner", "type"), message)]


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
    if space is not None and trains_adapters(space.names):
        problems.append(Problem(("shards",), "whole models only, not adapters (lora_rank); leave it out"))
    if space is not None and set(frozen_layers(space)) != {0}:
        problems.append(Problem(("shards",), "whole models only, not models with frozen_layers; leave it out"))
    if config.gradient_checkpointing:
        message = "is for trials that are not divided (shards); leave one out"
        problems.append(Problem(("gradient_checkpointing",), message))
    return problems
