"""A study's rows, read once and kept: what this process writes, it knows.

Optuna's storages read every row that has not ended again, for each question asked of them, and a trial asks a dozen.
The process that holds a study's lock is the only one that writes its rows, so its copy is the truth.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back: inside a write they could leave a session open that locks all others out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    before = {
        number: signal.signal(number, lambda n, _: caught.append(n)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])


class Ledger(InMemoryStorage):
    """One study of a storage, in memory; what is written goes to the storage first.

    Args:
        study: The study as opened in its storage.
    """

    def __init__(self, study: optuna.Study) -> None:
        super().__init__()
        self._kept, self._kept_study_id = study._storage, study._study_id
        self._kept_ids: dict[int, int] = {}
        study_id = super().create_new_study(study.directions, study.study_name)
        for key, value in study.user_attrs.items():
            super().set_study_user_attr(study_id, key, value)
        for key, value in self._kept.get_study_system_attrs(self._kept_study_id).items():
            super().set_study_system_attr(study_id, key, value)
        for row in study.get_trials(deepcopy=False):
            self._kept_ids[super().create_new_trial(study_id, row)] = row._trial_id

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Write to the storage, then to the copy."""
        with undisturbed():
            self._kept.set_study_user_attr(self._kept_study_id, key, value)
            super().set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Write to the storage, then to the copy."""
        with undisturbed():
            self._kept.set_study_system_attr(self._kept_study_id, key, value)
            super().set_study_system_attr(study_id, key, value)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Write to the storage, then to the copy."""
        with undisturbed():
            kept = self._kept.create_new_trial(self._kept_study_id, template_trial)
            trial_id = super().create_new_trial(study_id, template_trial)
            self._kept_ids[trial_id] = kept
            return trial_id

    def set_trial_param(self, trial_id: int, param_name: str, value: float, distribution: BaseDistribution) -> None:
        """Write to the storage, then to the copy."""
        with undisturbed():
            self._kept.set_trial_param(self._kept_ids[trial_id], param_name, value, distribution)
            super().set_trial_param(trial_id, param_name, value, distribution)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Any = None) -> bool:
        """Write to the storage, then to the copy; False if the storage says that somebody else has the trial."""
        with undisturbed():
            done = self._kept.set_trial_state_values(self._kept_ids[trial_id], state, values)
            return done and super().set_trial_state_values(trial_id, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Write to the storage, then to the copy."""
        with undisturbed():
            self._kept.set_trial_intermediate_value(self._kept_ids[trial_id], step, intermediate_value)
            super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write to the storage, then to the copy."""
        with undisturbed():
            self._kept.set_trial_user_attr(self._kept_ids[trial_id], key, value)
            super().set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write to the storage, then to the copy."""
        with undisturbed():
            self._kept.set_trial_system_attr(self._kept_ids[trial_id], key, value)
            super().set_trial_system_attr(trial_id, key, value)


def copied(study: optuna.Study) -> optuna.Study:
    """Return a study that reads a copy of another's rows and writes to both; a study in memory as it is."""
    if isinstance(study._storage, InMemoryStorage):
        return study
    return optuna.Study(study.study_name, Ledger(study), sampler=study.sampler, pruner=study.pruner)
