"""No text of a study runs as code: in the dashboard, in the report and in the model card, in Chromium."""

from __future__ import annotations

import html
import http.server
import queue
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser as browsers
import optuna
import pytest
from injections import STRINGS
from markdown_it import MarkdownIt
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, create_trial

from hpo.analysis import export, report
from hpo.cli import dashboard
from hpo.cli.dashboard_guard import Guard, allowed_hosts
from hpo.storage.snapshot import Results

pytestmark = pytest.mark.slow
TEXTS = [" ".join(STRINGS[start : start + 10]) for start in range(0, len(STRINGS), 10)]
# Cells of the first three tables, the verdict's, that hold a string.
CELLS = """[...document.querySelectorAll("table")].slice(0, 3).flatMap(table => [...table.querySelectorAll("th, td")])
.filter(cell => cell.textContent.includes("njected(") || cell.textContent.includes("elsewhere.invalid")).length"""
TOKEN = "a-token-of-the-test-0123456789"
# What would run at a click or at a movement of the mouse.
LATER = """[...document.querySelectorAll("*")].flatMap(element => [...element.attributes])
.filter(attribute => /^(on|srcdoc)/i.test(attribute.name) || /^\\s*(javascript|vbscript):/i.test(attribute.value))
.filter(attribute => attribute.value.includes("injected")).length"""


def trials() -> list[FrozenTrial]:
    """Return trials with every string in a parameter's name, in a value, in an attribute and in a reason."""
    made = []
    for number in range(4):
        params, distributions = {"rate": 0.1 * (number + 1)}, {"rate": FloatDistribution(0, 1)}
        for position, name in enumerate(TEXTS):
            choices = (name, TEXTS[position - 1])
            params[name] = choices[number % 2]
            distributions[name] = CategoricalDistribution(choices)
        attrs: dict[str, Any] = {name: name for name in STRINGS}
        attrs |= {"reason": " ".join(STRINGS), "detail": " ".join(STRINGS)}
        if number == 0:
            attrs |= {"baseline": True, "collapsed": True, "moved": dict.fromkeys(TEXTS, TEXTS[:2])}
        state = optuna.trial.TrialState.FAIL if number == 3 else optuna.trial.TrialState.COMPLETE
        made.append(
            create_trial(
                state=state,
                value=None if number == 3 else 0.5 + 0.1 * number,
                params=params,
                distributions=distributions,
                user_attrs=attrs,
                system_attrs={name: name for name in STRINGS},
                intermediate_values={1: 0.1, 2: 0.2},
            )
        )
    for number, trial in enumerate(made):
        trial.number = number
    return made


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browsers.Browser]:
    if browsers.CHROMIUM is None:
        pytest.skip("Chromium is not installed: what a browser makes of a study's texts is NOT tested here")
    started = browsers.Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def served(chromium: browsers.Browser) -> Iterator[str]:
    """Serve a dashboard of studies that hold every string in every place, known to the browser; return its address."""
    import optuna_dashboard
    from waitress.server import create_server

    storage = InMemoryStorage()
    study = optuna.create_study(study_name="study 0", storage=storage)
    storage.set_study_system_attr(study._study_id, "study:metric_names", [STRINGS[0]])
    study.add_trials(trials())
    optuna_dashboard.save_note(study, "\n\n".join(STRINGS))
    for name in STRINGS:
        study.set_user_attr(name, name)
        storage.set_study_system_attr(study._study_id, name, name)
        optuna.create_study(study_name=name, storage=storage)
    for trial in study.trials:
        optuna_dashboard.save_note(optuna.trial.Trial(study, trial._trial_id), "\n\n".join(STRINGS))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        guard = Guard(optuna_dashboard.wsgi(storage), TOKEN, allowed_hosts(["127.0.0.1"], port), port, True)
        server = create_server(guard, sockets=[listener])
        threading.Thread(target=server.run, daemon=True).start()
        root = f"http://127.0.0.1:{port}"
        chromium.open(f"{root}/dashboard?token={TOKEN}", PAGES[""])
        yield root
        server.close()


