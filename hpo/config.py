"""A study file: validated whole, every problem listed at once with its line.

Precedence: command line > file > default.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hpo import pruners, samplers, yaml
from hpo.errors import ConfigError, HpoError, Problem
from hpo.finetune.metrics import METRICS, Direction
from hpo.finetune.tasks import TASKS
from hpo.hyperparameters import HYPERPARAMETERS, Hyperparameter, conflicts
from hpo.named import argument_problems, named
from hpo.space import MOST_POINTS, SearchSpace, nearest, parse

PACKAGE = Path(__file__).resolve().parent
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # of a study, and so of a folder
Named = str | dict[str, Any]
Files = str | list[str]
Share = Files | float | int


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DataConfig(_Model):
    """Where the rows come from and which columns matter."""

    dataset: str | None = None
    """Name of a data set on the Hub; `train`, `validation` and `test` then name its splits."""
    subset: str | None = None
    """Configuration of the Hub data set, e.g. `sst2` of `nyu-mll/glue`."""
    train: Files = "train"
    """Files (CSV, TSV, JSONL, Parquet; `*` allowed) or a split of the Hub data set."""
    validation: Share = 0.1
    """Files or a split, or how much of `train` to set aside: a share below 1 or a number of rows."""
    test: Share = 0.1
    """The same for the test split, which the search never sees."""
    text: str = "text"
    """Column of the text."""
    text_pair: str | None = None
    """Column of the second text, for pairs."""
    label: Files = "label"
    """Column of the label; a list of 0/1 columns for several labels a row."""
    where: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Keep only the rows of `train` in which these columns have these values."""
    rows: int | None = Field(default=None, ge=10)
    """Use a seeded sample of this many rows of `train`, before anything is set aside."""

    @field_validator("label")
    @classmethod
    def _some_label(cls, value: Files) -> Files:
        if not value:
            raise ValueError("names no column")
        return value

    @field_validator("validation", "test")
    @classmethod
    def _share(cls, value: Share) -> Share:
        if isinstance(value, bool) or (isinstance(value, int | float) and value <= 0):
            raise ValueError("must be files, a share between 0 and 1, or a number of rows")
        if isinstance(value, float) and value >= 1:
            raise ValueError(f"a share must be below 1, not {value}; a number of rows is written without a point")
        return value


class StudyConfig(_Model):
    """One study, as its file says it."""

    name: str = Field(max_length=100)
    """Name in the storage, and of its folder under `runs/`."""
    model: str | None = None
    """Local folder, `package:NAME/folder`, or name on the Hub."""
    data: DataConfig | None = None
    """The rows to learn from."""
    task: Literal["auto", "single_label", "multi_label", "regression"] = "auto"
    """What a label is; `auto` looks at the labels."""
    metric: str | None = None
    """What is optimised, scored on the validation split; the task's own if empty."""
    objective: str | None = None
    """A custom objective, `module:function`, in place of `model` and `data`."""
    direction: Direction | None = None
    """Which way a custom objective's value is better; a metric knows its own."""
    space: str | dict[str, Any] = "default"
    """Name of a file in `search_spaces/`, a path, or the space itself."""
    sampler: Named = "tpe"
    """A key of `hpo.samplers.SAMPLERS` or a class of `optuna.samplers`, with its arguments."""
    pruner: Named = "median"
    """A key of `hpo.pruners.PRUNERS` or a class of `optuna.pruners`, with its arguments."""
    trials: int | None = Field(default=None, ge=1)
    """Rows of the study, the published default included; all points for a grid, otherwise 20."""
    timeout: float | None = Field(default=None, gt=0)
    """Seconds after which no new trial starts and running ones are put back."""
    baseline: bool = True
    """Whether trial 0 runs the published default."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Everything random derives from it."""
    slots: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    """Trials that train at once; on a CPU, each in a thread of its own. `auto` measures, and remembers."""
    fold: bool | None = None
    """Whether the slots are those of one folded model; if empty, on CUDA."""
    shards: int = Field(default=1, ge=1)
    """Processes, each with a device of its own, over which one trial is divided."""
    round_size: int | None = Field(default=None, ge=1)
    """Trials of a round: each round is drawn from what earlier ones found, and its rungs are decided together, so
    that the results do not depend on who is faster. If empty, trials run free."""
    evaluations_per_epoch: int = Field(default=2, ge=1)
    """How often a trial is scored, and may be pruned."""
    patience: int | None = Field(default=None, ge=1)
    """Stop a trial after this many evaluations without a better one."""
    max_length: int = Field(default=128, ge=4)
    """Tokens after which a text is cut."""
    micro_batch: int = Field(default=64, ge=1)
    """Most examples in one forward pass; larger batches accumulate."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16 where the processor is faster in it."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; `auto` takes the first of cuda, mps, cpu."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads, shared by the slots; all physical cores if empty."""
    max_consecutive_failures: int = Field(default=3, ge=1)
    """Failed trials in a row after which the study stops."""
    stall_timeout: float | None = Field(default=None, gt=0)
    """Seconds without a step of training after which a process ends itself, and its trials go on in another; half an
    hour if empty, and none with an objective of your own."""
    keep_best: int = Field(default=1, ge=1)
    """Models to keep: of so many of the best trials, besides that of the published default."""
    storage: str | None = None
    """URL of the Optuna storage."""
    checksums: dict[str, str] = Field(default_factory=dict)
    """File -> SHA-256 that it must have before anything runs."""

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not NAME.fullmatch(value):
            raise ValueError(
                f"{value!r} cannot be a study's name: use letters, digits, dot, underscore and dash, a letter or digit "
                "first. Where the file has no `name:`, the file's own name is taken; write `name:` in the file"
            )
        return value


