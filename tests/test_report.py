from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from hpo import report
from hpo.errors import HpoError
from hpo.plots import PLOTS
from hpo.results import Results

Build = Callable[..., Results]
EVIL = "<script>alert(1)</script>"
SCORES = {"metric": "accuracy", "examples": 872, "confidence": 0.95, "best": {"number": 12, "score": 0.921}}
COMPARED = {
    **SCORES,
    "baseline": {"number": 0, "score": 0.897},
    "difference": 0.024,
    "low": 0.006,
    "high": 0.041,
}


class Page(HTMLParser):
    """What a browser would see of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._open = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag
        if tag == "script":
            self.scripts.append("")
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts[-1] += data
        elif self._open != "style":
            self.text += data
        if self._open == "td":
            self.rows[-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._open = ""


@pytest.fixture
def page(sample_results: Build) -> Page:
    return Page(report.html(sample_results(test={**COMPARED, "shown": True})))


def test_it_loads_nothing(page: Page) -> None:
    assert not [attrs for tag, attrs in page.tags if {"src", "href", "srcset", "data"} & attrs.keys()]
    assert not [tag for tag, _ in page.tags if tag in ("link", "img", "iframe", "object", "base")]
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_plotly_is_inside_once_and_draws_every_plot(page: Page) -> None:
    assert sum(get_plotlyjs()[:2000] in script for script in page.scripts) == 1
    drawn = [script for script in page.scripts if re.search(r'Plotly\.newPlot\(\s*"plot-', script)]
    assert len(drawn) == len(PLOTS)
    assert not any('"showSendToCloud": true' in script for script in drawn)
    assert all('"showSendToCloud": false' in script for script in drawn)


def test_tracebacks_stay_in_the_storage(sample_results: Build) -> None:
    assert "secret.py" not in report.html(sample_results())


def test_facts_findings_and_config(page: Page) -> None:
    for words in (
        "sst2",
        "accuracy",
        "maximize",
        "single_label",
        "24 complete, 3 pruned, 1 fail, 1 running, 1 waiting",
    ):
        assert words in page.text
    assert "19 min 40 s" in page.text
    assert "2 of 28 (7%) trials diverged" in page.text
    assert '"model": "bert-base-uncased"' in page.text


def test_best_and_default_side_by_side(page: Page) -> None:
    assert ["warmup_ratio", "0.1", "0.1"] in page.rows
    assert ["batch_size", "16", "32"] in page.rows
    assert "published default (trial 0)" in page.text


def test_the_table_of_trials_is_whole_and_sorts(page: Page) -> None:
    trials = [row for row in page.rows if row and row[0].isdigit()]
    assert [int(row[0]) for row in trials] == list(range(30))
    assert trials[13][1:3] == ["fail", ""]
    assert trials[13][-1] == "ValueError: <b>shape</b> mismatch"
    assert trials[0][-1] == "published default"
    assert sum(tag == "button" for tag, _ in page.tags) == len(trials[0])
    best = [attrs for tag, attrs in page.tags if tag == "tr" and attrs.get("class") == "best"]
    assert len(best) == 2
    assert any("aria-sort" in script for script in page.scripts)


@pytest.mark.parametrize(
    ("test", "direction", "words"),
    [
        ({**COMPARED, "shown": True}, "maximize", "the best trial is better"),
        ({**COMPARED, "shown": True, "metric": "loss"}, "minimize", "the best trial is worse"),
        ({**COMPARED, "shown": False}, "maximize", "no difference shown"),
        ({**COMPARED, "baseline": SCORES["best"], "shown": False}, "maximize", "is the best trial: no diff"),
        ({**SCORES, "baseline": None, "shown": False}, "maximize", "no published default to compare"),
    ],
)
def test_the_verdict(sample_results: Build, test: dict[str, Any], direction: str, words: str) -> None:
    number = sample_results(5, direction=direction).best.number  # a verdict on another trial is not shown
    baseline = test["baseline"] and {**test["baseline"], "number": number if words.startswith("is the best") else 99}
    verdict = {**test, "best": {"number": number, "score": 0.921}, "baseline": baseline}
    text = Page(report.html(sample_results(5, test=verdict, direction=direction))).text
    assert words in text
    assert f"On 872 test examples, trial {number} scores 0.921" in text


def test_a_verdict_on_what_is_no_longer_the_best_trial_is_not_shown(sample_results: Build) -> None:
    stale = {**COMPARED, "shown": True, "best": {"number": 99, "score": 0.5}}
    assert "Verdict" not in Page(report.html(sample_results(5, test=stale))).text


def test_no_verdict_before_the_test_split_was_taken(sample_results: Build) -> None:
    assert "Verdict" not in Page(report.html(sample_results(3))).text


@pytest.mark.parametrize("count", [0, 1])
def test_a_small_study_says_why_plots_are_missing(sample_results: Build, count: int) -> None:
    text = Page(report.html(sample_results(count))).text
    assert "Not drawn: it needs 3 completed trials" in text
    assert ("No trial has completed." in text) == (count == 0)


def test_a_study_without_a_config() -> None:
    assert "value" in Page(report.html(Results("plain", "minimize", (), {}))).text


def test_markup_from_outside_is_inert(sample_results: Build) -> None:
    results = sample_results(8, name=EVIL)
    results.attrs["config"].update(metric=EVIL, model=EVIL, data=EVIL, task=EVIL)
    for trial in results.trials:
        for old in list(trial._params):
            trial._params[f"{EVIL}{old}"] = EVIL if old == "schedule" else trial._params[old]
            trial._distributions[f"{EVIL}{old}"] = trial._distributions[old]
        trial.user_attrs["reason"] = EVIL
    html = report.html(results)
    page = Page(html)
    assert EVIL not in html
    assert page.text.count(EVIL) > 20
    assert not any(script.strip().startswith("alert") for script in page.scripts)


def test_it_is_written_whole(sample_results: Build, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "report.html"
    assert report.write(sample_results(2), path) == path
    assert path.read_text("utf-8").endswith("</html>\n")
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_report(
    sample_results: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.os, "replace", full)
    with pytest.raises(HpoError, match=r"report\.html cannot be written \(No space left on device\)"):
        report.write(sample_results(1), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
