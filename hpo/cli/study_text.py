"""A study and its trials in words, tables and JSON, as the commands print them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial
from rich.table import Table
from rich.text import Text

from hpo.analysis import audit, confirm_text
from hpo.analysis.by_task import measured
from hpo.analysis.findings import findings
from hpo.analysis.memory_text import memory_text
from hpo.analysis.trial_summary import finite_value, remarks
from hpo.analysis.verdict_text import as_text, sentences, tables
from hpo.analysis.worth import worth_facts, worth_text
from hpo.core.errors import StudyError
from hpo.core.formatting import columns, number, plain
from hpo.execution.checkpoint_store import used
from hpo.execution.side_study import KINDS, kind_of
from hpo.execution.study_setup import folder_of
from hpo.search.warm_start import stored_in
from hpo.storage.criteria import measures_of
from hpo.storage.snapshot import MEMORY, Results
from hpo.storage.snapshot_json import finite_json, study_json, trial_json


def study_text(results: Results) -> str:
    """Return a study in a few lines: counts, best, verdict, whether it is worth going on, findings."""
    counts = ", ".join(f"{count} {state}" for state, count in results.counts.items() if count) or "no trials"
    lines = [f"{plain(results.name)}: {results.direction} {plain(results.metric)}; {counts}"]
    if results.stopped is not None:
        lines.append(f"stopped: {plain(results.stopped)}")
    if (beside := kind_of(results.name)) is not None:  # none of its trials is the best of a search
        name, kind = plain(beside[0]), KINDS[beside[1]]
        return f"{lines[0]}\nthe runs of the {kind} of {name}; hpo show {name} says what it shows"
    if (start := stored_in(results.attrs)) is not None:
        lines.append(start.sentence())
    lines += limits_text(results)
    if results.best is not None:
        lines.append(trial_text(results.best, results))
    elif results.trained:
        lines.append(plain(results.why_no_best))
    lines += front_text(results)
    if results.verdict is not None:
        lines += sentences(results.verdict, results.looks)
        lines += map(as_text, tables(results.verdict))
    lines += worth_text(results)
    if results.confirmation is not None:
        lines += confirm_text.sentences(results.confirmation)
        lines += map(as_text, confirm_text.tables(results.confirmation))
    if results.audit is not None:
        lines += audit.sentences(results.audit)
    if (memory := memory_text(results)) is not None:
        lines.append(memory)
    if (disk := _disk_use(results)) is not None:
        size, checkpoints = disk["bytes"] / 1e6, disk["checkpoints"] / 1e6
        lines.append(f"on disk: {size:,.0f} MB in {disk['folder']}, of it {checkpoints:,.0f} MB checkpoints")
    return "\n".join([*lines, *(f"note: {finding}" for finding in findings(results))])


def study_facts(results: Results) -> dict[str, Any]:
    """Return a study as JSON values: counts, best, verdict and more; what a study has not is null."""
    facts = {
        "verdict": results.verdict,
        "confirmation": results.confirmation,
        "audit": results.audit,
        "findings": findings(results),
        "disk": _disk_use(results),
        "memory": results.attrs.get(MEMORY),
        "worth": worth_facts(results),
        "stopped": results.stopped,
        "limits": _limits_json(results),
        "front": front_json(results),
    }
    return study_json(results) | {name: finite_json(fact) for name, fact in facts.items()}


def _disk_use(results: Results) -> dict[str, Any] | None:
    """Return a study's folder and the bytes of its files, or None if it has none."""
    try:
        folder = folder_of(results.name)
    except StudyError:  # another program may have given the study a name that cannot be a folder
        return None
    size = used(folder)
    return {"folder": str(folder), "bytes": size, "checkpoints": used(folder / "checkpoints")} if size else None


def study_table(studies: Sequence[Mapping[str, Any]]) -> Table:
    """Return studies, each as `study_json` has it, as a table."""
    table = Table("study", "direction", "complete", "pruned", "fail", "running", "waiting", "best", box=None)
    for study in studies:
        best = study["best"]
        value = "" if best is None else f"{best['value']:.4f}"
        table.add_row(Text(plain(study["name"])), study["direction"], *map(str, study["counts"].values()), value)
    return table


def trial_text(trial: FrozenTrial, results: Results) -> str:
    """Return the best trial as a line."""
    value = "no value" if trial.value is None else f"{trial.value:.4f}"
    scores = "".join(f", {plain(name)} {number(score, 4)}" for name, score in measured(results, trial).items())
    return f"best: trial {trial.number}, {value}{scores}, {json.dumps(results.params(trial))}"


def limits_text(results: Results) -> list[str]:
    """Return the limits, and how many of the completed trials are within them; nothing without limits."""
    limits = results.criteria.limits
    if not limits:
        return []
    said = ", ".join(f"{plain(limit.name)} {limit.says()}" for limit in limits)
    return [f"limits: {said}; {len(results.within_limits)} of {len(results.trained)} completed trials are within them"]


def _limits_json(results: Results) -> dict[str, Any] | None:
    """Return the limits, how many trials are within them, and if none is, the nearest; None without limits."""
    if not results.criteria.limits:
        return None
    return {
        "asked": results.criteria.to_dict()["limits"],
        "within": len(results.within_limits),
        "completed": len(results.trained),
        "nearest": None if results.nearest is None else results.nearest.number,
    }


def front_text(results: Results) -> list[str]:
    """Return the Pareto front as a table, with a line above; nothing without a second metric."""
    second = results.criteria.second
    if second is None or results.best is None:
        return []
    lacking = sum(second.name not in measures_of(trial.user_attrs) for trial in results.within_limits)
    left_out = f"; {lacking} without {plain(second.name)} left out" if lacking else ""
    count = f"{len(results.front)} of {len(results.within_limits)} trials{left_out}"
    title = f"front of {plain(results.metric)} and {plain(second.name)} ({second.direction}d): {count}"
    if not results.front:
        return [title]
    names = list(dict.fromkeys(name for trial in results.front for name in trial.params))
    rows = [
        [
            str(trial.number),
            number(trial.value),
            number(measures_of(trial.user_attrs)[second.name]),
            *(_short(trial.params[name]) if name in trial.params else "" for name in names),
        ]
        for trial in results.front
    ]
    table = columns(["trial", results.metric, second.name, *names], rows)
    return [title, *(f"  {line}" for line in table.split("\n"))]


def front_json(results: Results) -> list[dict[str, Any]] | None:
    """Return the trials of the front as JSON values, the best value first; None without a second metric."""
    if results.criteria.second is None:
        return None
    return [trial_json(trial) for trial in results.front]


def settings_text(trial: FrozenTrial, results: Results) -> str:
    """Return the settings of a trial that were not searched, as a line."""
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
