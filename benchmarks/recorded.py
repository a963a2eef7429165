"""Tables of recorded runs: every run of a random search, trained to its end, with its curve and its test score.

A table is a JSON Lines file in the form of the DeBERTa Hyperparameter Tuning Data (Lourie et al., 2023, arXiv
2311.09480): hyperparameters, `total_model_steps`, and under `learning_curves` the points [step, score] of `matched`
(the validation split) and `mismatched` (the test split).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hpo.space.parameters import Float, Int
from hpo.space.parser import parse
from hpo.space.search_space import SearchSpace

Array = np.ndarray[Any, Any]
Row = Mapping[str, Any]

NOT_PARAMETERS = ("iteration", "total_model_steps", "warmup_steps", "learning_curves")


@dataclass(frozen=True)
class Table:
    """Recorded runs.

    Attributes:
        params: The hyperparameters of each run.
        at: [runs, evaluations] examples seen at each evaluation; infinite after the last.
        values: [runs, evaluations] validation scores.
        tests: [runs] the last test score.
    """

    params: Sequence[Mapping[str, Any]]
    at: Array
    values: Array
    tests: Array

    @cached_property
    def space(self) -> SearchSpace:
        """The ranges from which the runs were drawn, as far as they show."""
        ranges = {name: _range([run[name] for run in self.params]) for name in self.params[0]}
        return parse({name: found for name, found in ranges.items() if found["low"] < found["high"]})

    @cached_property
    def places(self) -> Array:
        """[runs, parameters] where the hyperparameters are in their ranges, from 0 to 1."""
        return np.array([self.place(run) for run in self.params])

    @cached_property
    def evaluations(self) -> Array:
        """[runs] number of evaluations."""
        return np.isfinite(self.at).sum(axis=1)

    @cached_property
    def lengths(self) -> Array:
        """[runs] examples of the whole training."""
        return self.at[np.arange(len(self.at)), self.evaluations - 1]

    @cached_property
    def finals(self) -> Array:
        """[runs] the last validation score."""
        return self.values[np.arange(len(self.at)), self.evaluations - 1]

    @property
    def horizon(self) -> int:
        """Examples of the longest training."""
        return int(self.lengths.max())

    def place(self, params: Mapping[str, Any]) -> list[float]:
        """Return where hyperparameters are between the ends of their ranges, on their scales."""
        found = []
        for name, parameter in self.space.parameters.items():
            assert isinstance(parameter, Float | Int)
            ends = (params[name], parameter.low, parameter.high)
            value, low, high = map(math.log, ends) if parameter.log else ends
            found.append((value - low) / (high - low))
        return found

    def nearest(self, points: Sequence[Mapping[str, Any]]) -> Array:
        """Return the nearest run of each of some points: by the Euclidean distance of their places."""
        places = np.array([self.place(point) for point in points])
        return np.asarray(((places[:, None, :] - self.places) ** 2).sum(axis=2).argmin(axis=1))

    def evaluation(self, run: int, step: int) -> int:
        """Return the index of a run's first evaluation at or after a step, or of its last one."""
        return int(min((self.at[run] < step).sum(), self.evaluations[run] - 1))

    def part(self, runs: Array) -> Table:
        """Return the table of some of the runs."""
        return Table([self.params[run] for run in runs], self.at[runs], self.values[runs], self.tests[runs])


def read(path: Path) -> Table:
    """Read a table from a file."""
    return table_of([json.loads(line) for line in path.read_text().splitlines() if line.strip()])


def table_of(rows: Sequence[Row]) -> Table:
    """Return the table of the rows of a file."""
    longest = max(len(row["learning_curves"]["matched"]) for row in rows)
    at, values = np.full((len(rows), longest), np.inf), np.full((len(rows), longest), np.nan)
    for index, row in enumerate(rows):
        steps, scores = np.array(row["learning_curves"]["matched"], dtype=float).T
        at[index, : len(steps)], values[index, : len(steps)] = steps * row["train_batch_size"], scores
    tests = np.array([row["learning_curves"]["mismatched"][-1][1] for row in rows])
    return Table([_params(row) for row in rows], at, values, tests)


def _range(values: Sequence[float]) -> dict[str, Any]:
    """Return the range of values: logarithmic if their median is nearer to its middle on that scale."""
    low, high, median = min(values), max(values), float(np.median(values))
    log = low > 0 and abs(median - (low * high) ** 0.5) < abs(median - (low + high) / 2)
    return {"low": low, "high": high, "log": log}


def _params(row: Row) -> dict[str, Any]:
    """Return the hyperparameters of a row; the warm-up as its share of the first epoch, as it was drawn."""
    params = {name: row[name] for name in row if name not in NOT_PARAMETERS}
    if "warmup_steps" in row:
        params["warmup_proportion"] = row["warmup_steps"] * row["num_train_epochs"] / row["total_model_steps"]
    return params
