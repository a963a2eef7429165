"""The command `hpo audit`: trains a sample of pruned trials to their ends, and says what pruning cost."""

from __future__ import annotations

from hpo.analysis import report
from hpo.analysis.audit import sentences, take_audit
from hpo.cli.locate_study import load_stored, study_to_run
from hpo.cli.run_commands import Outcome, end_process
from hpo.core.events import Observer
from hpo.execution import audit as audits
from hpo.execution import side_study
from hpo.execution.processes import joined
from hpo.execution.study_setup import folder_of
from hpo.storage.snapshot import read
from hpo.storage.snapshot_json import finite_json


def audit(name: str, storage_flag: str | None, count: int, watch: Observer) -> Outcome:
    """Audit a study; an audit that was interrupted goes on.

    Args:
        name: A study file, or the name of a study in the storage.
        storage_flag: `--storage`, if given.
        count: How many pruned trials are trained to their end, at most.
        watch: Observes the run.

    Raises:
        StudyError: The study has no pruned trial, or no completed one; nothing has been written.
        HpoError: The data, the model or the objective is not that of the study.
    """
    study, url = study_to_run(name, storage_flag, [], {})
    beside = side_study.name_of(study.config.name, audits.COMMAND)
    results = read(load_stored(study.config.name, url))
    pruned = audits.sample(results, study.config.seed, count)
    left = results.counts["running"] + results.counts["waiting"]
    if left:
        watch.note(f"{left} trials of the search have not ended: the audit is of those that have")
    with joined(url, beside, end_process):
        ran = audits.run(study, pruned, url, watch, beside)
    left = sum(not run.state.is_finished() for run in ran.trials)
    if left:
        stopped = f". {ran.done.stopped}" if ran.done.stopped else ""
        text = f"{left} of {len(pruned)} runs have not ended, so nothing is told yet{stopped}"
        return Outcome(text, {"unfinished": left, "audit": None}, ran.done.failed)
    found = take_audit(load_stored(study.config.name, url, writes=True), results, beside, ran.trials)
    original = load_stored(study.config.name, url)
    written = report.write(read(original), folder_of(study.config.name) / "report.html", watch.note)
    return Outcome("\n".join([*sentences(found), f"report: {written}"]), finite_json(found), found["untold"] > 0)