def test_the_strings_do_run_where_nothing_stops_them(chromium: browsers.Browser, tmp_path: Path) -> None:
    """Else the tests below could not fail."""
    assert len(set(STRINGS)) >= 200
    page = tmp_path / "open.html"
    frames = "".join(f'<iframe srcdoc="{html.escape(string)}"></iframe>' for string in STRINGS)
    page.write_text(f"<!doctype html>{frames}", encoding="utf-8")
    chromium.open(page.as_uri())
    chromium.wait("new Promise(done => setTimeout(done, 500, true))")
    assert len(set(chromium.ran)) > 120
    assert any("elsewhere.invalid" in url for url in chromium.requests)
    page.write_text(f"<!doctype html>{html.escape(STRINGS[0])}<a href='javascript:injected(1)'>x</a>")
    chromium.open(page.as_uri())
    assert chromium.ran == []
    assert chromium.value(LATER) == 1


def test_the_browser_is_let_in_and_the_token_leaves_the_address(
    chromium: browsers.Browser, served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    opened: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(dashboard.webbrowser, "open", opened.put)
    link = f"{served}/dashboard?token={TOKEN}"
    chromium.send("Network.clearBrowserCookies")
    with dashboard._browser(link, print):
        chromium.open(opened.get(timeout=30), "document.body.innerText.includes('study 0')")
    assert chromium.value("location.href").startswith(f"{served}/dashboard")
    assert TOKEN not in chromium.value("location.href + document.referrer + document.cookie")
    chromium.send("Network.clearBrowserCookies")
    chromium.open(link, "document.body.innerText.includes('study 0')")  # typed: no page that it comes from
    assert TOKEN not in chromium.value("location.href + document.referrer + document.cookie")


PAGES = {
    "": "document.body.innerText.includes('study 0')",
    "/studies/0": "document.querySelectorAll('.js-plotly-plot').length > 1",
    "/studies/0/analytics": "document.querySelectorAll('.js-plotly-plot').length > 2",
    "/studies/0/trials?numbers=0": "document.body.innerText.includes('Trial 0')",
    "/studies/0/smartSelection": "document.querySelectorAll('.js-plotly-plot').length > 1",
    "/studies/0/note": "document.body.innerText.includes('injected(5)')",
    "/compare-studies?ids=0,1": "document.body.innerText.includes('study 0')",
}


@pytest.mark.parametrize("page", PAGES)
def test_the_dashboard_runs_none(chromium: browsers.Browser, served: str, page: str) -> None:
    chromium.open(f"{served}/dashboard{page}", PAGES[page])
    chromium.wait("new Promise(done => setTimeout(done, 1000, true))")
    assert chromium.value("document.body.innerText").count("injected(") > 0
    assert chromium.ran == []
    assert chromium.value(LATER) == 0
    assert [url for url in chromium.requests if not url.startswith(served)] == []


def test_the_dashboard_writes_and_another_page_cannot(chromium: browsers.Browser, served: str, tmp_path: Path) -> None:
    chromium.open(f"{served}/dashboard", PAGES[""])
    request = """{method: "PUT", headers: {"Content-Type": "application/json"},
        body: JSON.stringify({version: 1, body: "changed"})}"""
    write = f"fetch('{served}/api/studies/1/note', {request})"
    assert chromium.value(f"{write}.then(answer => answer.status)") == 204
    forge = write.replace("version: 1", "version: 2").replace("changed", "forged")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    page = http.server.ThreadingHTTPServer(("127.0.0.1", port), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=page.serve_forever, daemon=True).start()
    chromium.open(f"http://127.0.0.1:{port}/")  # the cookie goes to all ports of a host
    failed = "then(answer => answer.status, error => 'blocked')"
    assert chromium.value(f"{forge}.{failed}") == "blocked"
    assert chromium.value(f"fetch('{served}/api/studies', {{credentials: 'include'}}).{failed}") == "blocked"
    page.shutdown()
    rebound = f"{served.replace('127.0.0.1', browsers.REBOUND)}/dashboard?token={TOKEN}"
    chromium.open(rebound, "document.body.innerText.includes('--allow-host')")
    chromium.open(f"{served}/dashboard/studies/1/note", "document.body.innerText.includes('changed')")


def verdict() -> dict[str, Any]:
    """Return what a look at the test split stores, with every string as a label and in every text."""
    scores = {"precision": 0.5, "recall": None, "f1": 0.5, "support": 3, "predicted": 3}
    difference = {"score": 0.6, "difference": 0.1, "untold": " ".join(STRINGS), "shown": False}
    return {
        "metric": "accuracy",
        "examples": 630,
        "confidence": 0.95,
        "trials": 4,
        "best": {"number": 2, "score": 0.7},
        "baseline": {"number": 0, "score": 0.5},
        "difference": 0.2,
        "untold": " ".join(STRINGS),
        "shown": False,
        "references": {
            "majority": {"says": " ".join(STRINGS), **difference},
            "tfidf": {"says": " ".join(STRINGS), "bounded": " ".join(STRINGS), **difference},
        },
        "classes": {
            "count": len(STRINGS),
            "classes": [{"label": label} | scores for label in STRINGS],
            "never_predicted": TEXTS[:10],
            "absent": TEXTS[10:],
            "collapsed": False,
            "confusion": [[0] * len(STRINGS)] * len(STRINGS),
            "mistakes": [[true, said, 1] for true, said in zip(STRINGS, reversed(STRINGS), strict=True)],
        },
        "worst_group": {"name": " ".join(STRINGS), "score": 0.1, "rows": 30, "compared": 2},
    }


def results() -> Results:
    config: dict[str, Any] = {
        "name": STRINGS[0],
        "metric": " ".join(STRINGS[:20]),
        "model": STRINGS[0],
        "task": " ".join(STRINGS),
        "data": {"train": " ".join(STRINGS), "validation": " ".join(STRINGS)},
        "space": {"parameters": {name: name for name in STRINGS}, "source": " ".join(STRINGS)},
        "sampler": {"name": " ".join(STRINGS)},
        "pruner": " ".join(STRINGS),
        "seed": STRINGS[3],
    }
    facts = dict.fromkeys(("task", "data", "precision", "device", "torch", "transformers"), " ".join(STRINGS))
    attrs: dict[str, Any] = {name: name for name in STRINGS}
    attrs |= {"config": config, "fingerprint": {"settings": {}, "facts": facts}, "test:2": verdict()}
    attrs["label_shares"] = {" ".join(STRINGS[:105]): 0.9, " ".join(STRINGS[105:]): 0.1}
    return Results(" ".join(STRINGS), "maximize", tuple(trials()), attrs)


def test_the_report_runs_none(chromium: browsers.Browser, tmp_path: Path) -> None:
    page = report.write(results(), tmp_path / "report.html")
    chromium.open(page.as_uri(), "document.readyState === 'complete' && document.querySelector('.js-plotly-plot')")
    chromium.wait("new Promise(done => setTimeout(done, 1000, true))")
    assert chromium.value("document.body.textContent").count("injected(") > len(STRINGS)
    # The labels: in the scores by class, at both sides of the confusion matrix, and as true and predicted ones.
    assert chromium.value(CELLS) == 5 * len(STRINGS)
    assert "The labels are skewed" in chromium.value("document.body.textContent")
    assert chromium.ran == []
    assert chromium.value(LATER) == 0
    assert chromium.requests == [page.as_uri()]


def test_the_model_card_runs_none(chromium: browsers.Browser, tmp_path: Path) -> None:
    found = results()
    assert found.best is not None
    card = export.card(found, found.best).partition("\n---\n")[2]
    page = tmp_path / "card.html"
    page.write_text(f"<!doctype html>{MarkdownIt('commonmark').enable('table').render(card)}", encoding="utf-8")
    chromium.open(page.as_uri())
    chromium.wait("new Promise(done => setTimeout(done, 500, true))")
    assert chromium.value("document.body.textContent").count("injected(") > len(STRINGS)
    assert chromium.value(CELLS) == 5 * len(STRINGS)
    assert chromium.ran == []
    assert chromium.value("document.querySelectorAll('a, img, script, svg, iframe').length") == 0
    assert chromium.requests == [page.as_uri()]
