"""One trial in words, as `hpo show STUDY TRIAL` prints it: its parameters, and what the pruner decided about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial

from hpo.analysis.trial_summary import finite_value, remarks
from hpo.core.errors import StudyError
from hpo.core.formatting import columns, number, plain
from hpo.search.decisions import MOST, REASONS, Decision, Judged, decisions_of
from hpo.search.trial_marks import is_baseline
from hpo.storage.snapshot import Results
from hpo.storage.snapshot_json import finite_json, trial_json

WORDS = {Decision.GO_ON: "goes on", Decision.PRUNE: "ends", Decision.WAIT: "pauses"}


def trial_of(results: Results, wanted: int) -> FrozenTrial:
    """Return a trial by its number.

    Raises:
        StudyError: There is no such trial.
    """
    found = next((trial for trial in results.trials if trial.number == wanted), None)
    if found is None:
        raise StudyError(f"study {results.name!r} has no trial {wanted}; see hpo trials {results.name}")
    return found


def trial_details(trial: FrozenTrial, results: Results) -> str:
    """Return a trial in a few lines, with a table of the pruner's decisions about it."""
    value = finite_value(trial) if trial.state.is_finished() else None
    shown = "no value" if value is None else number(value)
    facts = ", ".join(fact for fact in (trial.state.name, shown, remarks(trial)) if fact)
    lines = [f"trial {trial.number} of {plain(results.name)}: {facts}", plain(json.dumps(results.params(trial)))]
    return "\n".join([*lines, *_decisions(trial, results)])


def trial_facts(trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial as JSON values: number, state, value, params, user_attrs, intermediate_values, decisions."""
    decisions = [
        {
            "step": step,
            "decision": judged.decision.value,
            "value": judged.value,
            "among": judged.among,
            "needed": judged.needed,
            "why": judged.why,
        }
        for step, judged in decisions_of(trial)
    ]
    return trial_json(trial, curve=True) | {"decisions": finite_json(decisions)}


def _decisions(trial: FrozenTrial, results: Results) -> Sequence[str]:
    stored = decisions_of(trial)
    if is_baseline(trial):
        return ["no pruner decides about the published default"]
    if not stored:
        return ["no decision of the pruner is stored with it"]
    heads = ["after", "decision", f"its {_compared(results)}", "to reach", "compared with", ""]
    table = columns(heads, [_row(step, judged) for step, judged in stored])
    kept = f"; the last {MOST} are kept" if len(stored) == MOST else ""
    return [f"decisions of the pruner{kept}:", *(f"  {line}" for line in table.split("\n"))]


def _compared(results: Results) -> str:
    """Return the name of what the pruner compares."""
    asked = results.attrs.get("config", {}).get("prune_on")
    return str(asked.get("name") if isinstance(asked, dict) else asked or results.metric)


def _row(step: int, judged: Judged) -> list[str]:
    others = {None: "", 1: "1 other trial"}.get(judged.among, f"{judged.among} other trials")
    value, needed = ("" if each is None else number(each) for each in (judged.value, judged.needed))
    return [f"{step:,}", WORDS[judged.decision], value, needed, others, REASONS[judged.why] if judged.why else ""]
