from __future__ import annotations

import builtins
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import InMemoryStorage

from hpo import dashboard
from hpo.errors import HpoError, MissingExtraError, StudyError

SERVER = """
import sys
from hpo import dashboard, storage
dashboard.serve(storage.connect(sys.argv[1]), port=0, study="tuned", open_browser=False,
                say=lambda line: print(line, flush=True))
print("closed")
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    url = f"sqlite:///{tmp_path}/hpo.db"
    optuna.create_study(study_name="tuned", storage=url)
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.communicate()


def fetch(url: str) -> bytes:
    # Around any proxy of the environment.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=60) as response:
        body: bytes = response.read()
    return body


def test_it_serves_the_study_and_stops_at_ctrl_c(server: subprocess.Popen[str]) -> None:
    assert server.stdout is not None
    address = server.stdout.readline().split()[2]
    root, _, path = address.partition("/dashboard")
    assert root.startswith("http://127.0.0.1:")
    assert path == "/studies/1"
    assert b"<title>Optuna Dashboard" in fetch(root + "/")
    assert b"<title>Optuna Dashboard" in fetch(address)
    (study,) = json.loads(fetch(f"{root}/api/studies"))["study_summaries"]
    assert study["study_name"] == "tuned"
    os.kill(server.pid, signal.SIGINT)
    out, err = server.communicate(timeout=120)
    assert (out, err, server.returncode) == ("closed\n", "", 0)


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(HpoError, match=rf"port {port} of 127\.0\.0\.1 is in use; .* --port"):
            dashboard.serve(InMemoryStorage(), port, open_browser=False)


def test_a_port_that_is_none() -> None:
    with pytest.raises(HpoError, match=r"port 70000 .* --port"):
        dashboard.serve(InMemoryStorage(), 70000, open_browser=False)


def test_an_unknown_study() -> None:
    with pytest.raises(StudyError, match="no study 'missing'"):
        dashboard.serve(InMemoryStorage(), 0, study="missing", open_browser=False)


def test_missing_packages_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("optuna_dashboard"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'hpo\[dashboard\]'"):
        dashboard.serve(InMemoryStorage(), 0)


def test_the_browser_opens_at_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    said: list[str] = []
    storage = InMemoryStorage()
    optuna.create_study(study_name="tuned", storage=storage)
    monkeypatch.setattr(dashboard.webbrowser, "open", opened.append)
    monkeypatch.setattr("waitress.server.TcpWSGIServer.run", lambda _: None)
    dashboard.serve(storage, 0, study="tuned", say=said.append)
    (line,) = said
    assert opened == [line.split()[2]]
    dashboard.serve(storage, 0, study="tuned", say=said.append, open_browser=False)
    assert len(opened) == 1
