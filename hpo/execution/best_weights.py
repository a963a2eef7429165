"""The weights that outlive their trials: those of the best ones and of the published default."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from hpo.core.errors import StorageError


class Weights:
    """A folder a model, `<folder>/<trial>`; several processes may keep and sweep at once.

    A model is written before its trial is told. Who sweeps deletes only those of trials that have been told and
    are not among the best, which they can never become again.

    Args:
        folder: Where they are.
        most: How many of the best to keep.
        sign: 1 if lower values are better, -1 if higher ones are.
    """

    def __init__(self, folder: Path, most: int, sign: int) -> None:
        self._folder, self._most, self._sign = folder, most, sign

    def keep(
        self, trial: FrozenTrial, value: float, rows: Sequence[FrozenTrial], write: Callable[[Path], bool]
    ) -> None:
        """Write a trial's weights if they are to be kept.

        Args:
            trial: The trial, not told yet.
            value: Its value.
            rows: All rows of the study.
            write: Writes a folder; False if there is nothing to write.

        Raises:
            StorageError: There is no room for them.
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
        except Exception as error:  # of the system, or of safetensors, which has a kind of its own
            shutil.rmtree(unfinished, ignore_errors=True)
            raise StorageError(
                f"the weights of trial {trial.number} cannot be written to {target} ({error}). Make room, and run the "
                "same command again to go on"
            ) from None

    def sweep(self, rows: Sequence[FrozenTrial]) -> None:
        """Delete what is not to be kept, and what a process that was killed did not finish."""
        kept = {number for _, number in self._ranked(rows)[: self._most]}
        kept |= {row.number for row in rows if row.user_attrs.get("baseline")}
        ended = {row.number for row in rows if row.state.is_finished()}
        for path in self._folder.glob("*") if self._folder.is_dir() else ():
            number = path.name.removeprefix(".")
            if number.isdecimal() and int(number) in ended and (path.name != number or int(number) not in kept):
                shutil.rmtree(path, ignore_errors=True)

    def _ranked(self, rows: Sequence[FrozenTrial]) -> list[tuple[float, int]]:
        """Return (value, number) of what has completed, the best first; of equals the lowest number.

        Without duplicates: they have no weights, and must not take the place of those that have.
        """
        complete = [r for r in rows if r.state == TrialState.COMPLETE and "duplicate_of" not in r.user_attrs]
        return sorted((self._sign * row.value, row.number) for row in complete if row.value is not None)
