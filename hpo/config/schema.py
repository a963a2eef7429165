"""The keys of a study file: type, default, limits and a short description of each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Union

from pydantic import Discriminator, Field, Tag, create_model, field_validator

from hpo.core.errors import nearest
from hpo.core.settings import Mark, Settings, marked
from hpo.core.types import Direction
from hpo.data.keys import DataKeys
from hpo.tasks.language.text_metrics import CHOSEN_BY
from hpo.tasks.multitask.keys import TOGETHER, TaskKeys
from hpo.tasks.multitask.predictions import TASK as SEVERAL
from hpo.tasks.registry import AUTO, TASKS, reader_of

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # of a study, which is also the name of its folder
TASK_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,49}")  # of one of several tasks, which is also the name of a folder
Named = str | dict[str, Any]  # a name, or a mapping of `name` and arguments
Beams = Annotated[int, Field(ge=1)]
Penalty = Annotated[float, Field(allow_inf_nan=False)]


class StopConfig(Settings):
    """What ends a study before its trials are used up: the first that is reached."""

    examples: int | None = Field(default=None, ge=1)
    """Examples that all trials together have trained on."""
    device_hours: float | None = Field(default=None, gt=0)
    """Hours of training of all processes, times their devices: `shards`."""
    target: float | None = Field(default=None, allow_inf_nan=False)
    """A value that a completed trial has reached."""
    plateau: int | None = Field(default=None, ge=1)
    """Trials in a row that have ended without a better value."""


class Decoding(NamedTuple):
    """A way of decoding: how a text is made of the probabilities of tokens."""

    num_beams: int
    length_penalty: float


class GenerateConfig(Settings):
    """How text is generated at the end of each trial and for the verdict."""

    rows: int = Field(default=200, ge=1)
    """Examples of the validation split for which a trial generates; the verdict is on the whole test split."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Tokens after which a generated text is cut."""
    num_beams: Beams | Annotated[list[Beams], Field(min_length=1)] = 1
    """Beams of beam search; 1 takes the most probable token at each position. Of several, the verdict chooses one."""
    length_penalty: Penalty | Annotated[list[Penalty], Field(min_length=1)] = 1.0
    """Exponent of the length by which a beam's score is divided; above 0, long texts are favoured. Or several."""
    metric: Annotated[str | None, Mark.NEWER] = None
    """The score of generated text by which a way of decoding is chosen on the validation split; `chrf` if empty."""

    @property
    def decodings(self) -> tuple[Decoding, ...]:
        """The ways of decoding, each once, in the order of the file. With one beam no length penalty is read."""
        all_beams = self.num_beams if isinstance(self.num_beams, list) else [self.num_beams]
        penalties = self.length_penalty if isinstance(self.length_penalty, list) else [self.length_penalty]
        every = (Decoding(beams, penalty if beams > 1 else 1.0) for beams in all_beams for penalty in penalties)
        return tuple(dict.fromkeys(every))

    @property
    def chosen_by(self) -> str:
        """The score of generated text by which a way of decoding is chosen."""
        return self.metric or CHOSEN_BY


class OneOfSeveral(TaskKeys):
    """The keys of one of several tasks, checked; `data` has those of its task."""

    @field_validator("task")
    @classmethod
    def _task(cls, value: str) -> str:
        if value in (AUTO, *TOGETHER):
            return value
        if value in TASKS:
            raise ValueError(
                f"{value!r} cannot be trained together with others: several tasks share an encoder and have a head "
                f"each, which is for {', '.join(TOGETHER)}; make a study of its own of it"
            )
        raise ValueError(f"{value!r} is not a task{nearest(value, [AUTO, *TOGETHER])}")


def _kind(given: Any) -> str:
    """Return the tag of the keys that one of several tasks may have."""
    task = given.get("task", AUTO) if isinstance(given, Mapping) else getattr(given, "task", AUTO)
    task = task if task in TOGETHER else AUTO
    return reader_of(task).keys.__name__


def _keys_by_kind() -> Any:
    """Return the type of the keys of one of several tasks: a class for each kind of data."""
    kinds = {reader_of(task).keys for task in TOGETHER}
    classes = [
        Annotated[create_model("TaskKeys", __base__=OneOfSeveral, data=(keys, ...)), Tag(keys.__name__)]
        for keys in sorted(kinds, key=lambda each: each.__name__)
    ]
    return Annotated[Union[tuple(classes)], Discriminator(_kind)]  # noqa: UP007 - of classes known at run time only


if TYPE_CHECKING:
    SeveralTasks = dict[str, TaskKeys]
else:
    SeveralTasks = dict[str, _keys_by_kind()]


