"""The saved weights of the best trials and of the published default."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from hpo.core.errors import StorageError


class Weights:
    """A folder of weights for each trial, `<folder>/<trial>`; several processes may save and delete at once.

    Weights are written before their trial is told. Only those of trials that have ended and are not among the best
    are deleted: such a trial can never be among the best again.

    Args:
        folder: Where they are.
        most: How many of the best trials have theirs saved.
        sign: 1 if lower values are better, -1 if higher ones are.
    """

    def __init__(self, folder: Path, most: int, sign: int) -> None:
        self._folder, self._most, self._sign = folder, most, sign

    def save(
        self, trial: FrozenTrial, value: float, rows: Sequence[FrozenTrial], write: Callable[[Path], bool]
    ) -> None:
        """Save a trial's weights if it is among the best or the published default.

        Args:
            trial: The trial, not told yet.
            value: Its value.
            rows: All trials of the study.
            write: Writes the weights into a folder; False if there are none to write.

        Raises:
            StorageError: They cannot be written, mostly because the disk is full.
        """
        better = [rank for rank in self._ranked(rows) if rank < (self._sign * value, trial.number)]
        if len(better) >= self._most and not trial.user_attrs.get("baseline"):
            return
        target, unfinished = self._folder / str(trial.number), self._folder / f".{trial.number}"
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            if not write(unfinished):
                return
            shutil.rmtree(target, ignore_errors=True)
            unfinished.rename(target)
        except Exception as error:  # OSError, or an error of safetensors, which has its own type
            shutil.rmtree(unfinished, ignore_errors=True)
            raise StorageError(
                f"the weights of trial {trial.number} cannot be written to {target} ({error}). Make room, and run the "
                "same command again to go on"
            ) from None

    def delete_unneeded(self, rows: Sequence[FrozenTrial]) -> None:
        """Delete the weights of ended trials that are not among the best, and unfinished ones of killed processes."""
        needed = {number for _, number in self._ranked(rows)[: self._most]}
        needed |= {row.number for row in rows if row.user_attrs.get("baseline")}
        ended = {row.number for row in rows if row.state.is_finished()}
        for path in self._folder.glob("*") if self._folder.is_dir() else ():
            number = path.name.removeprefix(".")
            if number.isdecimal() and int(number) in ended and (path.name != number or int(number) not in needed):
                shutil.rmtree(path, ignore_errors=True)

    def _ranked(self, rows: Sequence[FrozenTrial]) -> list[tuple[float, int]]:
        """Return (signed value, number) of the completed trials, best first; of equal values the lowest number first.

        Duplicates are left out: they have no weights, and would take the places of trials that have.
        """
        complete = [r for r in rows if r.state == TrialState.COMPLETE and "duplicate_of" not in r.user_attrs]
        return sorted((self._sign * row.value, row.number) for row in complete if row.value is not None)
