from __future__ import annotations

import io
import re
from html import escape
from pathlib import Path
from typing import Any, NamedTuple
from wsgiref.validate import validator

import optuna
import optuna_dashboard
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.storages import InMemoryStorage

from hpo.cli.dashboard_guard import Guard, allowed_hosts

TOKEN = "a-token-of-the-test-0123456789"
HOST = "127.0.0.1:8080"
HOSTS = allowed_hosts(["localhost", "127.0.0.1", "[::1]"], 8080)
BEARER = {"Authorization": f"Bearer {TOKEN}"}
JSON = {"Content-Type": "application/json"}
READS = ("GET", "HEAD")
WRITES = ("POST", "PUT", "PATCH", "DELETE", "PROPFIND", "TRACE", "get")

# What a path has for the parts of a route that vary.
PARTS = {"int": "0", "path": "bundle.js", "re:(/.*)?": "/studies/0", "re:[0-9a-fA-F-]+": "a-1", "": "slice"}
APP: Any = optuna_dashboard.wsgi(InMemoryStorage())
ROUTES = sorted(
    {(route.method, re.sub(r"<\w*:?(.*?)>(?=/|$)", lambda match: PARTS[match[1]], route.rule)) for route in APP.routes}
)
PATHS = sorted({path for _, path in ROUTES})


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def ask(
    app: Any, path: str, method: str = "GET", headers: dict[str, str] | None = None, body: bytes = b"", query: str = ""
) -> Answer:
    """Ask an application as waitress does."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8080",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in {"Host": HOST, "Accept-Encoding": "", **(headers or {})}.items():
        key = name.upper().replace("-", "_")
        environ[key if key == "CONTENT_TYPE" else f"HTTP_{key}"] = value
    started: list[Any] = []
    parts = app(environ, lambda status, headers, exc_info=None: started.append((status, headers)))
    body = b"".join(parts)
    if hasattr(parts, "close"):
        parts.close()
    status, given = started[-1]
    assert len({name.lower() for name, _ in given}) == len(given), "a header is there twice"
    return Answer(int(status[:3]), {name.lower(): value for name, value in given}, body)


class Told:
    """An application that takes note of the requests that reach it."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        self.paths.append(environ["PATH_INFO"])
        start_response("200 OK", [("Content-Type", "text/html"), ("Access-Control-Allow-Origin", "*")])
        return [b"inside"]


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def guard(told: Told) -> Guard:
    return Guard(told, TOKEN, HOSTS, 8080)


@pytest.fixture
def editing(told: Told) -> Guard:
    return Guard(told, TOKEN, HOSTS, 8080, allow_edit=True)


def cookie_of(guard: Guard) -> str:
    return ask(guard, "/dashboard", query=f"token={TOKEN}").headers["set-cookie"].partition(";")[0]


# ---------------------------------------------------------------- every route and method


def test_the_routes_are_all_there() -> None:
    assert len(ROUTES) >= 30
    assert {method for method, _ in ROUTES} == {"GET", "POST", "PUT", "DELETE"}
    assert not any("<" in path for path in PATHS)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", [*READS, "OPTIONS", *WRITES])
def test_no_route_answers_without_the_token_or_at_another_address(path: str, method: str) -> None:
    told = Told()
    guard = Guard(told, TOKEN, HOSTS, 8080, allow_edit=True)
    for stranger in ({}, {"Authorization": "Bearer "}, {"Authorization": f"Bearer {TOKEN}x"}, {"Cookie": "a=b"}):
        answer = ask(guard, path, method, {**JSON, **stranger}, b"" if method in READS else b"{}")
        assert answer.status == 401
        assert "hpo dashboard" in answer.body.decode() or method == "HEAD"
    for host in ("", "evil.example:8080", "127.0.0.1", "127.0.0.1:8081", "localhost:8080, evil", "127.0.0.1.:8080"):
        assert ask(guard, path, method, {**JSON, **BEARER, "Host": host}).status == 421
    assert told.paths == []


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", WRITES)
def test_no_route_writes_without_permission_or_for_another_page(path: str, method: str) -> None:
    told = Told()
    reading = Guard(told, TOKEN, HOSTS, 8080)
    editing = Guard(told, TOKEN, HOSTS, 8080, allow_edit=True)
    own = {**BEARER, **JSON, "Origin": f"http://{HOST}", "Sec-Fetch-Site": "same-origin"}
    answer = ask(reading, path, method, own, b"{}")
    assert (answer.status, b"--allow-edit" in answer.body) == (403, True)
    for other in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:8081"},
        {"Origin": "http://localhost:8080"},  # another name of this address is another origin
        {"Origin": f"http://{HOST}.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://evil.example", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
    ):
        assert ask(editing, path, method, {**own, **other}, b"{}").status == 403
    for kind in ("", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "text/json"):
        assert ask(editing, path, method, {**own, "Content-Type": kind}, b"{}").status == 415
    assert told.paths == []
    assert ask(editing, path, method, own, b"{}").status == 200
    assert ask(editing, path, method, {**own, "Content-Type": "application/JSON; charset=utf-8"}, b"{}").status == 200
    assert told.paths == [path, path]


