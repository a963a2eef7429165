"""What the commands do, as functions: find the study, run or read it, say it in text or JSON."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial
from rich.table import Table
from rich.text import Text

from hpo.analysis import preflight
from hpo.analysis.findings import findings
from hpo.analysis.trial_summary import finite_value, remarks
from hpo.analysis.verdict import judge
from hpo.analysis.verdict_text import as_text, sentences, tables
from hpo.config import study_spec, yaml
from hpo.core.errors import ConfigError, Problem, StudyError, nearest
from hpo.core.events import Observer
from hpo.core.formatting import columns, duration, plain
from hpo.execution import local_worker, ray_worker, run_study, supervisor
from hpo.execution.checkpoint_store import used
from hpo.execution.processes import LOOK, joined, processes_of
from hpo.execution.retrain import lacks_weights, retrain
from hpo.execution.study_setup import folder_of, load_by_name
from hpo.storage import backends
from hpo.storage.snapshot import Results, attrs_of, finite_json, read, study_json
from hpo.storage.urls import redacted

if TYPE_CHECKING:
    from hpo.finetune.scorable import ScorableArray

log = logging.getLogger(__name__)

optuna.logging.set_verbosity(optuna.logging.WARNING)  # the commands say themselves what matters

WORKER_STORAGE = local_worker.STORAGE

ENDING = 120.0  # seconds to wait for processes that were asked to end

EXECUTORS: dict[str, Callable[..., Any]] = {"local": supervisor.run, "ray": ray_worker.run}
"""What starts the workers of a study."""

# ---------------------------------------------------------------- finding the study


def study_to_run(
    name: str, storage_flag: str | None, sets: Sequence[str], flags: Mapping[str, Any]
) -> tuple[study_spec.StudySpec, str]:
    """Return the validated study that a name or path means, and the URL of its storage.

    Args:
        name: Path of a study file, name of one in `studies/`, or name of a study in the storage.
        storage_flag: `--storage`, if given.
        sets: `key=value` overrides.
        flags: Other settings from the command line; None is not given.
    """
    overrides = _overrides(sets) | {key: value for key, value in flags.items() if value is not None}
    path = study_spec.find(name, "studies")
    if path is not None:
        study = study_spec.load(path, overrides, look=True)
        return study, backends.choose(storage_flag, study.config.storage)
    _refuse_missing_file(name)
    url = backends.choose(storage_flag)
    files = sorted(str(path) for path in Path().glob("*.y*ml"))
    shipped = sorted(path.stem for path in study_spec.shipped("studies").glob("*.yaml"))
    hint = f"Name a study file{nearest(name, [*files, *shipped])}"
    stored = attrs_of(_opened(name, url, hint)).get("config")
    if stored is None or _of_a_script(stored.get("objective")):
        raise StudyError(
            f"study {name!r} in {redacted(url)} was made by a script, not from a study file: "
            "run the script again to go on"
        )
    return study_spec.from_dict(stored, overrides, look=True), url


def _of_a_script(objective: Any) -> bool:
    """Return whether a stored objective cannot be imported: a function of a script, a lambda, an object."""
    module, _, attribute = str(objective or "module:name").partition(":")
    return module == "__main__" or not attribute.isidentifier()


def _overrides(sets: Sequence[str]) -> dict[str, Any]:
    malformed = [item for item in sets if "=" not in item or item.startswith("=")]
    if malformed:
        raise ConfigError("--set", [Problem((item,), "must be KEY=VALUE, e.g. data.rows=500") for item in malformed])
    return {key.strip(): yaml.scalar(value) for key, _, value in (item.partition("=") for item in sets)}


def _refuse_missing_file(name: str) -> None:
    if Path(name).suffix in (".yaml", ".yml"):
        shipped = sorted(path.stem for path in study_spec.shipped("studies").glob("*.yaml"))
        raise StudyError(f"there is no study file {name}; studies that come with hpo: {', '.join(shipped)}")


def _opened(name: str, url: str, hint: str = "Run it first: hpo run FILE") -> optuna.Study:
    if not backends.exists(url):
        raise StudyError(
            f"no study {name!r}: there is no storage {redacted(url)} yet. Name the right one with --storage. {hint}"
        )
    return load_by_name(name, backends.look(url), redacted(url), hint)


def _located(name: str, storage_flag: str | None) -> tuple[str, str]:
    """Return the name and the storage's URL of a study that has been run."""
    path = study_spec.find(name, "studies")
    if path is None:
        _refuse_missing_file(name)
        return name, backends.choose(storage_flag)
    raw, _ = yaml.read(path)
    kept = raw.get("storage")
    return str(raw.get("name", path.stem)), backends.choose(storage_flag, None if kept is None else str(kept))


