"""The commands that run a study: run, several processes together, worker, check and stop."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hpo.analysis import preflight
from hpo.analysis.findings import findings
from hpo.analysis.verdict import take_verdict
from hpo.analysis.verdict_text import sentences
from hpo.cli.locate_study import load_stored, locate, results_of, study_to_run
from hpo.cli.study_text import front_text, study_facts, trial_text
from hpo.config import study_spec
from hpo.core.errors import HpoError, StudyError
from hpo.core.events import Observer
from hpo.core.formatting import duration, plain
from hpo.execution import local_worker, ray_worker, run_study, side_study, supervisor
from hpo.execution.processes import LOOK, Processes, joined, processes_of
from hpo.execution.retrain import lacks_weights, retrain
from hpo.execution.study_setup import folder_of
from hpo.storage import backends
from hpo.storage.snapshot import Results, read
from hpo.storage.snapshot_json import finite_json
from hpo.storage.urls import opening_error

if TYPE_CHECKING:
    from hpo.finetune.scorable import ScorableArray

log = logging.getLogger(__name__)

WORKER_STORAGE = local_worker.STORAGE

ENDING = 120.0  # seconds to wait for processes that were asked to end

EXECUTORS: dict[str, Callable[..., Any]] = {"local": supervisor.run, "ray": ray_worker.run}
"""Name of an executor -> the function that starts the workers of a study."""


@dataclass(frozen=True)
class Outcome:
    """The result of a command, in text and as JSON values."""

    text: str
    json: Any
    stopped_by_failures: bool = False


def run(study: study_spec.StudySpec, url: str, watch: Observer, *, train: bool = True) -> Outcome:
    """Run a study to its end, look once at the test split, and write the report.

    Args:
        study: The validated study.
        url: URL of its storage.
        watch: Observes the run.
        train: Whether to run the trials that have not ended. False after workers have run them.
    """
    side_study.refuse(study.config.name)
    if not train:
        return _run_and_report(study, url, watch, train=False)
    with joined(url, study.config.name, end_process):
        return _run_and_report(study, url, watch, train=True)


def end_process() -> None:
    """End this process as at SIGTERM, and the workers that it supervises."""
    supervisor.ASKED.set()
    os.kill(os.getpid(), signal.SIGTERM)


def _run_and_report(study: study_spec.StudySpec, url: str, watch: Observer, *, train: bool) -> Outcome:
    from hpo.analysis import report  # loads plotly, which takes a while

    done = run_study.run(study, url, watch, train=train)
    verdict = _verdict(study, done, watch)
    results = read(done.study)
    log.info("writing the report")
    written = report.write(results, done.folder / "report.html", watch.note)
    facts = study_facts(results) | {"test": finite_json(verdict), "looks": len(results.looks)}
    return Outcome(_closing_text(results, verdict, written), facts, done.failed)


def _verdict(study: study_spec.StudySpec, done: run_study.Finished, watch: Observer) -> dict[str, Any] | None:
    """Take the verdict on the test split; train trials again whose weights are missing."""
    if study.config.objective is not None or done.failed:
        return None
    results, weights = read(done.study), done.folder / "trials"
    if results.baseline is not None and not results.baseline.state.is_finished():
        watch.note("the published default has not ended, so the test split is not looked at; run again to go on")
        return None
    for trial in filter(None, (results.best, results.baseline)):
        if lacks_weights(trial, weights / str(trial.number)):
            retrain(study, done.array, trial, weights / str(trial.number), watch.note)
    return take_verdict(done.study, cast("ScorableArray", done.array), weights)


def run_together(
    study: study_spec.StudySpec,
    url: str,
    watch: Observer,
    count: int,
    name: str,
    sets: Sequence[str],
    executor: str = "local",
    address: str | None = None,
) -> Outcome:
    """Run a study in several processes until every trial has ended, look once at the test split, and write the report.

    Args:
        study: The validated study.
        url: URL of its storage.
        watch: Observes the run.
        count: How many processes.
        name: The study as the user named it.
        sets: `key=value` overrides, passed on to the workers.
        executor: A key of `EXECUTORS`.
        address: Address of the cluster, for an executor that has one.
    """
    side_study.refuse(study.config.name)
    if executor not in EXECUTORS:
        raise StudyError(f"there is no executor {executor!r}; there are {', '.join(EXECUTORS)}")
    if address is not None and executor == "local":
        raise StudyError("--address is that of a Ray cluster; add --executor ray")
    cluster = {} if executor == "local" else {"address": address}
    arguments = [name, *(word for item in sets for word in ("--set", item))]
    last = partial(_finish, name, url, sets)
    with joined(url, study.config.name, end_process):
        outcome, notes = EXECUTORS[executor](study, arguments, url, count, watch, last, **cluster)
    for note in notes:
        watch.note(note)
    return cast(Outcome, outcome)


def _finish(name: str, url: str, sets: Sequence[str]) -> tuple[Outcome, list[str]]:
    """Take the verdict and write the report after the workers have ended; return the notes too."""
    notes = _Notes()
    return run(*study_to_run(name, url, sets, {}), notes, train=False), notes.messages


class _Notes(Observer):
    """Collects the notes of a run."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def note(self, message: str) -> None:
        self.messages.append(message)