@pytest.mark.parametrize("path", PATHS)
def test_every_route_is_read_with_the_token(path: str, guard: Guard) -> None:
    cookie = {"Cookie": cookie_of(guard)}
    for known in (BEARER, {"Authorization": f"bearer  {TOKEN}"}, cookie):
        assert ask(guard, path, headers=known).body == b"inside"
        assert ask(guard, path, headers={**known, "Sec-Fetch-Site": "same-origin"}).status == 200
        for site in ("cross-site", "same-site"):
            assert (
                ask(guard, path, headers={**known, "Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}).status == 403
            )
        assert ask(guard, path, headers={**known, "Origin": "http://evil.example"}).status == 403


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_answer_of_optuna_dashboard_keeps_to_itself(method: str, path: str) -> None:
    guard = Guard(validator(APP), TOKEN, HOSTS, 8080, allow_edit=True)
    body = b"" if method == "GET" else b"{}"
    answer = ask(guard, path, method, {**BEARER, **JSON} if body else BEARER, body, "" if body else "after=0")
    headers = answer.headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert not any(name.startswith("access-control") for name in headers)
    policy = headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert ("sandbox" in policy) == (not path.startswith("/dashboard") and path != "/")
    assert not re.search(r"https?:|\*", policy)
    assert "'unsafe-inline'" not in policy.replace("style-src 'self' 'unsafe-inline'", "").replace(
        "style-src 'unsafe-inline'", ""
    )
    assert headers.get("cache-control") == ("no-store" if path != "/static/bundle.js" else None)
    if path.startswith("/artifacts/"):
        assert headers["content-disposition"] == "attachment"


# ---------------------------------------------------------------- the token


def test_the_link_becomes_a_cookie_and_loses_the_token(guard: Guard, told: Told) -> None:
    answer = ask(guard, "/dashboard/studies/1", query=f"a=1&token={TOKEN}&b=%26")
    assert (answer.status, answer.headers["location"]) == (303, "/dashboard/studies/1?a=1&b=%26")
    cookie, *rest = answer.headers["set-cookie"].split("; ")
    assert set(rest) == {"HttpOnly", "SameSite=Strict", "Path=/"}
    name, _, value = cookie.partition("=")
    assert (name, len(value) > 40) == ("hpo-dashboard-8080", True)
    assert TOKEN not in str(answer)  # nor does the cookie hold it, which other servers on this host can get
    assert value != cookie_of(Guard(told, TOKEN, HOSTS, 8080)).partition("=")[2]
    assert told.paths == []
    other = Guard(told, TOKEN, HOSTS, 8081)
    assert cookie_of(other).startswith("hpo-dashboard-8081=")
    both = f'broken={{"a"; ={{; {cookie_of(other)}; {cookie}'
    assert ask(guard, "/", headers={"Cookie": both}).status == 200
    assert ask(guard, "/", headers={"Cookie": cookie_of(other)}).status == 401
    assert TOKEN not in repr(guard)


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_after_a_link_of_another_site_the_browser_starts_at_this_one(guard: Guard, site: str) -> None:
    answer = ask(guard, "/dashboard", headers={"Sec-Fetch-Site": site}, query=f"token={TOKEN}")
    assert (answer.status, answer.headers["refresh"]) == (200, "0; url=/dashboard")
    assert "sandbox" not in answer.headers["content-security-policy"]
    assert TOKEN not in str(answer)


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "POST", "DELETE"])
def test_only_a_page_becomes_a_cookie(editing: Guard, method: str) -> None:
    answer = ask(editing, "/dashboard", method, query=f"token={TOKEN}")
    assert (answer.status, "set-cookie" in answer.headers) == (401, False)


@pytest.mark.parametrize("query", ["token=", "token=x", f"token={TOKEN}x", "token=%FF", "token=ü", f"Token={TOKEN}"])
def test_a_wrong_token_is_refused_and_not_repeated(guard: Guard, query: str) -> None:
    answer = ask(guard, "/dashboard", query=query)
    assert (answer.status, "set-cookie" in answer.headers) == (401, False)
    assert TOKEN not in str(answer)


@pytest.mark.parametrize("wrong", ["\xff", "é", "", " ", "\udc80"])
def test_no_token_of_odd_characters_is_an_error(guard: Guard, wrong: str) -> None:
    for headers in ({"Authorization": f"Bearer {wrong}"}, {"Cookie": f"hpo-dashboard-8080={wrong}"}):
        assert ask(guard, "/", headers=headers).status == 401


def test_no_secret_is_compared_by_equality(monkeypatch: pytest.MonkeyPatch, guard: Guard) -> None:
    compared: list[bytes] = []
    monkeypatch.setattr("hmac.compare_digest", lambda given, secret: compared.append(given) or given == secret)
    ask(guard, "/", headers={"Authorization": "Bearer one"})
    ask(guard, "/", headers={"Cookie": "hpo-dashboard-8080=two"})
    ask(guard, "/", query="token=three")
    assert compared == [b"one", b"two", b"three"]


