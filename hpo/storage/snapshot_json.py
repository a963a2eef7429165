"""Studies and trials as JSON values and as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from typing import Any

from optuna.trial import FrozenTrial

from hpo.storage.snapshot import Results

GROUPS = ("params", "metrics", "user_attrs")
"""Prefixes of columns, as Optuna's own table has them."""


def study_json(results: Results) -> dict[str, Any]:
    """Return a study as JSON values: name, direction, counts, best."""
    return {
        "name": results.name,
        "direction": results.direction,
        "counts": results.counts,
        "best": None if results.best is None else trial_json(results.best),
    }


def trial_json(trial: FrozenTrial, curve: bool = False) -> dict[str, Any]:
    """Return a trial as JSON values: number, state, value, params, user_attrs (and intermediate_values)."""
    finite = trial.value is not None and math.isfinite(trial.value) if trial.state.is_finished() else False
    fields: dict[str, Any] = {
        "number": trial.number,
        "state": trial.state.name,
        "value": trial.value if finite else None,
        "params": trial.params,
        "user_attrs": finite_json(trial.user_attrs),
    }
    if curve:
        scores = {str(step): value for step, value in sorted(trial.intermediate_values.items())}
        fields["intermediate_values"] = finite_json(scores)
    return fields


def trials_csv(results: Results) -> str:
    """Return the trials as CSV, one line each: number, state, value, then a column for all else that any trial has."""
    rows = [_cells(trial_json(trial)) for trial in results.trials]
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [name for group in GROUPS for name in names if name.startswith(f"{group}_")]
    output = io.StringIO()
    writer = csv.DictWriter(output, ["number", "state", "value", *columns], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return output.getvalue()


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    attrs = {name: value for name, value in row["user_attrs"].items() if name != "traceback"}
    metrics = attrs.pop("metrics") if isinstance(attrs.get("metrics"), Mapping) else {}
    return {name: row[name] for name in ("number", "state", "value")} | {
        f"{group}_{name}": json.dumps(value) if isinstance(value, list | dict) else value
        for group, values in zip(GROUPS, (row["params"], metrics, attrs), strict=True)
        for name, value in values.items()
    }


def finite_json(value: Any) -> Any:
    """Return JSON values with None for the numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
