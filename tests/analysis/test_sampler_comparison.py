"""What a comparison of samplers shows: curves over the cost, and claims only beyond an interval."""

from __future__ import annotations

import datetime
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from hpo.analysis.sampler_comparison import compare_samplers, searched, sentences, tables
from hpo.analysis.sampler_page import figure, write
from hpo.analysis.seed_interval import interval
from hpo.storage.snapshot import Results
from hpo.storage.snapshot_json import finite_json

BEGAN = datetime.datetime(2026, 1, 1)
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "fail": TrialState.FAIL}


def study(name: str, rows: list[tuple[str, float, int]], direction: Any = "maximize", **config: Any) -> Results:
    """Return a study of (state, value, examples) of its trials; they end in the order of their rows' places."""
    trials = []
    for number, (state, value, examples) in enumerate(rows):
        trial = create_trial(
            state=STATES[state],
            value=value if state == "complete" else None,
            params={"x": 0.1},
            distributions={"x": FloatDistribution(0, 1)},
            intermediate_values={examples: value},
        )
        trial.number = number
        trial.datetime_complete = BEGAN + datetime.timedelta(seconds=number)
        trials.append(trial)
    return Results(name, direction, tuple(trials), {"config": {"metric": "accuracy", "pruner": "median", **config}})


def test_a_trial_is_charged_when_it_ends() -> None:
    results = study("a", [("complete", 0.5, 10), ("pruned", 0.9, 4), ("fail", 0.1, 3), ("complete", 0.7, 10)])
    first, last = results.trials[0], results.trials[3]
    first.datetime_complete, last.datetime_complete = last.datetime_complete, first.datetime_complete
    search = searched(results)
    assert (search.costs, search.values, search.total) == ((10,), (0.7,), 27)
    assert math.isnan(search.at(9.9))
    assert search.at(10) == search.at(1000) == 0.7


def test_a_duplicate_costs_nothing_and_one_beyond_the_limits_counts_for_nothing() -> None:
    results = study("a", [("complete", 0.5, 10), ("complete", 0.6, 10), ("complete", 0.9, 10)])
    results.trials[1].user_attrs["duplicate_of"] = 0
    results.trials[2].system_attrs["constraints:latency"] = 1.0
    search = searched(results)
    assert (search.costs, search.values, search.total) == ((10,), (0.5,), 20)


def several(values: dict[str, list[float]], direction: Any = "maximize") -> dict[str, list[Results]]:
    return {
        name: [study(f"s.{name}.{seed}", [("complete", value, 10)], direction) for seed, value in enumerate(each)]
        for name, each in values.items()
    }


def test_all_are_compared_at_the_smallest_total() -> None:
    long = study("s.random", [("complete", 0.5, 10), ("complete", 0.6, 10), ("complete", 0.9, 10)])
    short = study("s.tpe", [("complete", 0.7, 12), ("pruned", 0.8, 11)])
    found = compare_samplers({"random": [long], "tpe": [short]})
    assert (found["cost"], found["smallest"]) == (23, "s.tpe")
    assert [each["mean"] for each in found["samplers"]] == [0.6, 0.7]
    assert found["samplers"][1]["compared"]["difference"] == pytest.approx(0.1)
    assert "23 examples, the smallest total of a search (s.tpe)" in sentences(found)[0]
    assert found["curves"]["costs"] == list(range(1, 24))
    assert found["curves"]["random"]["mean"][:12] == [None] * 9 + [0.5] * 3
    assert json.loads(json.dumps(finite_json(found), allow_nan=False)) == found


def test_one_seed_tells_nothing_and_is_said_to() -> None:
    found = compare_samplers(several({"random": [0.5], "tpe": [0.9]}))
    said = sentences(found)
    assert said[1] == "One seed cannot tell samplers apart, as another seed may rank them otherwise: write --seeds 5"
    assert not any("better" in sentence for sentence in said)
    assert found["samplers"][1]["compared"] == {
        "difference": pytest.approx(0.4),
        "shown": False,
        "untold": "it needs 3 seeds",
    }
    assert tables(found)[1][2][1][-1] == "0.4 (it needs 3 seeds)"


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_sampler_is_better_only_beyond_the_paired_interval(direction: Any) -> None:
    sign = 1 if direction == "maximize" else -1
    noise = np.array([0.0, 0.3, -0.2, 0.1, 0.4])
    values = {"random": noise, "tpe": noise + sign * np.array([0.1, 0.12, 0.09, 0.11, 0.1]), "gp": noise[::-1]}
    found = compare_samplers(several({name: each.tolist() for name, each in values.items()}, direction))
    assert found["confidence"] == pytest.approx(0.975)  # of both differences together
    tpe, gp = (each["compared"] for each in found["samplers"][1:])
    expected = interval(values["tpe"] - values["random"], confidence=0.975)
    assert (tpe["low"], tpe["high"]) == pytest.approx(expected)
    assert (tpe["shown"], gp["shown"]) == (True, False)
    claims = [sentence for sentence in sentences(found) if "better" in sentence]
    assert len(claims) == 1
    assert claims[0].startswith("tpe is better than random here: accuracy ")
    assert "97.5% confidence; it covers other seeds, not other data or spaces" in claims[0]


def test_what_has_completed_nothing_has_no_interval() -> None:
    found = several({"random": [0.5, 0.6, 0.7], "tpe": [0.6, 0.7, 0.9]})
    found["tpe"][1] = study("s.tpe.2", [("pruned", 0.9, 10)])
    compared = compare_samplers(found)["samplers"][1]["compared"]
    assert compared["untold"] == "in 1 of 3 pairs no trial had completed at that cost"
    equal = compare_samplers(several({"random": [0.5, 0.6, 0.7], "tpe": [0.5, 0.6, 0.7]}))
    assert equal["samplers"][1]["compared"]["untold"] == "all seeds give the same difference"


def test_without_random_the_first_is_what_the_others_are_compared_with() -> None:
    found = compare_samplers(several({"qmc": [0.5], "tpe": [0.6]}))
    assert found["reference"] == "qmc"
    assert found["samplers"][0]["compared"] is None


def test_the_page_has_a_band_for_each_sampler_and_all_that_is_said(tmp_path: Path) -> None:
    found = compare_samplers(several({"random": [0.5, 0.6, 0.8], "tpe": [0.6, 0.7, 0.9]}))
    drawn = figure(found)
    assert [trace.name for trace in drawn.data if trace.fill == "toself"] == ["random", "tpe"]
    lines = {trace.name: trace for trace in drawn.data if trace.fill is None}
    assert lines["tpe"].y[-1] == pytest.approx(0.7333, abs=1e-4)
    band = next(trace for trace in drawn.data if trace.fill == "toself" and trace.name == "tpe")
    assert (min(band.y), max(band.y)) == (0.6, 0.9)
    path = write(found, "s<b>", tmp_path / "runs" / "samplers.html")
    text = path.read_text()
    assert "<title>Samplers of s&lt;b&gt;</title>" in text
    assert "0.7333 (0.6 to 0.9)" in text
    assert "Content-Security-Policy" in text
    single = figure(compare_samplers(several({"random": [0.5], "tpe": [0.6]})))
    assert not any(trace.fill for trace in single.data)
