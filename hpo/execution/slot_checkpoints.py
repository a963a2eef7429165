"""Checkpoints of the trials in an array's slots, from which any process can continue them."""

from __future__ import annotations

import uuid
from collections.abc import Container, Mapping

from hpo.core.trainer import TrialArray, TrialCheckpoint
from hpo.execution.active_trial import ActiveTrial
from hpo.execution.checkpoint_store import Checkpoint, Checkpoints
from hpo.execution.checkpoint_writer import CheckpointWriter


class SlotCheckpoints:
    """Writes and reads the checkpoints of the trials of one array.

    Args:
        array: Trains the trials.
        slots: Slot -> its trial; the runner changes it.
        checkpoints: The study's checkpoints; without them nothing is written, and an interrupted trial restarts.
    """

    def __init__(self, array: TrialArray, slots: Mapping[int, ActiveTrial], checkpoints: Checkpoints | None) -> None:
        self._array, self._slots, self._checkpoints = array, slots, checkpoints
        self._writer = None if checkpoints is None else CheckpointWriter(checkpoints)
        self._name = uuid.uuid4().hex  # differs from the arrays of other processes

    @property
    def problem(self) -> str | None:
        """Why a checkpoint could not be written; None if all were."""
        return None if self._writer is None else self._writer.problem

    def of(self, number: int) -> TrialCheckpoint | None:
        """Return the checkpoint of a trial that has the most steps, whichever array wrote it; None if there is none."""
        return None if self._checkpoints is None else self._checkpoints.of(number)

    def offer(self) -> None:
        """Write all slots in the background if a checkpoint is due; returns without waiting for it."""
        if self._writer is not None and self._slots:
            self._writer.offer(self._name, self._all)

    def flush(self) -> None:
        """Write all slots now."""
        if self._writer is not None and self._slots:
            self._writer.flush(self._name, self._all())

    def write_paused(self, slot: int) -> None:
        """Write the trial of one slot now, under its own name, because it is about to leave the array."""
        if self._writer is not None and (checkpoint := self._of_slot(slot)) is not None:
            self._writer.flush(_own_name(checkpoint.trial), Checkpoint({0: checkpoint}))

    def drop(self, number: int) -> None:
        """Delete the checkpoint that `write_paused` wrote of a trial."""
        if self._checkpoints is not None:
            self._checkpoints.drop(_own_name(number))

    def close(self, unfinished: Container[int]) -> None:
        """Wait for the checkpoint that is being written, and delete those that no unfinished trial needs."""
        if self._writer is not None and self._checkpoints is not None:
            self._writer.close()
            self._checkpoints.delete_unneeded(unfinished)

    def _all(self) -> Checkpoint:
        every = {slot: self._of_slot(slot) for slot in self._slots}
        return Checkpoint({slot: checkpoint for slot, checkpoint in every.items() if checkpoint is not None})

    def _of_slot(self, slot: int) -> TrialCheckpoint | None:
        checkpoint = self._array.save(slot)
        return None if checkpoint is None else self._slots[slot].with_history(checkpoint)


def _own_name(number: int) -> str:
    return f"trial-{number}"
