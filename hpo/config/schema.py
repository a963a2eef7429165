"""What a study file may say: every key with its type, its default and a word on it."""

from __future__ import annotations

import re
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

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # of a study, and so of a folder
Named = str | dict[str, Any]
Files = str | list[str]
Share = Files | float | int
# Keys of `data` that studies made by earlier versions do not have.
NEWER_OPTIONS = ("group", "unlabelled", "normalize_labels", "encoding", "separator")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DataConfig(_Model):
    """Where the rows come from and which columns matter."""

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
    """Keep only the rows of `train` in which these columns have these values."""
    rows: int | None = Field(default=None, ge=10)
    """Use a seeded sample of this many rows of `train`, before anything is set aside."""
    group: str | None = None
    """Column whose equal values name one group: its rows stay on one side of a split, and are resampled together."""
    unlabelled: Literal["error", "drop"] = "error"
    """Rows without a label: `error` refuses them, `drop` leaves them out."""
    normalize_labels: bool = False
    """Whether labels that differ only in case or blanks are one label, in lower case."""
    encoding: str | None = None
    """Encoding of text files, e.g. `cp1252`; UTF-8 if empty."""
    separator: str | None = None
    """What separates the fields of CSV and TSV files, e.g. `;`; if empty, the comma and the tab."""

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
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out newer options that are not used, so that studies made without them can go on."""
        values: dict[str, Any] = dump(self)
        unused = {name for name in NEWER_OPTIONS if getattr(self, name) == type(self).model_fields[name].default}
        return {name: value for name, value in values.items() if name not in unused}


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
    same_objective: bool = False
    """Go on although a custom objective was edited, renamed or moved; for an edit that changes no score. Not kept."""
    direction: Direction | None = None
    """Which way a custom objective's value is better; a metric knows its own."""
    space: str | dict[str, Any] = "default"
    """Name of a file in `search_spaces/`, a path, or the space itself."""
    sampler: Named = "tpe"
    """A key of `hpo.search.samplers.SAMPLERS` or a class of `optuna.samplers`, with its arguments."""
    pruner: Named = "median"
    """A key of `hpo.search.pruners.PRUNERS` or a class of `optuna.pruners`, with its arguments."""
    prune_on: Named | None = None
    """What the pruner compares in place of the metric: `loss`; of a custom objective any metric that its evaluations
    report, as `{name: NAME, direction: minimize}` if its direction is not known."""
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
RESUMABLE = frozenset({
    "trials", "timeout", "storage", "slots", "max_consecutive_failures", "device", "threads", "sampler", "pruner",
    "prune_on", "fold", "shards", "stall_timeout", "keep_best", "same_objective",
})  # fmt: skip

# What only the built-in objective reads.
FINE_TUNING = (
    "model", "data", "task", "evaluations_per_epoch", "max_length", "micro_batch", "precision", "device",
    "threads", "fold", "shards", "keep_best",
)  # fmt: skip
