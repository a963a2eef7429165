from __future__ import annotations

import base64
import gzip
import json
import shutil
import subprocess
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from hpo.analysis import html_page as pages
from hpo.analysis import report
from hpo.analysis.plots import PLOTS
from hpo.core.errors import HpoError
from hpo.storage.snapshot import Results

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


def unpacked(page: Page, name: str) -> str:
    """Return what a script element of a report has in base 85, as its browser does."""
    (text,) = (page.scripts[i] for i, (_, a) in enumerate(scripts(page)) if a.get("id") == name)
    return gzip.decompress(base64.b85decode(text.replace(",", "<"))).decode()


def scripts(page: Page) -> list[tuple[str, dict[str, str | None]]]:
    return [tag for tag in page.tags if tag[0] == "script"]


def test_plotly_is_inside_and_every_plot_has_a_place_to_be_drawn(page: Page) -> None:
    assert unpacked(page, "library") == get_plotlyjs()
    figures = json.loads(unpacked(page, "figures"))
    assert list(figures) == [f"plot-{name.replace(' ', '-')}" for name in PLOTS]
    assert [attrs["id"] for _, attrs in page.tags if attrs.get("class") == "figure"] == list(figures)
    assert all(figure["figure"]["data"] for figure in figures.values())
    assert all(figure["config"]["showSendToCloud"] is False for figure in figures.values())


@pytest.mark.parametrize("count", [20, 60])
def test_a_report_of_ordinary_size_has_less_than_2_mb(sample_results: Build, count: int) -> None:
    assert len(report.html(sample_results(count)).encode()) < 2e6


def test_without_a_plot_there_is_no_library(sample_results: Build) -> None:
    page = Page(report.html(sample_results(0)))
    assert [len(page.scripts[i]) for i, (_, a) in enumerate(scripts(page)) if a.get("id") == "library"] == [0]
    assert "Not drawn" in page.text


def test_a_plot_that_fails_is_told_to_who_asked_for_the_report(
    sample_results: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(results: Results) -> Any:
        raise KeyError("x\x1b[31m")

    monkeypatch.setitem(report.PLOTS, "slices", broken)
    notes: list[str] = []
    path = report.write(sample_results(14), tmp_path / "report.html", notes.append)
    assert notes == ["the report of sst2 lacks the plot 'slices': KeyError('x\\x1b[31m')"]
    assert "Slices" in Page(path.read_text("utf-8")).text
    assert len(json.loads(unpacked(Page(path.read_text("utf-8")), "figures"))) == len(PLOTS) - 1
    notes.clear()
    report.write(sample_results(0), path, notes.append)  # of which nothing can be drawn
    assert [note for note in notes if "slices" not in note] == []


def test_of_a_large_study_the_table_is_a_sample_with_the_best_and_the_default(
    sample_results: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "ROWS", 10)
    results = sample_results(60)
    page = Page(report.html(results))
    assert "10 of 60 trials: the best, the published default, others evenly spaced" in page.text
    numbers = [int(row[0]) for row in page.rows if row and row[0].isdigit()]
    assert len(numbers) == 10
    assert results.best is not None
    assert {0, results.best.number} <= set(numbers)
    best = [attrs for tag, attrs in page.tags if tag == "tr" and attrs.get("class") == "best"]
    assert len(best) == 2


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def browsed(tmp_path: Path) -> Callable[[str], str]:
    """Return a function that opens a page from a file in a browser, without a network: what it has become."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: that reports are drawn is NOT tested here")

    def browse(html: str) -> str:
        path = tmp_path / "page.html"
        path.write_text(html, encoding="utf-8")
        switches = ["headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking"]
        own = [f"--user-data-dir={tmp_path / 'profile'}", "--proxy-server=127.0.0.1:9", "--virtual-time-budget=20000"]
        command = [str(CHROMIUM), *(f"--{switch}" for switch in switches), *own, "--dump-dom", path.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout

    return browse


@pytest.mark.slow
def test_a_browser_draws_every_plot(sample_results: Build, browsed: Callable[[str], str]) -> None:
    page = Page(browsed(report.html(sample_results())).partition("<body>")[2])
    drawn = [attrs for tag, attrs in page.tags if tag == "svg" and "main-svg" in (attrs.get("class") or "")]
    assert len(drawn) >= 2 * len(PLOTS)
    assert sum("js-plotly-plot" in (attrs.get("class") or "") for _, attrs in page.tags) == len(PLOTS)
    assert "Not drawn" not in page.text


@pytest.mark.slow
def test_a_browser_unpacks_texts_of_every_length(browsed: Callable[[str], str]) -> None:
    texts = ["ä<€" + "x" * 0, *("".join(chr(33 + (7 * i * i + n) % 90) for i in range(n)) for n in range(1, 13))]
    packed = [pages.packed(text) for text in texts]
    assert {len(each) % 5 for each in packed} >= {0, 2, 3, 4}
    places = "".join(f'<script type="text/plain" id="t{i}">{each}</script>' for i, each in enumerate(packed))
    script = pages.part("report_plots.js")
    body = f"<!doctype html><meta charset=utf-8><title>x</title><p id=said></p>{places}<script>{script}</script>"
    ask = f"Promise.all([...Array({len(texts)}).keys()].map(i => unpacked(`t${{i}}`)))"
    html = browsed(f"{body}<script>{ask}.then(all => document.title = JSON.stringify(all))</script>")
    title = html.partition("<title>")[2].partition("</title>")[0]
    assert json.loads(unescape(title)) == texts


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

    monkeypatch.setattr(pages.os, "replace", full)
    with pytest.raises(HpoError, match=r"report\.html cannot be written \(No space left on device\)"):
        report.write(sample_results(1), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
