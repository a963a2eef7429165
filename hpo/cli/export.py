"""The command `hpo export`: writes the weights of a trial, or of a run of the confirmation."""

from __future__ import annotations

from pathlib import Path

from hpo.analysis.export import chosen, confirmed_run, export_confirmed
from hpo.analysis.export import export as export_trial
from hpo.analysis.model_card import confirmed_warnings, warnings
from hpo.cli.locate_study import load_stored, locate
from hpo.core.errors import ConfigError, Problem, StudyError
from hpo.execution.study_setup import folder_of
from hpo.storage.snapshot import read


def export(
    name: str, storage_flag: str | None, target: Path, trial: int | None, *, confirmed: bool
) -> tuple[Path, list[str]]:
    """Write a trial's weights, or those of the confirmed configuration; return the folder and warnings.

    Args:
        name: A study file, or the name of a study in the storage.
        storage_flag: `--storage`, if given.
        target: Folder to write.
        trial: Number of the trial; None means the best one.
        confirmed: Whether to take the confirmed configuration's run in place of a trial of the search.

    Raises:
        StudyError: There are no such weights, or the folder is not empty.
    """
    if confirmed and trial is not None:
        raise ConfigError("hpo export", [Problem(("--confirmed",), "cannot be with --trial; choose one of them")])
    located, url = locate(name, storage_flag)
    results = read(load_stored(located, url))
    if not confirmed:
        cautions = warnings(results, chosen(results, trial))
        return export_trial(results, folder_of(results.name) / "trials", target, trial), cautions
    if results.confirmation is None:
        raise StudyError(f"study {results.name!r} has not been confirmed: hpo confirm {results.name}")
    runs = read(load_stored(results.confirmation["study"], url))
    _, run = confirmed_run(results, runs)
    written = export_confirmed(results, runs, folder_of(runs.name) / "trials", target)
    return written, confirmed_warnings(results, run)
