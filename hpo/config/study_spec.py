"""A study file: validated whole, every problem listed at once with its line.

Precedence: command line > file > default.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from pydantic import ValidationError

from hpo.config import inputs, yaml
from hpo.config.schema import FINE_TUNING, DataConfig, StudyConfig
from hpo.core.errors import ConfigError, HpoError, Problem, nearest
from hpo.core.types import Direction
from hpo.recipe.hyperparameters import HYPERPARAMETERS, Hyperparameter, conflicts, trains_adapters
from hpo.search import pruners, samplers
from hpo.search.comparison import TIE_BREAK, Comparison
from hpo.search.plugins import argument_problems, name_and_arguments
from hpo.space.parameters import MOST_POINTS
from hpo.space.parser import parse
from hpo.space.search_space import SearchSpace
from hpo.tasks.classification import TASKS
from hpo.tasks.metrics import METRICS, suggested

PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class StudySpec:
    """A validated study: its settings, its space, and where its file lies.

    Attributes:
        config: The settings.
        space: The search space.
        folder: Folder of the study file; relative paths are looked up here after the working folder.
    """

    config: StudyConfig
    space: SearchSpace
    folder: Path

    @property
    def direction(self) -> Direction:
        """Which way is better."""
        if self.config.metric in METRICS and self.config.objective is None:
            return METRICS[self.config.metric].direction
        return self.config.direction or "maximize"

    @property
    def compared(self) -> Comparison:
        """What the pruner compares."""
        if self.config.prune_on is None:
            return Comparison(self.direction)
        name, arguments = name_and_arguments(self.config.prune_on)
        return Comparison(arguments.get("direction") or METRICS[name].direction, name)

    def to_dict(self) -> dict[str, Any]:
        """Return the study as JSON values, its space written out; without the storage, which may hold secrets."""
        return {
            **self.config.model_dump(mode="json", exclude={"storage", "space", "same_objective"}),
            "space": self.space.to_dict(),
            "folder": str(self.folder),
        }


# ---------------------------------------------------------------- finding files


def shipped(folder: str) -> Path:
    """Return `search_spaces/` or `studies/` as installed with the package, or of the checkout."""
    inside = PACKAGE / folder
    return inside if inside.is_dir() else PACKAGE.parent / folder


def find(name: str, folder: str, base: Path | None = None) -> Path | None:
    """Find a YAML file by path, or by name here, in `folder` or in the shipped one."""
    given = Path(name).expanduser()
    if given.suffix in (".yaml", ".yml"):
        return next((place for place in (given, (base or Path()) / given) if place.is_file()), None)
    places = (Path(), Path(folder), *([base] if base else []), shipped(folder))
    return next((path for place in places if (path := place / f"{name}.yaml").is_file()), None)


# ---------------------------------------------------------------- reading


def load(path: Path, overrides: Mapping[str, Any] | None = None, *, look: bool = False) -> StudySpec:
    """Read and check a study file.

    Args:
        path: The YAML file.
        overrides: Dotted key -> value, e.g. `{"data.rows": 1000}`.
        look: Whether to look for the model, the files and the columns too.

    Raises:
        ConfigError: With every problem of the file and of its space, each with its line.
    """
    raw, lines = yaml.read(path)
    given = overrides or {}
    raw = overridden({"name": path.stem, **raw}, given)
    lines = {place: line for place, line in lines.items() if ".".join(map(str, place)) not in given}
    return build(raw, str(path), path.resolve().parent, lines, look=look)


def overridden(raw: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with dotted keys set.

    Raises:
        ConfigError: A key leads through something that is not a mapping.
    """
    changed = copy.deepcopy(dict(raw))
    for key, value in overrides.items():
        *parents, last = key.split(".")
        place = changed
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError("--set", [Problem((key,), f"{parent} is not a mapping")])
        place[last] = value
    return changed


def build(
    raw: Mapping[str, Any],
    source: str,
    folder: Path,
    lines: Mapping[yaml.SourcePath, int] = MappingProxyType({}),
    *,
    look: bool = False,
) -> StudySpec:
    """Check a study given as plain values; see `load`."""
    problems: list[Problem] = []
    config: StudyConfig | None = None
    try:
        config = StudyConfig.model_validate(dict(raw))
    except ValidationError as error:
        problems += _pydantic_problems(error)
    custom = raw.get("objective") is not None
    if not custom:
        problems += [Problem((key,), "is missing") for key in ("model", "data") if raw.get(key) is None]
    problems += _name_problems(raw, custom)
    space = None
    try:
        space = _space(raw.get("space", "default"), folder, custom)
    except ConfigError as error:
        own = error.source == "space"
        prefix = ("space",) if own else ("space", error.source)
        problems += [Problem((*prefix, *p.path), p.message, None if own else p.line) for p in error.problems]
    if space is not None:
        problems += _grid_problems(raw, space)
        if not custom and raw.get("fold") is False and trains_adapters({*space.parameters, *space.fixed}):
            problems.append(Problem(("fold",), "adapters (lora_rank) always train folded; leave it out"))
    if config is not None and config.data is not None:
        problems += _column_problems(config.data)
    if look and not custom:
        problems += inputs.problems(raw, folder)
    if config is not None and config.shards > 1 and not custom:
        problems += _shard_problems(config, space)
    if space is not None and config is not None and not problems:
        cannot = samplers.problem(*name_and_arguments(config.sampler), space)
        problems += [Problem(("sampler",), cannot)] if cannot else []
    if problems:
        located = [Problem(p.path, p.message, p.line or yaml.line_of(p.path, lines)) for p in problems]
        raise ConfigError(source, sorted(located, key=lambda p: p.line or 0))
    assert config is not None
    assert space is not None
    return StudySpec(config, space, folder)