def work(study: study_spec.StudySpec, url: str, watch: Observer) -> bool:
    """Run a study as one of several processes; return whether too many trials failed."""
    if os.environ.get(local_worker.SUPERVISED):  # a request to stop goes to the supervisor, not to this process
        local_worker.end_with_supervisor()
        return run_study.run(study, url, watch).failed
    with joined(url, study.config.name, end_process):
        return run_study.run(study, url, watch).failed


def stop(name: str, storage_flag: str | None, say: Callable[[str], None]) -> Outcome:
    """Ask all processes of a study, here and on other machines, to end as at SIGTERM, and wait until they have.

    Args:
        name: A study file, or the name of a study in the storage.
        storage_flag: `--storage`, if given.
        say: Prints at once which processes are asked.
    """
    name, url = locate(name, storage_flag)
    backends.refuse(url)
    try:
        asked, left = _ask_and_wait(processes_of(url, name), say)
    except HpoError:
        raise
    except Exception as error:  # of the server, which may go away meanwhile
        raise opening_error(url, error) from None
    if not asked:
        load_stored(name, url)  # raises if there is no such study
        return Outcome(f"no process runs study {name}: nothing to stop", {"asked": [], "left": []})
    if left:
        raise StudyError(
            f"still running after {ENDING:g} s: {', '.join(left)}. A long step ends first; a process that is stopped "
            "(SIGSTOP) ends if it is let go on (kill -CONT) and asked again"
        )
    counts = results_of(name, url).counts
    trials = ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "none"
    text = f"all have ended; trials: {trials}. The next hpo run goes on"
    return Outcome(text, {"asked": asked, "left": left, "counts": counts})


def _ask_and_wait(processes: Processes | None, say: Callable[[str], None]) -> tuple[list[str], list[str]]:
    """Ask the processes of a study to end; return which were asked, and which still run when time is up."""
    if processes is None:
        return [], []
    with closing(processes):
        asked = left = processes.running()
        if asked:
            say(f"asked to end after the step under way: {', '.join(asked)}")
        deadline = time.monotonic() + ENDING
        while left and time.monotonic() < deadline:
            processes.ask()
            time.sleep(LOOK / 4)
            left = processes.running()
    return asked, left


def _closing_text(results: Results, verdict: dict[str, Any] | None, written: Path) -> str:
    if results.best is None:
        return f"{plain(results.why_no_best)}\nreport: {written}"
    lines = [f"stopped: {plain(results.stopped)}"] if results.stopped is not None else []
    lines.append(trial_text(results.best, results))
    lines += front_text(results)
    if verdict is not None:
        lines += sentences(verdict, results.looks)
    lines += [f"note: {finding}" for finding in findings(results)]
    weights = folder_of(results.name) / "trials" / str(results.best.number)
    third = f"hpo export {results.name} -o {results.name}-model" if weights.is_dir() else f"hpo trials {results.name}"
    lines += [
        f"report: {written}",
        "",
        "next:",
        f"  hpo show {results.name}",
        f"  hpo dashboard {results.name}",
        f"  {third}",
    ]
    return "\n".join(lines)


def check(study: study_spec.StudySpec, url: str) -> Outcome:
    """Return what a study would do."""
    backends.refuse(url)
    plan = preflight.check(study, url)
    width = max(map(len, plan.facts))
    lines = [f"{label:<{width}}  {fact}" for label, fact in plan.facts.items()]
    if plan.seconds is not None:
        lines.append(f"{'time':<{width}}  at most about {duration(plan.seconds)}, if no trial is pruned")
    if plan.examples:
        lines += ["as the model sees the first rows of train:", *(f"  {example}" for example in plan.examples)]
    lines += [f"note: {note}" for note in plan.notes]
    found = "it can run, but read the notes first;" if plan.notes else "no problem was found;"
    lines.append(f"{found} nothing has been written")
    return Outcome(
        "\n".join(lines), {"facts": plan.facts, "notes": plan.notes, "seconds": plan.seconds, "examples": plan.examples}
    )
