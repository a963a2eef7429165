"""What is kept of the trials in an array's slots, so that they go on elsewhere; without a folder, nothing is."""

from __future__ import annotations

import uuid
from collections.abc import Container, Mapping

from hpo.core.trainer import TrialArray, TrialCheckpoint
from hpo.execution.active_trial import ActiveTrial
from hpo.execution.checkpoint_store import Checkpoint, Checkpoints, Writer


class SlotCheckpoints:
    """Keeps the trials of one array in checkpoints.

    Args:
        array: What trains them.
        slots: Its slots, as they are at any time.
        checkpoints: Where trials are kept; None computes again what is lost.
    """

    def __init__(self, array: TrialArray, slots: Mapping[int, ActiveTrial], checkpoints: Checkpoints | None) -> None:
        self._array, self._slots, self._checkpoints = array, slots, checkpoints
        self._writer = None if checkpoints is None else Writer(checkpoints)
        self._name = uuid.uuid4().hex  # of the array, among those of other processes

    @property
    def problem(self) -> str | None:
        """Why a checkpoint was not written, if there was one."""
        return None if self._writer is None else self._writer.problem

    def of(self, number: int) -> TrialCheckpoint | None:
        """Return what is kept of a trial where it is furthest, by whatever array; None if there is nothing."""
        return None if self._checkpoints is None else self._checkpoints.of(number)

    def offer(self) -> None:
        """Write all slots in the background, if it is time for it; returns at once if it is not."""
        if self._writer is not None and self._slots:
            self._writer.offer(self._name, self._all)

    def flush(self) -> None:
        """Write all slots now."""
        if self._writer is not None and self._slots:
            self._writer.flush(self._name, self._all())

    def part(self, slot: int) -> None:
        """Write the trial of one slot now, under a name of its own, as it is to leave the array."""
        if self._writer is not None and (kept := self._kept(slot)) is not None:
            self._writer.flush(_own_name(kept.trial), Checkpoint({0: kept}))

    def drop(self, number: int) -> None:
        """Delete what was written of a trial that left the array."""
        if self._checkpoints is not None:
            self._checkpoints.drop(_own_name(number))

    def close(self, unfinished: Container[int]) -> None:
        """Wait for what is under way, and leave nothing that no unfinished trial needs."""
        if self._writer is not None and self._checkpoints is not None:
            self._writer.close()
            self._checkpoints.sweep(unfinished)

    def _all(self) -> Checkpoint:
        kept = {slot: self._kept(slot) for slot in self._slots}
        return Checkpoint({slot: one for slot, one in kept.items() if one is not None})

    def _kept(self, slot: int) -> TrialCheckpoint | None:
        kept = self._array.save(slot)
        return None if kept is None else self._slots[slot].remembered(kept)


def _own_name(number: int) -> str:
    return f"trial-{number}"
