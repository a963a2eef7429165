"""Predictions of rows as CSV or JSON lines."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpo.core.errors import HpoError
from hpo.tasks.classification.rereading import PROBABILITY
from hpo.tasks.metrics import METRICS
from hpo.tasks.task import Predictions

Row = Mapping[str, Any]

GROUP = "group"
"""Column of the number of a row's group; see `hpo.tasks.dataset.Split.groups`."""
COUNTS = "counts of "
"""Begins the column of the counts of a metric; see `hpo.tasks.metric.Metric.counts`."""


def jsonl(rows: Iterable[Row]) -> str:
    """Return rows as JSON, one object a line."""
    return "".join(json.dumps(_json(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def as_csv(rows: Sequence[Row]) -> str:
    """Return rows as CSV with a header: a column for each probability, lists as JSON."""
    flat = [_flat(row) for row in rows]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in flat for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


FORMATS: dict[str, Callable[[Sequence[Row]], str]] = {".csv": as_csv, ".jsonl": jsonl}
"""File ending -> rows as the text of such a file."""


def write(rows: Sequence[Row], path: Path) -> Path:
    """Write rows in the format of a file's ending, a key of `FORMATS`; the file is replaced as a whole.

    Raises:
        HpoError: The file cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(FORMATS[path.suffix.lower()](rows), encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise HpoError(
            f"predictions {path} cannot be written ({error.strerror or error}); make room there, or name another place"
        ) from None
    return path


def counts_of(metric: str, predictions: Predictions) -> list[dict[str, Any]]:
    """Return for each example a column with its counts of a metric, from which two studies are compared."""
    counts = METRICS[metric].counts
    assert counts is not None, f"{metric} is no function of counts"
    return [{f"{COUNTS}{metric}": own} for own in counts(predictions).tolist()]


def _flat(row: Row) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if key == "probabilities":
            flat |= {f"{PROBABILITY}{label}": probability for label, probability in value.items()}
        else:
            plain = _json(value)
            flat[key] = json.dumps(plain, ensure_ascii=False) if isinstance(plain, list | dict) else plain
    return flat


def _json(value: Any) -> Any:
    """Return a table's value as a JSON value: None for a missing value, text for a type that JSON lacks."""
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _json(value.tolist())
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