def results_of(name: str, storage_flag: str | None) -> Results:
    """Return a snapshot of a study, by file or name."""
    return read(_opened(*_located(name, storage_flag)))


# ---------------------------------------------------------------- running


@dataclass(frozen=True)
class Outcome:
    """What a command has to say, in text and as JSON values."""

    text: str
    json: Any
    stopped_by_failures: bool = False


def run(study: study_spec.StudySpec, url: str, watch: Observer, *, train: bool = True) -> Outcome:
    """Run a study to its end, look once at the test split, and write the report.

    Args:
        study: The validated study.
        url: URL of its storage.
        watch: Told of everything.
        train: Whether to run what has not ended; if not, others have, as far as it goes.
    """
    if not train:
        return _finished(study, url, watch, train=False)
    with joined(url, study.config.name, _end):
        return _finished(study, url, watch, train=True)


def _end() -> None:
    supervisor.ASKED.set()
    os.kill(os.getpid(), signal.SIGTERM)


def _finished(study: study_spec.StudySpec, url: str, watch: Observer, *, train: bool) -> Outcome:
    from hpo.analysis import report  # with plotly, which commands that only look need not wait for

    done = run_study.run(study, url, watch, train=train)
    verdict = None
    results = read(done.study)
    if study.config.objective is None and not done.failed:
        weights = done.folder / "trials"
        if results.baseline is None or results.baseline.state.is_finished():
            for trial in filter(None, (results.best, results.baseline)):
                if lacks_weights(trial, weights / str(trial.number)):
                    retrain(study, done.array, trial, weights / str(trial.number), watch.note)
            verdict = judge(done.study, cast("ScorableArray", done.array), weights)
        else:
            watch.note("the published default has not ended, so the test split is not looked at; run again to go on")
    results = read(done.study)
    log.info("writing the report")
    written = report.write(results, done.folder / "report.html", watch.note)
    said = shown_json(results) | {"test": finite_json(verdict), "looks": len(results.looks)}
    return Outcome(_closing(results, verdict, written), said, done.failed)


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
    """Run a study in several processes until every row has ended, look once at the test split, and write the report.

    Args:
        study: The validated study.
        url: URL of its storage.
        watch: Told of everything.
        count: How many processes.
        name: The study as the user named it.
        sets: `key=value` overrides that the workers get too.
        executor: A key of `EXECUTORS`.
        address: Of the cluster, for an executor that has one.
    """
    if executor not in EXECUTORS:
        raise StudyError(f"there is no executor {executor!r}; there are {', '.join(EXECUTORS)}")
    if address is not None and executor == "local":
        raise StudyError("--address is that of a Ray cluster; add --executor ray")
    cluster = {} if executor == "local" else {"address": address}
    arguments = [name, *(word for item in sets for word in ("--set", item))]
    last = partial(_finish, name, url, sets)
    with joined(url, study.config.name, _end):
        outcome, notes = EXECUTORS[executor](study, arguments, url, count, watch, last, **cluster)
    for note in notes:
        watch.note(note)
    return cast(Outcome, outcome)


