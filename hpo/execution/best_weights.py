"""The saved weights of the best trials, of the Pareto front and of the published default."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from hpo.core.errors import StorageError
from hpo.storage.criteria import NO_CRITERIA, Criteria, violation


class Weights:
    """A folder of weights for each trial, `<folder>/<trial>`; several processes may save and delete at once.

    Weights are written before their trial is told. Only those of trials that have ended and are neither among the best
    nor on the front are deleted: such a trial can never be there again. Trials beyond a limit are neither.

    Args:
        folder: Where they are.
        most: How many of the best trials have theirs saved.
        sign: 1 if lower values are better, -1 if higher ones are.
        criteria: The limits that the best trials have to meet, and the second metric.
    """

    def __init__(self, folder: Path, most: int, sign: int, criteria: Criteria = NO_CRITERIA) -> None:
        self._folder, self._most, self._sign, self._criteria = folder, most, sign, criteria

    def save(self, trial: FrozenTrial, rows: Sequence[FrozenTrial], write: Callable[[Path], bool]) -> None:
        """Save a trial's weights if it is among the best, on the front, or the published default.

        Args:
            trial: The trial as it will be told.
            rows: All trials of the study.
            write: Writes the weights into a folder; False if there are none to write.

        Raises:
            StorageError: They cannot be written, mostly because the disk is full.
        """
        others = [row for row in rows if row.number != trial.number]
        if trial.number not in self._needed([*others, trial]):
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
        """Delete the weights of ended trials that are not needed, and unfinished ones of killed processes."""
        needed = self._needed(rows)
        ended = {row.number for row in rows if row.state.is_finished()}
        for path in self._folder.glob("*") if self._folder.is_dir() else ():
            number = path.name.removeprefix(".")
            if number.isdecimal() and int(number) in ended and (path.name != number or int(number) not in needed):
                shutil.rmtree(path, ignore_errors=True)

    def _needed(self, rows: Sequence[FrozenTrial]) -> set[int]:
        """Return the numbers of the trials whose weights are kept; of equal values the lowest numbers.

        Duplicates are left out: they have no weights, and would take the places of trials that have.
        """
        complete = [r for r in rows if r.state == TrialState.COMPLETE and "duplicate_of" not in r.user_attrs]
        within = [row for row in map(self._criteria.seen, complete) if row.value is not None and not violation(row)]
        ranked = sorted(within, key=lambda row: self._criteria.rank(row, self._sign))
        needed = {row.number for row in ranked[: self._most]}
        needed |= {row.number for row in self._criteria.front(within, self._sign)}
        return needed | {row.number for row in rows if row.user_attrs.get("baseline")}