def from_dict(
    stored: Mapping[str, Any], overrides: Mapping[str, Any] | None = None, *, look: bool = False
) -> StudySpec:
    """Return the study that `Study.to_dict` wrote, with dotted keys overridden; `look` as in `load`.

    Raises:
        ConfigError: It is not as this version, or any, would have written it.
    """
    settings = {key: value for key, value in stored.items() if key != "folder"}
    settings = overridden(settings, overrides or {})
    source = f"the stored study {stored.get('name')!r}"
    return build(settings, source, Path(str(stored.get("folder", "."))), look=look)


def _space(setting: Any, folder: Path, custom: bool) -> SearchSpace:
    known = None if custom else HYPERPARAMETERS
    if isinstance(setting, Mapping):
        return _parsed(setting, known, "space")
    if not isinstance(setting, str):
        raise ConfigError("space", [Problem((), "must be a name, a path or a mapping")])
    path = find(setting, "search_spaces", folder)
    if path is None:
        offered = sorted(p.stem for p in shipped("search_spaces").glob("*.yaml"))
        message = f"there is no search space {setting!r}; shipped: {', '.join(offered)}"
        raise ConfigError("space", [Problem((), message)])
    raw, lines = yaml.read(path)
    try:
        return _parsed(raw, known, path.name)
    except ConfigError as error:
        located = [Problem(p.path, p.message, yaml.line_of(p.path, lines)) for p in error.problems]
        raise ConfigError(path.name, located) from None


def _parsed(raw: Mapping[str, Any], known: Mapping[str, Hyperparameter] | None, source: str) -> SearchSpace:
    """Read a space; of the built-in objective's, say too what does not go together."""
    whole = raw.get("parameters", raw)
    prefix = ("parameters",) if "parameters" in raw else ()
    wrong = conflicts(whole) if known is not None and isinstance(whole, Mapping) else {}
    problems = [Problem((*prefix, name), message) for name, message in wrong.items()]
    try:
        space = parse(raw, known, source=source)
    except ConfigError as error:
        said = {problem.path for problem in problems}
        raise ConfigError(source, [*problems, *(p for p in error.problems if p.path not in said)]) from None
    if problems:
        raise ConfigError(source, problems)
    return space


def _pydantic_problems(error: ValidationError) -> list[Problem]:
    found: dict[tuple[Any, ...], str] = {}
    for item in error.errors():
        # A union reports each of its members; the field is one problem.
        path = tuple(part for part in item["loc"] if isinstance(part, int) or part.isidentifier())
        path = item["loc"] if item["type"] == "extra_forbidden" else path
        path = path[:-1] if path and path[-1] in ("str", "int", "float", "bool", "dict", "list") else path
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            model = DataConfig if path[:1] == ("data",) else StudyConfig
            message = f"is not a key{nearest(path[-1], model.model_fields)}"
        elif not isinstance(item["input"], Mapping) and item["type"] != "value_error":
            message = f"{message}, not {item['input']!r}"
        found[path] = f"{found[path]}, or {message}" if path in found else message
    return [Problem(path, message) for path, message in found.items()]


def _name_problems(raw: Mapping[str, Any], custom: bool) -> list[Problem]:
    """Check the names that stand for entries of the plain dicts."""
    problems: list[Problem] = []
    metric, task = raw.get("metric"), raw.get("task", "auto")
    if isinstance(metric, str) and not custom:
        if metric not in METRICS:
            problems.append(Problem(("metric",), f"{metric!r} is not a metric{suggested(metric)}"))
        elif task in TASKS and task not in METRICS[metric].tasks:
            fit = [name for name, entry in METRICS.items() if task in entry.tasks]
            problems.append(Problem(("metric",), f"{metric!r} is not defined for {task}; one of {', '.join(fit)}"))
    if custom:
        fields = {key: StudyConfig.model_fields[key] for key in FINE_TUNING if key in raw}
        unread = [key for key, entry in fields.items() if raw[key] != entry.default]
        problems += [Problem((key,), "is not read with an objective of your own; leave it out") for key in unread]
        if raw.get("slots") == "auto":
            problems.append(Problem(("slots",), "must be a number with an objective of your own, not 'auto'"))
    elif raw.get("direction") is not None:
        problems.append(Problem(("direction",), "is for a custom objective; a metric knows its own, so leave it out"))
    if isinstance(raw.get("prune_on"), str | Mapping):
        problems += _prune_on_problems(*name_and_arguments(raw["prune_on"]), custom)
    if raw.get("same_objective") and not custom:
        problems.append(Problem(("same_objective",), "is for an objective of your own; leave it out"))
    for kind, room in (("sampler", samplers), ("pruner", pruners)):
        setting = raw.get(kind, StudyConfig.model_fields[kind].default)
        if isinstance(setting, str | Mapping):
            problems += _named_problems(kind, room, *name_and_arguments(setting))
    return problems