def _finish(name: str, url: str, sets: Sequence[str]) -> tuple[Outcome, list[str]]:
    """Do what is left once the workers have ended, wherever that is; return notes too."""
    notes = _Notes()
    return run(*study_to_run(name, url, sets, {}), notes, train=False), notes.taken


class _Notes(Observer):
    def __init__(self) -> None:
        self.taken: list[str] = []

    def note(self, message: str) -> None:
        self.taken.append(message)


def work(study: study_spec.StudySpec, url: str, watch: Observer) -> bool:
    """Be one of the processes that run a study; return whether too many trials failed."""
    if os.environ.get(local_worker.SUPERVISED):  # who is asked in its place
        local_worker.end_with_supervisor()
        return run_study.run(study, url, watch).failed
    with joined(url, study.config.name, _end):
        return run_study.run(study, url, watch).failed


def stop(name: str, storage_flag: str | None, say: Callable[[str], None]) -> Outcome:
    """Ask all processes of a study, here and on other machines, to end as at SIGTERM, and wait until they have.

    Args:
        name: A study file, or the name of a study in the storage.
        storage_flag: `--storage`, if given.
        say: Told at once who is asked.
    """
    name, url = _located(name, storage_flag)
    backends.refuse(url)
    others = processes_of(url, name)
    with nullcontext() if others is None else closing(others):
        asked = others.running() if others is not None else []
        if others is None or not asked:
            _opened(name, url)  # or says that there is none
            return Outcome(f"no process runs study {name}: nothing to stop", {"asked": [], "left": []})
        say(f"asked to end after the step under way: {', '.join(asked)}")
        deadline = time.monotonic() + ENDING
        while (left := others.running()) and time.monotonic() < deadline:
            others.ask()
            time.sleep(LOOK / 4)
    if left:
        raise StudyError(
            f"still running after {ENDING:g} s: {', '.join(left)}. A long step ends first; a process that is stopped "
            "(SIGSTOP) ends if it is let go on (kill -CONT) and asked again"
        )
    counts = results_of(name, url).counts
    trials = ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "none"
    text = f"all have ended, and nobody is asked any more; trials: {trials}. The next hpo run goes on"
    return Outcome(text, {"asked": asked, "left": left, "counts": counts})


def _closing(results: Results, verdict: dict[str, Any] | None, written: Path) -> str:
    if results.best is None:
        return f"no trial of {results.name} has completed\nreport: {written}"
    lines = [trial_text(results.best, results)]
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
    """Say what a study would do."""
    backends.refuse(url)
    plan = preflight.check(study)
    width = max(map(len, plan.facts))
    lines = [f"{label:<{width}}  {fact}" for label, fact in plan.facts.items()]
    if plan.seconds is not None:
        lines.append(f"{'time':<{width}}  at most about {duration(plan.seconds)}, if no trial is pruned")
    lines += [f"note: {note}" for note in plan.notes]
    found = "it can run, but read the notes first;" if plan.notes else "nothing is wrong with it, and"
    lines.append(f"{found} nothing has been written")
    return Outcome("\n".join(lines), {"facts": plan.facts, "notes": plan.notes, "seconds": plan.seconds})


# ---------------------------------------------------------------- looking


def summaries(storage_flag: str | None) -> list[dict[str, Any]]:
    """Return every study of a storage: name, direction, counts, best."""
    url = backends.choose(storage_flag)
    if not backends.exists(url):
        raise StudyError(f"there is no storage {redacted(url)} yet; run a study first: hpo run quickstart")
    kept: BaseStorage = backends.look(url)
    names = sorted(optuna.get_all_study_names(kept))
    return [study_json(read(optuna.load_study(study_name=name, storage=kept))) for name in names]


def table(studies: Sequence[Mapping[str, Any]]) -> Table:
    """Return studies as a table."""
    shown = Table("study", "direction", "complete", "pruned", "fail", "running", "waiting", "best", box=None)
    for study in studies:
        best = study["best"]
        value = "" if best is None else f"{best['value']:.4f}"
        shown.add_row(Text(plain(study["name"])), study["direction"], *map(str, study["counts"].values()), value)
    return shown