# What may differ when a study is resumed: how much, where and how carefully, but not what is measured. Of device,
# fold and shards, what they came to counts: it is among the array's facts.
RESUMABLE = frozenset(
    {
        "trials",
        "timeout",
        "storage",
        "slots",
        "max_consecutive_failures",
        "device",
        "threads",
        "sampler",
        "pruner",
        "fold",
        "shards",
        "stall_timeout",
        "keep_best",
    }
)


# What only the built-in objective reads.
FINE_TUNING = (
    "model", "data", "task", "evaluations_per_epoch", "max_length", "micro_batch", "precision", "device",
    "threads", "fold", "shards", "keep_best",
)  # fmt: skip


@dataclass(frozen=True)
class Study:
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

    def to_dict(self) -> dict[str, Any]:
        """Return the study as JSON values, its space written out; without the storage, which may hold secrets."""
        return {
            **self.config.model_dump(mode="json", exclude={"storage", "space"}),
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


def load(path: Path, overrides: Mapping[str, Any] | None = None) -> Study:
    """Read and check a study file.

    Args:
        path: The YAML file.
        overrides: Dotted key -> value, e.g. `{"data.rows": 1000}`.

    Raises:
        ConfigError: With every problem of the file and of its space, each with its line.
    """
    raw, lines = yaml.read(path)
    given = overrides or {}
    raw = overridden({"name": path.stem, **raw}, given)
    lines = {place: line for place, line in lines.items() if ".".join(map(str, place)) not in given}
    return build(raw, str(path), path.resolve().parent, lines)


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
) -> Study:
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
        if not custom and raw.get("fold") is False and trains_adapters(space):
            problems.append(Problem(("fold",), "adapters (lora_rank) always train folded; leave it out"))
    if config is not None and config.shards > 1 and not custom:
        problems += _shard_problems(config, space)
    if space is not None and config is not None and not problems:
        cannot = samplers.problem(*named(config.sampler), space)
        problems += [Problem(("sampler",), cannot)] if cannot else []
    if problems:
        located = [Problem(p.path, p.message, p.line or yaml.line_of(p.path, lines)) for p in problems]
        raise ConfigError(source, sorted(located, key=lambda p: p.line or 0))
    assert config is not None
    assert space is not None
    return Study(config, space, folder)


def from_dict(stored: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Study:
    """Return the study that `Study.to_dict` wrote, with dotted keys overridden.

    Raises:
        ConfigError: It is not as this version, or any, would have written it.
    """
    settings = {key: value for key, value in stored.items() if key != "folder"}
    settings = overridden(settings, overrides or {})
    return build(settings, f"the stored study {stored.get('name')!r}", Path(str(stored.get("folder", "."))))


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
            problems.append(Problem(("metric",), f"{metric!r} is not a metric{nearest(metric, METRICS)}"))
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
    for kind, room in (("sampler", samplers), ("pruner", pruners)):
        setting = raw.get(kind, StudyConfig.model_fields[kind].default)
        if isinstance(setting, str | Mapping):
            problems += _named_problems(kind, room, *named(setting))
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


def _shard_problems(config: StudyConfig, space: SearchSpace | None) -> list[Problem]:
    """Check what does not go together with a trial that takes all devices for itself."""
    problems = []
    if config.slots != 1:
        problems.append(Problem(("slots",), f"must be 1 with shards: one trial is divided, not {config.slots!r}"))
    if config.fold:
        problems.append(Problem(("fold",), "a model is folded or divided (shards), not both; leave one out"))
    if config.device == "mps":
        problems.append(Problem(("device",), "shards are for cuda or cpu, not mps"))
    if space is not None and trains_adapters(space):
        problems.append(Problem(("shards",), "whole models only, not adapters (lora_rank); leave it out"))
    return problems


def _grid_problems(raw: Mapping[str, Any], space: SearchSpace) -> list[Problem]:
    setting = raw.get("sampler", "tpe")
    if not isinstance(setting, str | Mapping) or named(setting)[0] != "grid":
        return []
    ranges = [
        Problem(("space", name), "is a range; a grid needs a list of values, or a step")
        for name, parameter in space.parameters.items()
        if parameter.points() is None
    ]
    if not ranges and space.size > MOST_POINTS:
        return [Problem(("space",), f"has {space.size:,.0f} points, and a grid plans each of {MOST_POINTS:,} at most")]
    return ranges


def trains_adapters(space: SearchSpace) -> bool:
    """Return whether the trials of the built-in objective train LoRA adapters, not whole models."""
    return "lora_rank" in space.parameters or "lora_rank" in space.fixed


def custom_parameters(study: Study, objective: Any) -> None:
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