class StudyConfig(Settings):
    """The settings of one study."""

    name: str = Field(max_length=100)
    """Name in the storage, and of its folder under `runs/`."""
    model: Annotated[str | list[str] | None, Mark.FINE_TUNING] = None
    """Local folder, `package:NAME/folder`, or name on the Hub; or several: the parameter `model`."""
    data: Annotated[DataKeys | None, Mark.FINE_TUNING] = None
    """The data to train on, to validate on and to test on."""
    task: Annotated[str, Mark.FINE_TUNING] = AUTO
    """A key of `hpo.tasks.registry.TASKS`; `auto` takes a task of classification or regression, by the labels."""
    tasks: Annotated[SeveralTasks | None, Mark.FINE_TUNING, Mark.NEWER] = None
    """Several tasks that a model is trained for at once, by names of one's own, in place of `task` and `data`."""
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
    limits: Annotated[dict[str, Any] | None, Mark.RESUMABLE] = None
    """Metric or cost -> its limit, which the best trial has to meet: a number, which is the largest value allowed, or
    the smallest if more is better; or `{least: NUMBER, most: NUMBER}`."""
    second_metric: Annotated[Named | None, Mark.RESUMABLE] = None
    """Metric or cost that forms a Pareto front with the metric; of a custom objective as
    `{name: NAME, direction: minimize}` if its direction is not known."""
    warm_start: Annotated[list[str] | None, Mark.RESUMABLE] = None
    """Earlier studies of the same space, from whose better trials a prior and first configurations are learned: names
    in the same storage, or `STORAGE#NAME`."""
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
    generate: Annotated[GenerateConfig | None, Mark.FINE_TUNING, Mark.NEWER] = None
    """How text is generated and scored; `{}` takes the defaults, and if empty nothing is generated."""
    micro_batch: Annotated[int, Mark.FINE_TUNING] = Field(default=64, ge=1)
    """Most examples in one forward pass; larger batches accumulate gradients."""
    gradient_checkpointing: Annotated[bool, Mark.RESUMABLE, Mark.FINE_TUNING] = False
    """Whether layers are computed again in the backward pass, in place of keeping what they computed."""
    precision: Annotated[Literal["auto", "bf16", "fp32"], Mark.FINE_TUNING] = "auto"
    """`auto` takes bf16 where the device computes faster in it."""
    base_weights: Annotated[Literal["int8", "nf4"] | None, Mark.FINE_TUNING, Mark.NEWER] = None
    """How the frozen linear layers below adapters are held while trials train; if empty, as `precision` computes."""
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

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the settings by value: the class for a task is made when it is needed, and has no place of its own."""
        return _restored, (self.model_dump(),)

    @field_validator("model")
    @classmethod
    def _model(cls, value: str | list[str] | None) -> str | list[str] | None:
        if not isinstance(value, list):
            return value
        twice = [name for name in dict.fromkeys(value) if value.count(name) > 1]
        if twice:
            raise ValueError(f"has {', '.join(map(repr, twice))} more than once; name each model once")
        if len(value) < 2:
            only = f"; write the one without brackets: model: {value[0]}" if value else "; name two or more, or one"
            raise ValueError(f"is a list of {len(value)}{only}")
        return value

    @field_validator("task")
    @classmethod
    def _task(cls, value: str) -> str:
        offered = [AUTO, *(name for name in TASKS if name != SEVERAL)]
        if value not in offered:
            raise ValueError(f"{value!r} is not a task{nearest(value, offered)}")
        return value

    @field_validator("tasks")
    @classmethod
    def _tasks(cls, value: dict[str, TaskKeys] | None) -> dict[str, TaskKeys] | None:
        if value is None:
            return None
        if not value:
            raise ValueError("names no task; name one or more, each with its data")
        if wrong := [name for name in value if not TASK_NAME.fullmatch(name)]:
            raise ValueError(
                f"has {', '.join(map(repr, wrong))}, which cannot be the name of a task: use letters, digits and "
                "underscore, a letter first"
            )
        return value

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


def is_custom(raw: Mapping[str, Any]) -> bool:
    """Return whether a study has a custom objective, and not the built-in one, which fine-tunes a model."""
    return raw.get("objective") is not None


def task_in(raw: Mapping[str, Any]) -> str:
    """Return the name of a study's task in `TASKS`, or `auto`."""
    return SEVERAL if raw.get("tasks") is not None else str(raw.get("task", AUTO))


def keys_of(raw: Mapping[str, Any]) -> type[DataKeys]:
    """Return the keys that `data:` may have in a study, which depend on its task."""
    return reader_of(task_in(raw)).keys


def model_of(raw: Mapping[str, Any]) -> type[StudyConfig]:
    """Return the keys that a study may have, with those of its task under `data`."""
    return _with(keys_of(raw))


def _restored(values: Mapping[str, Any]) -> StudyConfig:
    return model_of(values).model_validate(values)


@cache
def _with(keys: type[DataKeys]) -> type[StudyConfig]:
    annotation: Any = Annotated[keys | None, Mark.FINE_TUNING]
    return create_model("StudyConfig", __base__=StudyConfig, data=(annotation, None))
