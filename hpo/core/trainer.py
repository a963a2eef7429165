"""The seam between training and search: training yields evaluations and never imports Optuna.

    def objective(params):                     # a custom objective, all of it
        model = build(params)
        for epoch in range(10):
            fit_one_epoch(model, params["learning_rate"])
            yield score(model)                 # reported; the pruner may stop here

The runner knows one shape only, the `TrialArray`: slots that each hold a trial and advance together, one
segment (the stretch between two evaluations) at a time. A generator is an array whose slots hold generators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hpo.core.interrupts import StopRequest

if TYPE_CHECKING:
    import torch

Score = float | int
Seen = tuple[int, int | None]
"""Examples that a trial has seen, and those of its whole training, if known."""
Objective = Callable[[Mapping[str, Any]], "Iterator[Evaluation | Score] | Evaluation | Score"]


@dataclass(frozen=True)
class Evaluation:
    """The score of a model at a point of its training.

    Attributes:
        value: What the study optimises.
        at: Examples seen; None counts the evaluations of the trial: 1, 2, ...
        metrics: Other scores, kept with the trial.
        of: Examples of the whole trial, if known; shows as progress.
        last: Whether the trial has ended with this evaluation.
        notes: Facts to keep with the trial, e.g. `{"collapsed": True}`.
    """

    value: float
    at: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    of: int | None = None
    last: bool = False
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialCheckpoint:
    """What a trial needs to go on from its last whole step.

    Attributes:
        trial: Its number.
        state: What JSON can say: steps, examples seen, the history of its evaluations. It has no NaN and no infinity.
        tensors: Name -> weights, the optimiser's moments; on the CPU when read.
    """

    trial: int
    state: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialSpec:
    """What an array needs to know of a trial.

    Attributes:
        number: The trial's number in its study.
        params: All its hyperparameters, fixed ones too.
        seed: Seed of everything random in it.
        checkpoint: Where to go on from; None starts afresh.
    """

    number: int
    params: Mapping[str, Any]
    seed: int
    checkpoint: TrialCheckpoint | None = None


class TrialArray(Protocol):
    """Slots that train trials together.

    Attributes:
        slots: How many trials it holds at once.
        segment: Steps (examples) between two evaluations; the smallest resource of a rung.
        horizon: Steps of the longest trial that the space allows, if known.
        notes: What the user should know of how it runs.
        stop_request: Once set, `advance` returns as soon as the step under way is done.
    """

    slots: int
    segment: int
    horizon: int | None
    notes: Sequence[str]
    stop_request: StopRequest

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the results depend on besides the study file; kept with the study, and compared when it is resumed."""

    def settle(self, facts: Mapping[str, Any]) -> None:
        """Take over from a study's facts what may be chosen anew in every process; `facts` then says so."""

    def load(self, slot: int, trial: TrialSpec) -> None:
        """Put a trial into an empty slot.

        Raises:
            Exception: Any; of a trial with a checkpoint, that it does not fit. The slot is as empty as it was.
        """

    def advance(self) -> dict[int, Evaluation | Exception]:
        """Train every occupied slot to the end of its segment.

        Returns:
            Slot -> its evaluation; or the exception that ended its trial, alone: `StopIteration` when it had
            no more to do (its value, if any, is the trial's result), a `TrialEndedError` when it is to be told
            PRUNED, a `ArrayShrankError` when it is to wait again, untold, because `slots` had to become fewer; any
            other when it failed. Slots that `halted` stopped before the end of their segment are left out, and
            stay loaded as they are.
        """

    def seen(self, slot: int) -> Seen | None:
        """Return how far the slot's trial is; None for an empty slot. Any thread may ask at any time."""

    def save(self, slot: int) -> TrialCheckpoint | None:
        """Return what the slot's trial needs to go on from here, in CPU memory of its own.

        Whoever writes it has time: training may go on meanwhile. None if the array cannot keep its trials.
        """

    def pause(self, slot: int) -> bool:
        """Empty a slot but hold on to its trial, which goes on where it was once `load` is called with its number.

        False, and the slot stays as it is, if the array holds only what is in slots.
        """

    def keep(self, slot: int, folder: Path) -> bool:
        """Write the weights of the slot's best evaluation; False if the array has none to keep."""

    def unload(self, slot: int) -> None:
        """Empty a slot, whatever state its trial is in; nothing happens to an empty one."""
