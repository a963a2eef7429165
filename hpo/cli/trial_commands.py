"""The commands that add a trial to a study and end one: add, and stop with a trial's number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hpo.cli.locate_study import load_stored, locate, values_of
from hpo.cli.run_commands import Outcome
from hpo.config import study_spec
from hpo.core.errors import StudyError
from hpo.execution import added_trials, confirmation


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
    confirmation.refuse(located)
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
