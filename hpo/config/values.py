"""Reads the keys and values of a study into its settings; each that the schema does not allow is a problem."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from hpo.config.schema import GenerateConfig, OneOfSeveral, StopConfig, StudyConfig, is_custom, keys_of, model_of
from hpo.core.errors import Problem, nearest
from hpo.tasks.registry import AUTO, reader_of

MAPPINGS: dict[str, type[BaseModel]] = {"stop": StopConfig, "generate": GenerateConfig}
"""Key of a study -> the keys of its mapping."""


def validated(raw: Mapping[str, Any]) -> tuple[StudyConfig | None, list[Problem]]:
    """Return the settings of a study given as plain values, and their problems; no settings if one is wrong."""
    problems: list[Problem] = []
    config: StudyConfig | None = None
    try:
        config = model_of(raw).model_validate(dict(raw))
    except ValidationError as error:
        problems += _pydantic_problems(error, raw)
    if not is_custom(raw):
        needed = ("model", "data") if raw.get("tasks") is None else ("model",)
        problems += [Problem((key,), "is missing") for key in needed if raw.get(key) is None]
    return config, problems


def _pydantic_problems(error: ValidationError, raw: Mapping[str, Any]) -> list[Problem]:
    found: dict[tuple[Any, ...], str] = {}
    for item in error.errors():
        # pydantic reports every member of a union; the field is one problem.
        loc = _untagged(item["loc"])
        path = tuple(part for part in loc if isinstance(part, int) or part.isidentifier())
        path = loc if item["type"] == "extra_forbidden" else path
        path = path[:-1] if path and path[-1] in ("str", "int", "float", "bool", "dict", "list") else path
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            mappings: dict[Any, type[BaseModel]] = {"data": keys_of(raw), **MAPPINGS}
            model = mappings.get(path[0], StudyConfig) if path[1:] else StudyConfig
            if path[0] == "tasks":
                model = _keys_at(path, raw)
            message = f"is not a key{nearest(path[-1], model.model_fields)}"
        elif not isinstance(item["input"], Mapping) and item["type"] != "value_error":
            message = f"{message}, not {item['input']!r}"
        found[path] = f"{found[path]}, or {message}" if path in found else message
    return [Problem(path, message) for path, message in found.items()]


def _untagged(place: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the place of an error without the tag with which pydantic chooses the keys of a task."""
    return (*place[:2], *place[3:]) if place[:1] == ("tasks",) and len(place) > 2 else place


def _keys_at(place: tuple[Any, ...], raw: Mapping[str, Any]) -> type[BaseModel]:
    """Return the keys of the mapping in which an unknown key is, at a place under `tasks`."""
    if len(place) < 4:
        return OneOfSeveral
    return reader_of(raw["tasks"][place[1]].get("task", AUTO)).keys