def described(results: Results) -> str:
    """Return a study in a few lines: counts, best, verdict, findings."""
    counts = ", ".join(f"{count} {state}" for state, count in results.counts.items() if count) or "no trials"
    lines = [f"{plain(results.name)}: {results.direction} {plain(results.metric)}; {counts}"]
    if results.best is not None:
        lines.append(trial_text(results.best, results))
    if results.verdict is not None:
        lines += sentences(results.verdict, results.looks)
        lines += map(as_text, tables(results.verdict))
    if (disk := _on_disk(results)) is not None:
        size, kept = disk["bytes"] / 1e6, disk["checkpoints"] / 1e6
        lines.append(f"on disk: {size:,.0f} MB in {disk['folder']}, of it {kept:,.0f} MB checkpoints")
    return "\n".join([*lines, *(f"note: {finding}" for finding in findings(results))])


def shown_json(results: Results) -> dict[str, Any]:
    """Return a study as JSON values: counts, best, verdict, findings, bytes on disk (null where there are none)."""
    facts = {"verdict": results.verdict, "findings": findings(results), "disk": _on_disk(results)}
    return study_json(results) | {name: finite_json(fact) for name, fact in facts.items()}


def _on_disk(results: Results) -> dict[str, Any] | None:
    """Return a study's folder and the bytes of its files, or None if it has none."""
    try:
        folder = folder_of(results.name)
    except StudyError:  # a name that another program gave may lead to no folder
        return None
    size = used(folder)
    return {"folder": str(folder), "bytes": size, "checkpoints": used(folder / "checkpoints")} if size else None


def best_of(results: Results) -> FrozenTrial:
    """Return the best trial.

    Raises:
        StudyError: None completed.
    """
    if results.best is None:
        raise StudyError(f"no trial of {results.name!r} has completed; see hpo trials {results.name}")
    return results.best


def trial_text(trial: FrozenTrial, results: Results | None = None) -> str:
    """Return the best trial as a line."""
    params = trial.params if results is None else results.params(trial)
    value = "no value" if trial.value is None else f"{trial.value:.4f}"
    return f"best: trial {trial.number}, {value}, {json.dumps(params)}"


def settings_text(trial: FrozenTrial, results: Results) -> str:
    """Return what a trial ran with that was not searched, as a line."""
    return f"not searched: {json.dumps(results.not_searched(trial))}"


def trial_table(results: Results) -> str:
    """Return the trials as lines of aligned columns."""
    names = list(dict.fromkeys(name for trial in results.trials for name in trial.params))
    rows = (
        [
            str(trial.number),
            trial.state.name,
            "" if (value := finite_value(trial)) is None or not trial.state.is_finished() else f"{value:.4f}",
            *(_short(trial.params[name]) if name in trial.params else "" for name in names),
            str(trial.user_attrs.get("seconds", "")),
            remarks(trial),
        ]
        for trial in results.trials
    )
    return columns(["trial", "state", "value", *names, "seconds", "reason"], rows)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def dashboard(name: str | None, storage_flag: str | None, **options: Any) -> None:
    """Serve Optuna Dashboard until it is interrupted.

    Args:
        name: The study to open at, by file or name; all of them if None.
        storage_flag: `--storage`, if given.
        options: What else `hpo.cli.dashboard.serve` takes.
    """
    from hpo.cli.dashboard import TOKEN, serve

    options["token"] = os.environ.get(TOKEN) or None
    if name is None:
        url = backends.choose(storage_flag)
        if not backends.exists(url):
            raise StudyError(f"there is no storage {redacted(url)} yet; run a study first: hpo run quickstart")
        serve(backends.connect(url), **options)
    else:
        located, url = _located(name, storage_flag)
        study = _opened(located, url)
        serve(backends.connect(url), study=study.study_name, **options)
