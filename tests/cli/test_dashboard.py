from __future__ import annotations

import builtins
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import InMemoryStorage

from hpo.cli import dashboard
from hpo.core.errors import HpoError, MissingExtraError, StudyError

SERVER = """
import sys
from hpo.cli import dashboard
from hpo.storage import backends as storage
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


def fetch(url: str, token: str = "") -> bytes:
    # Around any proxy of the environment.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor())
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    with opener.open(request, timeout=60) as response:
        body: bytes = response.read()
        assert "Server" not in response.headers
    return body


def test_it_serves_the_study_and_stops_at_ctrl_c(server: subprocess.Popen[str]) -> None:
    assert server.stdout is not None
    line = server.stdout.readline()
    assert line.endswith(" (read-only; Ctrl-C stops it)\n")
    address, _, token = line.split()[2].partition("?token=")
    root, _, path = address.partition("/dashboard")
    assert root.startswith("http://127.0.0.1:")
    assert path == "/studies/1"
    assert len(token) > 40
    assert b"<title>Optuna Dashboard" in fetch(root + "/", token)
    assert b"<title>Optuna Dashboard" in fetch(f"{address}?token={token}")
    (study,) = json.loads(fetch(f"{root}/api/studies", token))["study_summaries"]
    assert study["study_name"] == "tuned"
    for url, status in ((f"{root}/api/studies", 401), (f"{root.replace('127.0.0.1', '127.1')}/?token={token}", 421)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            fetch(url)
        assert refused.value.status == status
    for odd in ("//evil.example/%2e%2e", "/%2e%2e/x", "/dashboard/%5c..", "/%FF", "/artifacts//1/a"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            fetch(f"{root}{odd}?token={token}")
        assert refused.value.status == 400
    with socket.create_connection(("127.0.0.1", int(root.rpartition(":")[2])), timeout=60) as stranger:
        stranger.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n")
        assert stranger.recv(100).startswith(b"HTTP/1.1 413")  # it is not read to the end first
    with ThreadPoolExecutor(24) as browsers:  # more at once than the server has threads; it does not warn of that
        list(browsers.map(lambda _: fetch(f"{root}/api/studies", token), range(96)))
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


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What a server says that ends at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("waitress.server.TcpWSGIServer.run", lambda _: None)
    return []


def test_the_browser_opens_at_the_study_and_its_command_line_holds_no_token(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    opened: list[tuple[str, int, str]] = []
    looked = threading.Event()
    storage = InMemoryStorage()
    optuna.create_study(study_name="tuned", storage=storage)

    def look(url: str) -> None:
        file = Path(url.removeprefix("file://"))
        opened.append((url, file.stat().st_mode & 0o777, file.read_text()))
        looked.set()

    monkeypatch.setattr(dashboard.webbrowser, "open", look)
    monkeypatch.setattr("waitress.server.TcpWSGIServer.run", lambda _: looked.wait(30))
    dashboard.serve(storage, 0, study="tuned", say=said.append)
    (line,) = said
    link = line.split()[2]
    ((url, mode, page),) = opened
    assert link.partition("=")[2] not in url
    assert (mode, f'content="0; url={link}"' in page) == (0o600, True)
    assert list(Path("runs").iterdir()) == []
    dashboard.serve(storage, 0, study="tuned", say=said.append, open_browser=False)
    assert len(opened) == 1
    assert said[0].partition("?token=")[2] != said[1].partition("?token=")[2]


def test_where_nothing_can_be_written_the_address_is_said(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    Path("runs").write_text("a file")
    monkeypatch.setattr(dashboard.webbrowser, "open", lambda url: pytest.fail(url))
    dashboard.serve(InMemoryStorage(), 0, say=said.append)
    assert said[1] == "No browser was opened: runs/ cannot be written (File exists). Open the address above."


SECRET = "0123456789abcdefghij"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "8.8.8.8"])
def test_other_machines_reach_it_only_with_a_token_that_was_chosen(host: str) -> None:
    with pytest.raises(HpoError, match=r"other machines can reach .*, and no token is set; .* HPO_DASHBOARD_TOKEN="):
        dashboard.serve(InMemoryStorage(), 0, host, allow_hosts=["gpu1"], open_browser=False)
    for weak in ("", "short", "19 characters or so?", "ä" * 30):
        with pytest.raises(HpoError, match="HPO_DASHBOARD_TOKEN must have 20 or more letters"):
            dashboard.serve(InMemoryStorage(), 0, host, token=weak, open_browser=False)


def test_a_chosen_token_is_not_printed(said: list[str]) -> None:
    dashboard.serve(
        InMemoryStorage(), 0, "0.0.0.0", open_browser=False, allow_hosts=["gpu1"], token=SECRET, say=said.append
    )
    assert said[0].startswith("Dashboard at http://gpu1:")
    assert "?token= and the value of HPO_DASHBOARD_TOKEN" in said[1]
    assert "not encrypted" in said[2]
    assert SECRET not in "".join(said)


def test_addresses_that_a_browser_cannot_open() -> None:
    with pytest.raises(HpoError, match=r"0\.0\.0\.0 is no address that a browser opens; .* --allow-host"):
        dashboard.serve(InMemoryStorage(), 0, "0.0.0.0", token=SECRET, open_browser=False)
    with pytest.raises(HpoError, match=r"'gpu1' is no IP address; write one, e\.g\. --host 127\.0\.0\.1"):
        dashboard.serve(InMemoryStorage(), 0, "gpu1", token=SECRET, open_browser=False)
    with pytest.raises(HpoError, match="--allow-host http://gpu1: write HOST or HOST:PORT"):
        dashboard.serve(InMemoryStorage(), 0, allow_hosts=["http://gpu1"], open_browser=False)


@pytest.mark.parametrize(("host", "shown"), [("localhost", "127.0.0.1"), ("127.0.0.2", "127.0.0.2"), ("::1", "[::1]")])
def test_addresses_of_this_machine_need_no_chosen_token(host: str, shown: str, said: list[str]) -> None:
    dashboard.serve(InMemoryStorage(), 0, host, open_browser=False, allow_edit=True, say=said.append)
    (line,) = said
    assert line.startswith(f"Dashboard at http://{shown}:")
    assert line.endswith("(editable; Ctrl-C stops it)")


def test_the_command_hands_everything_on(call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPO_DASHBOARD_TOKEN", SECRET)
    optuna.create_study(study_name="tuned", storage="sqlite:///hpo.db")
    taken: dict[str, Any] = {}
    monkeypatch.setattr(dashboard, "serve", lambda storage, **options: taken.update(options))
    assert call("dashboard", "tuned", "--port", 0, "--no-browser") == (0, "")
    usual = {"study": "tuned", "port": 0, "open_browser": False, "token": SECRET}
    assert taken == {**usual, "allow_edit": False, "host": "127.0.0.1", "allow_hosts": []}
    assert call("dashboard", "tuned", "--port", 0, "--no-browser", "--allow-edit", "--allow-host", "a:1")[0] == 0
    assert taken == {**usual, "allow_edit": True, "host": "127.0.0.1", "allow_hosts": ["a:1"]}
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPO_DASHBOARD_TOKEN", raising=False)
    code, printed = call("dashboard", "--host", "0.0.0.0", "--no-browser")
    assert (code, "no token is set" in printed) == (2, True)
