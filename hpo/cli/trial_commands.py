"""The commands that guide a study: add a trial, end one, write the file of the next study."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from hpo.analysis import next_study
from hpo.cli.locate_study import load_stored, locate, values_of
from hpo.cli.run_commands import Outcome
from hpo.config import study_spec
from hpo.core.errors import StudyError
from hpo.execution import added_trials, side_study
from hpo.execution.processes import processes_of
from hpo.search.stopping import STOP
from hpo.storage.snapshot import read


def add(name: str, storage_flag: str | None, given: Sequence[str]) -> Outcome:
    """Put a trial into a study.

    Args:
        name: A study file, or the name of a study in the storage.
        storage_flag: `--storage`, if given.
        given: `name=value`, one a parameter.

    Raises:
        HpoError: There is no such study, or the parameters do not fit its space; nothing has been written.
    """
    located, url = locate(name, storage_flag)
    side_study.refuse(located)
    stored: dict[str, Any] | None = load_stored(located, url).user_attrs.get("config")
    if stored is None:
        raise StudyError(
            f"study {located!r} has no search space, as its objective suggests parameters itself: call "
            "enqueue_trial(...) of the Optuna study"
        )
    study = study_spec.from_dict(stored)
    params = values_of("hpo add", given, "learning_rate=3e-5")
    added = added_trials.add(study, load_stored(located, url, writes=True), url, params)
    lines = [f"trial {added.number}: {json.dumps(added.params)}"]
    if added.drawn:
        lines.append(f"the sampler draws {', '.join(added.drawn)}")
    lines += [f"note: {note}" for note in added.notes]
    lines.append(f"it runs when there is room: in a run of {located} under way, or with hpo run {name}")
    facts = {"number": added.number, "params": added.params, "drawn": added.drawn, "notes": added.notes}
    return Outcome("\n".join(lines), facts)


def stop_trial(name: str, storage_flag: str | None, number: int) -> Outcome:
    """Ask for one running trial to end at its next evaluation.

    Args:
        name: A study file, or the name of a study in the storage.
        storage_flag: `--storage`, if given.
        number: The trial's number.

    Raises:
        StudyError: There is no such trial, or it does not run.
    """
    located, url = locate(name, storage_flag)
    load_stored(located, url)  # opened for reading first, as it raises where there is no such study
    opened = load_stored(located, url, writes=True)
    trial = next((row for row in opened.get_trials(deepcopy=False) if row.number == number), None)
    if trial is None:
        raise StudyError(f"study {located!r} has no trial {number}; see hpo trials {located}")
    try:
        if trial.state.is_finished():
            raise UpdateFinishedTrialError
        if trial.state == TrialState.WAITING:
            raise StudyError(f"trial {number} of {located!r} is waiting, and only a running one can be stopped")
        opened._storage.set_trial_system_attr(trial._trial_id, STOP, True)
    except UpdateFinishedTrialError:
        raise StudyError(f"trial {number} of {located!r} has ended already; see hpo trials {located}") from None
    running = _running(located, url)
    text = f"trial {number} ends at its next evaluation, and its slot goes on with another trial"
    if not running:
        text = f"no process runs study {located}: trial {number} ends at its next evaluation in the next hpo run"
    return Outcome(text, {"trial": number, "processes": running})


def write_next(name: str, storage_flag: str | None, path: Path) -> Outcome:
    """Write the file of the next study.

    Args:
        name: A study file, or the name of a study in the storage.
        storage_flag: `--storage`, if given.
        path: The file to write.

    Raises:
        HpoError: The trials show nothing to change, or the file cannot be written.
    """
    located, url = locate(name, storage_flag)
    side_study.refuse(located)
    results = read(load_stored(located, url))
    if "config" not in results.attrs:
        raise StudyError(f"study {located!r} has no search space, as its objective suggests parameters itself")
    found = next_study.write(results, path)
    lines = [f"{change.name}: {change.why}" for change in found]
    return Outcome("\n".join([*lines, f"written: {path}. Read it, then: hpo run {path}"]), {"file": str(path)})


def _running(name: str, url: str) -> list[str]:
    """Return the processes that run a study."""
    processes = processes_of(url, name)
    if processes is None:
        return []
    with closing(processes):
        return processes.running()
