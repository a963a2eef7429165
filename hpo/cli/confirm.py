"""The command `hpo confirm`: trains the best configurations again with fresh seeds, and says what that shows."""

from __future__ import annotations

from optuna.trial import TrialState

from hpo.analysis import confirm_text, report
from hpo.analysis.confirm import take_confirmation
from hpo.analysis.seed_interval import FEWEST_SEEDS
from hpo.analysis.verdict_text import as_text
from hpo.cli.locate_study import load_stored, study_to_run
from hpo.cli.run_commands import Outcome, end_process
from hpo.core.errors import StudyError
from hpo.core.events import Observer
from hpo.execution import confirmation
from hpo.execution.processes import joined
from hpo.execution.study_setup import folder_of
from hpo.storage.snapshot import read
from hpo.storage.snapshot_json import finite_json


def confirm(name: str, storage_flag: str | None, top: int, seeds: int, watch: Observer) -> Outcome:
    """Confirm a study; a confirmation that was interrupted goes on.

    Args:
        name: A study file, or the name of a study in the storage.
        storage_flag: `--storage`, if given.
        top: How many of the best configurations are trained again, besides the published default.
        seeds: How often each.
        watch: Observes the run.

    Raises:
        StudyError: The study has not so many completed trials, or there are too few seeds; nothing has been written.
        HpoError: The data, the model or the objective is not that of the study.
    """
    if seeds < FEWEST_SEEDS:
        raise StudyError(f"--seeds {seeds}: an interval over seeds needs {FEWEST_SEEDS} or more; the default is 5")
    study, url = study_to_run(name, storage_flag, [], {})
    confirming = confirmation.name_of(study.config.name)
    results = read(load_stored(study.config.name, url))
    chosen = confirmation.configurations(results, study, top)
    for message in _doubts(results.counts):
        watch.note(message)
    with joined(url, confirming, end_process):
        confirmed = confirmation.run(study, chosen, seeds, url, watch, confirming)
    left = sum(not run.state.is_finished() for runs in confirmed.runs for run in runs)
    failed = any(run.state == TrialState.FAIL for runs in confirmed.runs for run in runs)
    if left:
        text = f"{left} of {len(chosen) * seeds} runs have not ended, so the test split is not looked at"
        text += f". {confirmed.done.stopped}" if confirmed.done.stopped else ""
        return Outcome(text, {"unfinished": left, "confirmation": None}, confirmed.done.failed)
    original = load_stored(study.config.name, url, writes=True)
    found = take_confirmation(original, results, chosen, confirmed, watch.note)
    written = report.write(read(original), folder_of(study.config.name) / "report.html", watch.note)
    lines = [*confirm_text.sentences(found), *map(as_text, confirm_text.tables(found)), f"report: {written}"]
    if confirmed.study.config.objective is None:
        lines += ["", "next:", f"  hpo export {study.config.name} --confirmed -o {study.config.name}-model"]
    return Outcome("\n".join(lines), finite_json(found), failed)


def _doubts(counts: dict[str, int]) -> list[str]:
    left = counts["running"] + counts["waiting"]
    return [f"{left} trials of the search have not ended: the best may be among them"] if left else []
