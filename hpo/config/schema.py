"""The keys of a study file: type, default, limits and a short description of each."""

from __future__ import annotations

import re
from enum import Enum
from io import BytesIO, TextIOWrapper
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from hpo.core.types import Direction

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # of a study, which is also the name of its folder
Named = str | dict[str, Any]  # a name, or a mapping of `name` and arguments
Files = str | list[str]
Share = Files | float | int


class Mark(Enum):
    """A property of a key, stated beside its type: `Annotated[int, Mark.RESUMABLE]`."""

    RESUMABLE = "may differ when a study is resumed"
    """Such a key says how much is run, where and how carefully, but not what is measured. What `device`, `fold` and
    `shards` resolve to is checked nevertheless: it is among the facts of the fingerprint."""
    FINE_TUNING = "read by the built-in objective only"
    NEWER = "absent from studies made by earlier versions"


def marked(model: type[BaseModel], mark: Mark) -> tuple[str, ...]:
    """Return the keys of a model that have a mark, in the order of the model."""
    return tuple(name for name, field in model.model_fields.items() if mark in field.metadata)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DataConfig(_Model):
    """Where the rows come from and which columns are read."""

    dataset: str | None = None
    """Name of a data set on the Hub; `train`, `validation` and `test` then name its splits."""
    subset: str | None = None
    """Configuration of the Hub data set, e.g. `sst2` of `nyu-mll/glue`."""
    train: Files = "train"
    """Files (CSV, TSV, JSON, JSONL, Parquet; `*` allowed) or a split of the Hub data set."""
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
    """Use only the rows of `train` in which these columns have these values."""
    rows: int | None = Field(default=None, ge=10)
    """Use a seeded sample of this many rows of `train`, before anything is set aside."""
    group: Annotated[str | None, Mark.NEWER] = None
    """Column of groups: rows with the same value are in the same split, and are resampled together."""
    unlabelled: Annotated[Literal["error", "drop"], Mark.NEWER] = "error"
    """Rows without a label: `error` refuses them, `drop` leaves them out."""
    normalize_labels: Annotated[bool, Mark.NEWER] = False
    """Whether labels that differ only in case or blanks are one label, in lower case."""
    encoding: Annotated[str | None, Mark.NEWER] = None
    """Encoding of text files, e.g. `cp1252`; UTF-8 if empty."""
    separator: Annotated[str | None, Mark.NEWER] = None
    """Separator of the fields of CSV and TSV files, e.g. `;`; if empty, the comma and the tab."""

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

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        try:
            TextIOWrapper(BytesIO(), encoding=value)
        except (LookupError, ValueError):
            raise ValueError(f"{value!r} is not a text encoding of Python; e.g. cp1252, latin-1, utf-16") from None
        return value

    @field_validator("separator")
    @classmethod
    def _one_character(cls, value: str | None) -> str | None:
        if value is not None and (len(value) != 1 or value in '"\r\n'):
            raise ValueError(f'must be one character, e.g. ";" or "\\t" (in double quotes), not {value!r}')
        return value

    @model_serializer(mode="wrap")
    def _without_unused_options(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out newer options that are not used, so that studies of earlier versions can be resumed."""
        values: dict[str, Any] = dump(self)
        unused = {name for name in NEWER_OPTIONS if getattr(self, name) == type(self).model_fields[name].default}
        return {name: value for name, value in values.items() if name not in unused}


class StopConfig(_Model):
    """What ends a study before its trials are used up: the first that is reached."""

    examples: int | None = Field(default=None, ge=1)
    """Examples that all trials together have trained on."""
    device_hours: float | None = Field(default=None, gt=0)
    """Hours of training of all processes, times their devices: `shards`."""
    target: float | None = Field(default=None, allow_inf_nan=False)
    """A value that a completed trial has reached."""
    plateau: int | None = Field(default=None, ge=1)
    """Trials in a row that have ended without a better value."""


class StudyConfig(_Model):
    """The settings of one study."""

    name: str = Field(max_length=100)
    """Name in the storage, and of its folder under `runs/`."""
    model: Annotated[str | None, Mark.FINE_TUNING] = None
    """Local folder, `package:NAME/folder`, or name on the Hub."""
    data: Annotated[DataConfig | None, Mark.FINE_TUNING] = None
    """The data to train on, to validate on and to test on."""
    task: Annotated[Literal["auto", "single_label", "multi_label", "regression"], Mark.FINE_TUNING] = "auto"
    """What a label is; `auto` decides by the labels."""
    metric: str | None = None
    """The metric that is optimised, on the validation split; the task's default if empty."""
    objective: str | None = None
    """A custom objective, `module:function`, in place of `model` and `data`."""
    same_objective: Annotated[bool, Mark.RESUMABLE] = False
    """Resume although a custom objective was edited, renamed or moved, in a way that changes no score. Not stored."""
    direction: Direction | None = None
    """Direction of a custom objective; a metric has its own."""
    space: str | dict[str, Any] = "default"
    """Name of a file in `search_spaces/`, a path, or the space itself."""
    sampler: Annotated[Named, Mark.RESUMABLE] = "tpe"
    """A key of `hpo.search.samplers.SAMPLERS` or a class of `optuna.samplers`, with its arguments."""
    pruner: Annotated[Named, Mark.RESUMABLE] = "median"
    """A key of `hpo.search.pruners.PRUNERS` or a class of `optuna.pruners`, with its arguments."""
    prune_on: Annotated[Named | None, Mark.RESUMABLE] = None
    """What the pruner compares in place of the metric: `loss`; of a custom objective any metric that its evaluations
    report, as `{name: NAME, direction: minimize}` if its direction is not known."""
    trials: Annotated[int | None, Mark.RESUMABLE] = Field(default=None, ge=1)
    """Trials of the study, the published default included; all points for a grid, otherwise 20."""
    timeout: Annotated[float | None, Mark.RESUMABLE] = Field(default=None, gt=0)
    """Seconds after which no new trial starts and running trials are put back."""
    stop: Annotated[StopConfig | None, Mark.RESUMABLE] = None
    """What ends the study before its trials are used up."""
    baseline: bool = True
    """Whether trial 0 runs the published default."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed from which every random draw derives."""
    slots: Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], Mark.RESUMABLE] = 1
    """Trials that train at once; on a CPU, each in a thread of its own. `auto` measures and stores the result."""
    fold: Annotated[bool | None, Mark.RESUMABLE, Mark.FINE_TUNING] = None
    """Whether the slots are slots of one folded model; if empty, on CUDA only."""
    shards: Annotated[int, Mark.RESUMABLE, Mark.FINE_TUNING] = Field(default=1, ge=1)
    """Processes, each with a device of its own, over which one trial is divided."""
    round_size: int | None = Field(default=None, ge=1)
    """Trials of a round: a round is sampled from the results of earlier rounds, and its rungs are decided together, so
    that the results do not depend on which trial is faster. If empty, there are no rounds."""
    evaluations_per_epoch: Annotated[int, Mark.FINE_TUNING] = Field(default=2, ge=1)
    """How often a trial is evaluated, and may be pruned."""
    patience: int | None = Field(default=None, ge=1)
    """Stop a trial after this many evaluations without a better one."""
    max_length: Annotated[int, Mark.FINE_TUNING] = Field(default=128, ge=4)
    """Tokens after which a text is cut."""
    micro_batch: Annotated[int, Mark.FINE_TUNING] = Field(default=64, ge=1)
    """Most examples in one forward pass; larger batches accumulate gradients."""
    precision: Annotated[Literal["auto", "bf16", "fp32"], Mark.FINE_TUNING] = "auto"
    """`auto` takes bf16 where the device computes faster in it."""
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Mark.RESUMABLE, Mark.FINE_TUNING] = "auto"
    """Device of training; `auto` takes the first available of cuda, mps, cpu."""
    threads: Annotated[int | None, Mark.RESUMABLE, Mark.FINE_TUNING] = Field(default=None, ge=1)
    """CPU threads, shared by the slots; all physical cores if empty."""
    max_consecutive_failures: Annotated[int, Mark.RESUMABLE] = Field(default=3, ge=1)
    """Consecutive failed trials after which the study stops."""
    stall_timeout: Annotated[float | None, Mark.RESUMABLE] = Field(default=None, gt=0)
    """Seconds without a training step after which a process ends itself, and another process continues its trials; half
    an hour if empty, and no limit for a custom objective."""
    keep_best: Annotated[int, Mark.RESUMABLE, Mark.FINE_TUNING] = Field(default=1, ge=1)
    """Number of best trials whose weights are saved, besides those of the published default."""
    storage: Annotated[str | None, Mark.RESUMABLE] = None
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


RESUMABLE = frozenset(marked(StudyConfig, Mark.RESUMABLE))
FINE_TUNING = marked(StudyConfig, Mark.FINE_TUNING)
NEWER_OPTIONS = marked(DataConfig, Mark.NEWER)