# ---------------------------------------------------------------- paths and hosts


@pytest.mark.parametrize(
    "path",
    [
        "//evil.example",
        "/\\evil.example",
        "//artifacts/0/a",
        "artifacts/0/a",
        "/artifact\xffs/0/a",
        "/static/../artifacts/0/a",
        "/dashboard//",
        "/a//b",
        "/a\\..\\b",
        "/../x",
        "/.",
        "/a/.",
        "*",
        "/a\r\nSet-Cookie: a=b",
        "/a\0b",
    ],
)
@pytest.mark.parametrize("query", ["", f"token={TOKEN}"])
def test_a_path_with_two_meanings_is_refused(guard: Guard, told: Told, path: str, query: str) -> None:
    answer = ask(guard, path, headers=BEARER, query=query)
    assert (answer.status, "location" in answer.headers) == (400, False)
    assert told.paths == []


@given(path=st.text(st.characters(max_codepoint=255)).map("/".__add__), site=st.sampled_from(["none", "cross-site"]))
def test_a_link_leads_to_the_same_path_of_this_server_or_nowhere(path: str, site: str) -> None:
    guard = Guard(Told(), TOKEN, HOSTS, 8080)
    answer = ask(guard, path, headers={"Sec-Fetch-Site": site}, query=f"token={TOKEN}")
    place = answer.headers.get("location") or answer.headers.get("refresh", "").removeprefix("0; url=")
    assert answer.status == 400 or re.fullmatch(r"/(?!/)[\w.~/%!$&'()*+,;=:@-]*", place, re.ASCII)


def test_hosts_are_names_with_the_port() -> None:
    assert allowed_hosts(["localhost", "[::1]", "GPU1:9000"], 8080) == {"localhost:8080", "[::1]:8080", "gpu1:9000"}
    assert allowed_hosts(["a", "b:443"], 80) == {"a", "a:80", "b", "b:443"}
    for name in ("a b", "a:", "a:b", "http://a", "a/b", "user@a", "::1", "[x]", "*", "a:123456"):
        with pytest.raises(ValueError, match=re.escape(name)):
            allowed_hosts([name], 8080)


def test_a_host_in_capitals_is_the_same(guard: Guard) -> None:
    assert ask(guard, "/", headers={**BEARER, "Host": "LocalHost:8080"}).status == 200


# ---------------------------------------------------------------- with Optuna Dashboard behind it


@pytest.fixture
def study() -> optuna.Study:
    study = optuna.create_study(study_name="tuned", storage=InMemoryStorage())
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    return study


def served(study: optuna.Study, store: Any = None, allow_edit: bool = False) -> Guard:
    return Guard(optuna_dashboard.wsgi(study._storage, store), TOKEN, HOSTS, 8080, allow_edit)


def test_a_study_is_deleted_only_where_that_is_allowed(study: optuna.Study) -> None:
    path = f"/api/studies/{study._study_id}"
    assert ask(served(study), path, "DELETE", BEARER).status == 403
    assert ask(APP, "/api/studies").status == 200  # what a stranger got without the guard
    assert study.trials
    assert ask(served(study, allow_edit=True), path, "DELETE", BEARER).status == 204  # without a body
    assert study._storage.get_all_studies() == []


def test_methods_that_there_are_not(study: optuna.Study) -> None:
    page = ask(served(study), "/dashboard", headers=BEARER)
    head = ask(served(study), "/dashboard", "HEAD", BEARER)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == page.headers["content-length"] == str(len(page.body))
    assert ask(served(study), "/api/studies", "OPTIONS", BEARER).status == 405
    assert ask(served(study), "/api/studies", "HEAD").body == b""


@pytest.fixture
def artifact(study: optuna.Study, tmp_path: Path) -> tuple[Guard, str]:
    store = FileSystemArtifactStore(tmp_path)
    page = tmp_path / "page.html"
    page.write_text("<script>alert(1)</script>")
    name = upload_artifact(artifact_store=store, file_path=str(page), study_or_trial=study, mimetype="text/html")
    return served(study, store), f"artifacts/{study._study_id}/{name}"


def test_an_artifact_is_a_download_in_a_sandbox(artifact: tuple[Guard, str]) -> None:
    guard, path = artifact
    for known in (f"/{path}", f"/{path}/"):
        answer = ask(guard, known, headers=BEARER)
        assert (answer.status, answer.body) == (200, b"<script>alert(1)</script>")
        assert answer.headers["content-disposition"] == "attachment"
        assert "sandbox" in answer.headers["content-security-policy"]
        assert "access-control-allow-origin" not in answer.headers
    for odd in (f"//{path}", f"/\xff{path}", path, f"/static/../{path}", f"/dashboard/../{path}"):
        assert ask(guard, odd, headers=BEARER).status == 400


def test_an_unknown_page_repeats_no_markup(study: optuna.Study) -> None:
    answer = ask(served(study), "/<script>alert(1)</script>", headers=BEARER)
    assert answer.status == 404
    assert b"<script>" not in answer.body
    assert escape("<script>").encode() in answer.body