def _prune_on_problems(name: str, arguments: Mapping[str, Any], custom: bool) -> list[Problem]:
    """Check what the pruner is to compare in place of the metric."""
    if not custom and (name != TIE_BREAK or arguments):
        said = "must be loss, the one metric that is reported beside the study's own"
        return [Problem(("prune_on",), f"{said}, not {name if not arguments else {'name': name, **arguments}!r}")]
    problems = [
        Problem(("prune_on", key), "is not a key; write {name: NAME, direction: minimize}")
        for key in arguments
        if key != "direction"
    ]
    direction = arguments.get("direction")
    if not name:
        problems.append(Problem(("prune_on", "name"), "is missing: name a metric that the objective reports"))
    elif direction is None and name not in METRICS:
        way = f"say which way {name!r} is better: {{name: {name}, direction: minimize}}, or maximize"
        problems.append(Problem(("prune_on",), way))
    elif direction not in (None, "minimize", "maximize"):
        problems.append(Problem(("prune_on", "direction"), f"must be 'minimize' or 'maximize', not {direction!r}"))
    return problems


def _named_problems(kind: str, room: ModuleType, name: str, arguments: Mapping[str, Any]) -> list[Problem]:
    """Check a sampler or a pruner and its arguments; `room` is the module that knows them."""
    build = room.factory(name)
    if build is None:
        return [Problem((kind,), f"{name!r} is not a {kind}{nearest(name, room.names())}")]
    takes = inspect.signature(build).parameters
    unknown = [key for key in arguments if key not in takes]
    if unknown:
        return [Problem((kind, key), f"is not an argument of {name}{nearest(key, takes)}") for key in unknown]
    wrong = argument_problems(build, arguments)
    if wrong:
        return [Problem((kind, key), message) for key, message in wrong.items()]
    try:
        room.make(name, arguments)
    except (ValueError, TypeError, HpoError) as error:
        return [Problem((kind,), str(error))]
    return []


def _column_problems(data: DataConfig) -> list[Problem]:
    """Check that no column is two things, as a label read as a text tells all, and that no option is unread."""
    labels = [data.label] if isinstance(data.label, str) else data.label
    uses = [("text_pair", data.text_pair, [data.text])] if data.text_pair else []
    uses += [("label", label, [data.text, data.text_pair or data.text]) for label in labels]
    found = [
        Problem(("data", key), f"is column {column!r}, which is a text already; name a column of its own")
        for key, column, others in uses
        if column in others
    ]
    if data.group in labels:
        found.append(Problem(("data", "group"), f"is column {data.group!r}, which is a label; name another column"))
    if data.normalize_labels and not isinstance(data.label, str):
        found.append(Problem(("data", "normalize_labels"), "is not for label columns of 0 and 1; leave it out"))
    if data.dataset is not None:
        unread = [key for key in ("encoding", "separator") if getattr(data, key) is not None]
        found += [Problem(("data", key), "is for files, not data sets of the Hub; leave it out") for key in unread]
    return found


def _shard_problems(config: StudyConfig, space: SearchSpace | None) -> list[Problem]:
    """Check what does not go together with a trial that takes all devices for itself."""
    problems = []
    if config.slots != 1:
        problems.append(Problem(("slots",), f"must be 1 with shards: one trial is divided, not {config.slots!r}"))
    if config.fold:
        problems.append(Problem(("fold",), "a model is folded or divided (shards), not both; leave one out"))
    if config.device == "mps":
        problems.append(Problem(("device",), "shards are for cuda or cpu, not mps"))
    if space is not None and trains_adapters({*space.parameters, *space.fixed}):
        problems.append(Problem(("shards",), "whole models only, not adapters (lora_rank); leave it out"))
    return problems


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


def custom_parameters(study: StudySpec, objective: Any) -> None:
    """Check a space against the `parameters` that a custom objective declares, if it does.

    Raises:
        ConfigError: The space has a parameter that the objective does not read.
    """
    declared: Sequence[str] | None = getattr(objective, "parameters", None)
    if declared is None:
        return
    unread = [name for name in (*study.space.parameters, *study.space.fixed) if name not in declared]
    if unread:
        raise ConfigError(
            study.config.name,
            [Problem(("space", n), f"is not read by {study.config.objective}{nearest(n, declared)}") for n in unread],
        )
