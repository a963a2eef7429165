"""The commands that only read a storage: list, show, trials, best, and the dashboard."""

from __future__ import annotations

import os
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from hpo.cli.locate_study import existing_storage, load_stored, locate
from hpo.core.errors import StudyError
from hpo.storage import backends
from hpo.storage.snapshot import Results, read
from hpo.storage.snapshot_json import study_json


def summaries(storage_flag: str | None) -> list[dict[str, Any]]:
    """Return every study of a storage as JSON values: name, direction, counts, best."""
    storage = backends.look(existing_storage(storage_flag))
    names = sorted(optuna.get_all_study_names(storage))
    return [study_json(read(optuna.load_study(study_name=name, storage=storage))) for name in names]


def best_of(results: Results) -> FrozenTrial:
    """Return the best trial.

    Raises:
        StudyError: No trial completed, or none is within the limits.
    """
    if results.best is None:
        raise StudyError(results.why_no_best)
    return results.best


def dashboard(name: str | None, storage_flag: str | None, **options: Any) -> None:
    """Serve Optuna Dashboard until it is interrupted.

    Args:
        name: The study to open at, by file or name; all of them if None.
        storage_flag: `--storage`, if given.
        options: Other arguments of `hpo.cli.dashboard.serve`.
    """
    from hpo.cli.dashboard import TOKEN, serve

    options["token"] = os.environ.get(TOKEN) or None
    if name is None:
        serve(backends.connect(existing_storage(storage_flag)), **options)
    else:
        located, url = locate(name, storage_flag)
        study = load_stored(located, url)
        serve(backends.connect(url), study=study.study_name, **options)
