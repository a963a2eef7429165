"""The interface between training and search: training yields evaluations and never imports Optuna.

    def objective(params):                     # a complete custom objective
        model = build(params)
        for epoch in range(10):
            fit_one_epoch(model, params["learning_rate"])
            yield score(model)                 # reported; the pruner may stop here

The runner uses one interface only, the `TrialArray`: slots that each hold a trial and advance together by one
segment, which is the training between two evaluations. For generators, it is an array whose slots hold generators.
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
"""Examples that a trial has seen, and examples of its whole training, if known."""
Objective = Callable[[Mapping[str, Any]], "Iterator[Evaluation | Score] | Evaluation | Score"]


@dataclass(frozen=True)
class Evaluation:
    """The score of a model at a step of its training.

    Attributes:
        value: The value that the study optimises.
        at: Examples seen; None counts the evaluations of the trial: 1, 2, ...
        metrics: Other scores, stored with the trial.
        of: Examples of the whole trial, if known; shown as progress.
        last: Whether this is the trial's last evaluation.
        notes: Facts to store with the trial, e.g. `{"collapsed": True}`.
        of_best: Scores of the weights of the trial's best evaluation, which are measured at its last one only; stored
            with the metrics of the best evaluation.
        at_end: Facts to store with the trial whichever of its evaluations is the best.
    """

    value: float
    at: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    of: int | None = None
    last: bool = False
    notes: Mapping[str, Any] = field(default_factory=dict)
    of_best: Mapping[str, float] = field(default_factory=dict)
    at_end: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialCheckpoint:
    """The state of a trial after a completed step, from which it can go on.

    Attributes:
        trial: The trial's number.
        state: JSON values without NaN and infinity: steps, examples seen, the history of its evaluations.
        tensors: Name -> weights and the optimiser's moments; on the CPU when read.
    """

    trial: int
    state: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialSpec:
    """A trial as an array loads it.

    Attributes:
        number: The trial's number in its study.
        params: All its hyperparameters, with the fixed ones.
        seed: The seed of all its random draws.
        checkpoint: The checkpoint to go on from; None starts at the first step.
    """

    number: int
    params: Mapping[str, Any]
    seed: int
    checkpoint: TrialCheckpoint | None = None


class TrialArray(Protocol):
    """Slots that train trials together.

    Attributes:
        slots: The number of trials that it holds together.
        segment: Steps (examples) between two evaluations; the smallest resource of a rung.
        horizon: Steps of the longest trial that the space allows, if known.
        notes: Messages to the user about how trials are run.
        stop_request: Once it is set, `advance` returns after the current step.
    """

    slots: int
    segment: int
    horizon: int | None
    notes: Sequence[str]
    stop_request: StopRequest

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the results depend on besides the study file.

        Facts are stored with the study and compared when it is resumed.
        """

    def resume_with(self, facts: Mapping[str, Any]) -> None:
        """Adopt those of a study's facts that each process may choose; `facts` then returns them."""

    def load(self, slot: int, trial: TrialSpec) -> None:
        """Put a trial into an empty slot.

        Raises:
            Exception: Any error, or a checkpoint that does not fit. The slot is then still empty.
        """

    def advance(self) -> dict[int, Evaluation | Exception]:
        """Train every occupied slot to the end of its segment.

        Returns:
            Slot -> its evaluation, or the exception that ended only this trial. `StopIteration`: the trial is
            complete, and the exception's value, if any, is its result. `TrialEndedError`: it is to be told PRUNED.
            `ArrayShrankError`: the array has fewer slots now; the trial is not told, and waits again. Any other
            exception: the trial failed. A slot that `stop_request` stopped before the end of its segment is left
            out, and stays loaded.
        """

    def seen(self, slot: int) -> Seen | None:
        """Return the progress of the slot's trial; None for an empty slot. Any thread may call it at any time."""

    def save(self, slot: int) -> TrialCheckpoint | None:
        """Return a checkpoint of the slot's trial; None if the array cannot make one.

        It is in CPU memory of its own, so that training may go on while it is written.
        """

    def pause(self, slot: int) -> bool:
        """Empty a slot and hold its trial in memory, so that `load` with its number continues it.

        Returns:
            False, with the slot unchanged, if the array can hold trials in slots only.
        """

    def save_weights(self, slot: int, folder: Path) -> bool:
        """Save the weights of the slot's best evaluation; return False if the array has none."""

    def unload(self, slot: int) -> None:
        """Empty a slot in any state; an empty slot stays empty."""
