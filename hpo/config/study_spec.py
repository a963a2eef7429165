"""A study file as one validated object, with its search space.

A problem does not hide another: the error lists all of them, each with its line. Precedence: command line > file >
default.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hpo.config import checks, combinations, inputs, values, yaml
from hpo.config.criteria import criteria_of
from hpo.config.schema import StudyConfig, is_custom, task_in
from hpo.core.errors import ConfigError, Problem
from hpo.core.types import Direction
from hpo.recipe.hyperparameters import HYPERPARAMETERS, MODEL, Hyperparameter, conflicts, model_choice
from hpo.search.comparison import Comparison
from hpo.search.plugins import name_and_arguments
from hpo.space.parser import parse
from hpo.space.search_space import SearchSpace
from hpo.storage.criteria import Criteria
from hpo.tasks.metrics import METRICS
from hpo.tasks.registry import reader_of

PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class StudySpec:
    """A validated study: its settings, its search space and its folder.

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
        """Direction of the objective; of a metric that the task chooses, that of the task's own."""
        if self.config.model is None:  # a custom objective
            return self.config.direction or "maximize"
        return METRICS[self.config.metric or reader_of(task_in(vars(self.config))).metric].direction

    @property
    def compared(self) -> Comparison:
        """What the pruner compares, and its direction."""
        if self.config.prune_on is None:
            return Comparison(self.direction, criteria=self.criteria)
        name, arguments = name_and_arguments(self.config.prune_on)
        return Comparison(arguments.get("direction") or METRICS[name].direction, name, self.criteria)

    @property
    def criteria(self) -> Criteria:
        """The limits that the best trial has to meet, and the second metric."""
        return criteria_of(self.config)

    def to_dict(self) -> dict[str, Any]:
        """Return the study as JSON values with its space and its criteria written out, and without the storage's URL.

        A URL may contain a password.
        """
        return {
            **self.config.model_dump(mode="json", exclude={"storage", "space", "same_objective"}),
            **self.criteria.to_dict(),
            "space": self.space_to_dict(),
            "folder": str(self.folder),
        }

    def space_to_dict(self) -> dict[str, Any]:
        """Return the space as JSON values, without the parameter that the key `model` stands for."""
        written = self.space.to_dict()
        if isinstance(self.config.model, list):
            del written["parameters"][MODEL]
        return written


# ---------------------------------------------------------------- finding files


def shipped(folder: str) -> Path:
    """Return `search_spaces/` or `studies/`, of the installed package or of the checkout."""
    inside = PACKAGE / folder
    return inside if inside.is_dir() else PACKAGE.parent / folder


def find(name: str, folder: str, base: Path | None = None) -> Path | None:
    """Find a YAML file: by path, or by name in the working folder, `folder`, `base` and the shipped folder."""
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
        look: Whether to check too that the model, the files and the columns exist.

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
    config, problems = values.validated(raw)
    problems += checks.problems(raw)
    space, more = _space(raw, folder)
    problems += [*more, *combinations.problems(raw, config, space)]
    if look and not is_custom(raw):
        problems += inputs.problems(raw, folder)
    if config is not None and space is not None and not problems:
        problems += combinations.sampler_problems(config, space)
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
        ConfigError: This version cannot read it, or no version wrote it.
    """
    settings = {key: value for key, value in stored.items() if key != "folder"}
    settings = overridden(settings, overrides or {})
    source = f"the stored study {stored.get('name')!r}"
    return build(settings, source, Path(str(stored.get("folder", "."))), look=look)


# ---------------------------------------------------------------- the search space


def _space(raw: Mapping[str, Any], folder: Path) -> tuple[SearchSpace | None, list[Problem]]:
    """Return the search space, None if it is not valid, and its problems by their place in the study."""
    try:
        return _read_space(raw, folder), []
    except ConfigError as error:
        inline = error.source == "space"  # the lines of another file are not those of the study
        prefix = ("space",) if inline else ("space", error.source)
        return None, [Problem((*prefix, *p.path), p.message, None if inline else p.line) for p in error.problems]


def _read_space(study: Mapping[str, Any], folder: Path) -> SearchSpace:
    setting, models = study.get("space", "default"), _models(study)
    known = None if is_custom(study) else HYPERPARAMETERS
    if isinstance(setting, Mapping):
        return _parsed(setting, known, "space", models)
    if not isinstance(setting, str):
        raise ConfigError("space", [Problem((), "must be a name, a path or a mapping")])
    path = find(setting, "search_spaces", folder)
    if path is None:
        offered = sorted(p.stem for p in shipped("search_spaces").glob("*.yaml"))
        message = f"there is no search space {setting!r}; shipped: {', '.join(offered)}"
        raise ConfigError("space", [Problem((), message)])
    raw, lines = yaml.read(path)
    try:
        return _parsed(raw, known, path.name, models)
    except ConfigError as error:
        located = [Problem(p.path, p.message, yaml.line_of(p.path, lines)) for p in error.problems]
        raise ConfigError(path.name, located) from None


def _models(study: Mapping[str, Any]) -> list[str]:
    """Return the models between which a study chooses; none where it has one, or an objective of its own."""
    models = study.get("model")
    if is_custom(study) or not isinstance(models, list):
        return []
    return list(dict.fromkeys(name for name in models if isinstance(name, str)))


def _parsed(
    raw: Mapping[str, Any], known: Mapping[str, Hyperparameter] | None, source: str, models: Sequence[str]
) -> SearchSpace:
    """Parse a space; for the built-in objective, report parameters that do not go together too.

    With several models, the space has the parameter `model` before all others.
    """
    whole = raw.get("parameters", raw)
    prefix = ("parameters",) if "parameters" in raw else ()
    wrong = conflicts(whole) if known is not None and isinstance(whole, Mapping) else {}
    problems = [Problem((*prefix, name), message) for name, message in wrong.items()]
    if models and isinstance(whole, Mapping):
        whole = {MODEL: list(models), **{name: value for name, value in whole.items() if name != MODEL}}
        raw = {**raw, "parameters": whole} if prefix else whole
        known = {**(known or {}), MODEL: model_choice(models)}
    try:
        space = parse(raw, known, source=source)
    except ConfigError as error:
        said = {problem.path for problem in problems}
        raise ConfigError(source, [*problems, *(p for p in error.problems if p.path not in said)]) from None
    if problems:
        raise ConfigError(source, problems)
    return replace(space, baseline={MODEL: models[0], **space.baseline}) if models else space
