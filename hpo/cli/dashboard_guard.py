"""A WSGI guard for Optuna Dashboard, which has no authentication of its own.

A request is checked in this order: its Host (a page of another name may point that name at this machine, "DNS
rebinding"), its path, its token, the page that sent it, and for a write the permission and the content type.
Jupyter Server guards its port in the same way.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

READS = ("GET", "HEAD", "OPTIONS")

# The pages load nothing from elsewhere. Plotly sets styles in place and compiles its parallel coordinates with eval.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Everything else is data: opened as a page, it runs no script and has an origin of its own.
DATA_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'"

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

Headers = list[tuple[str, str]]
Answer = tuple[str, Headers, str]


@dataclass(frozen=True)
class Guard:
    """Passes on requests that come with the token.

    Attributes:
        app: Optuna Dashboard.
        token: Accepted as `?token=` of a link, which sets a cookie, or as `Authorization: Bearer`.
        hosts: The allowed Host headers, see `allowed_hosts`.
        port: The port listened on. It is part of the cookie's name, as browsers send a host's cookies to all its ports.
        allow_edit: Whether to pass on requests that write.
        session: Value of the cookie. Other servers on this host may receive it from a browser, but never the token.
    """

    app: WSGIApplication
    token: str = field(repr=False)
    hosts: frozenset[str]
    port: int
    allow_edit: bool = False
    session: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request, or pass it on; in both cases set the headers that restrict browsers."""
        path = environ.get("PATH_INFO") or "/"
        answer = self._answer(environ, path)
        if answer is None:

            def start(status: str, headers: Headers, exc_info: Any = None) -> Any:
                return start_response(status, _secured(headers, path), exc_info)

            return self.app(environ, start)
        status, more, text = answer
        body = f"{text}\n".encode()
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body))), *more]
        start_response(status, _secured(headers, path))
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _answer(self, environ: WSGIEnvironment, path: str) -> Answer | None:
        """Return the answer to a request that is not passed on."""
        method, host = environ["REQUEST_METHOD"], environ.get("HTTP_HOST", "").lower()
        if host not in self.hosts:
            text = "The dashboard is not at this address. Open the link that hpo dashboard printed, or start it with "
            return "421 Misdirected Request", [], f"{text}--allow-host and the host and port of this address."
        if not _is_plain(path):
            return "400 Bad Request", [], "The path must be UTF-8 without empty, '.' or '..' segments."
        query = parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        if method == "GET" and any(name == "token" and _same(value, self.token) for name, value in query):
            return self._welcome(environ, path, [pair for pair in query if pair[0] != "token"])
        if not self._knows_token(environ):
            text = "Open the link that hpo dashboard printed; it holds the token."
            return "401 Unauthorized", [("WWW-Authenticate", 'Bearer realm="hpo dashboard"')], text
        if not _is_own(environ, host):
            return "403 Forbidden", [], "Another page may not use the dashboard."
        return None if method in READS else self._refused_write(environ)

    def _welcome(self, environ: WSGIEnvironment, path: str, query: list[tuple[str, str]]) -> Answer:
        """Set the cookie and redirect to the same page without the token."""
        place = quote(path, encoding="latin-1") + ("?" + urlencode(query) if query else "")
        cookie = ("Set-Cookie", f"{self._cookie}={self.session}; HttpOnly; SameSite=Strict; Path=/")
        if environ.get("HTTP_SEC_FETCH_SITE") in ("cross-site", "same-site"):
            # After a redirect the browser would not send a strict cookie, as the navigation began at another site (a
            # local file counts as one). A page that refreshes begins a new navigation.
            return "200 OK", [cookie, ("Refresh", f"0; url={place}")], "Opening the dashboard."
        return "303 See Other", [cookie, ("Location", place)], "Opening the dashboard."

    def _knows_token(self, environ: WSGIEnvironment) -> bool:
        scheme, _, given = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() == "bearer" and _same(given.strip(), self.token):
            return True
        # Not http.cookies: it drops all cookies after a malformed one, and any program on this host may set one.
        pairs = (part.strip().partition("=") for part in environ.get("HTTP_COOKIE", "").split(";"))
        return any(name == self._cookie and _same(value, self.session) for name, _, value in pairs)

    def _refused_write(self, environ: WSGIEnvironment) -> Answer | None:
        if not self.allow_edit:
            return "403 Forbidden", [], "The dashboard is read-only; start it with --allow-edit to change studies."
        kind = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
        empty = not kind and environ.get("CONTENT_LENGTH", "") in ("", "0")
        if kind != "application/json" and not empty:  # a form of another page can send such a body
            return "415 Unsupported Media Type", [], "The body must be application/json."
        return None

    @property
    def _cookie(self) -> str:
        return f"hpo-dashboard-{self.port}"


def allowed_hosts(names: Iterable[str], port: int) -> frozenset[str]:
    """Return the Host headers of requests to names.

    Args:
        names: `HOST` or `HOST:PORT`; an IPv6 address has brackets.
        port: The port of a name that has none.

    Raises:
        ValueError: A name is not a valid host.
    """
    hosts = {with_port(name, port) for name in names}
    default = {host.rpartition(":")[0] for host in hosts if host.endswith((":80", ":443"))}  # browsers omit these ports
    return frozenset(hosts | default)


def with_port(name: str, port: int) -> str:
    """Return a `HOST` or `HOST:PORT` in lower case with its port, or else the given one.

    Raises:
        ValueError: It is not a valid host; the error's text is the name.
    """
    match = re.fullmatch(r"([\w.-]+|\[[0-9a-f:]+\])(:\d{1,5})?", name.lower(), re.ASCII)
    if match is None:
        raise ValueError(name)
    return f"{match[1]}{match[2] or f':{port}'}"


def _same(given: str, secret: str) -> bool:
    """Compare in constant time, as bytes: `compare_digest` refuses text that is not ASCII."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), secret.encode())


def _is_plain(path: str) -> bool:
    """Return whether the guard, Optuna Dashboard and a browser read a path in the same way."""
    try:
        decoded = path.encode("latin-1").decode()  # Optuna Dashboard drops bytes that are not UTF-8
    except UnicodeError:
        return False
    root, *segments = decoded.removesuffix("/").split("/")
    return not root and decoded.isprintable() and "\\" not in decoded and not {"", ".", ".."} & set(segments)


def _is_own(environ: WSGIEnvironment, host: str) -> bool:
    """Return whether a request comes from the dashboard's own page, the user or a program, not from another page."""
    site = environ.get("HTTP_SEC_FETCH_SITE", "none")
    origin = environ.get("HTTP_ORIGIN", f"http://{host}")
    if environ["REQUEST_METHOD"] == "GET" and environ.get("HTTP_SEC_FETCH_MODE") == "navigate":
        return bool(environ.get("HTTP_SEC_FETCH_DEST") == "document")  # not into a frame
    return site in ("none", "same-origin") and origin in (f"http://{host}", f"https://{host}")


def _secured(headers: Headers, path: str) -> Headers:
    """Return an answer's headers with those that restrict what a browser does with it."""
    root = path.lstrip("/").partition("/")[0]
    ours = {**HEADERS, "Content-Security-Policy": PAGE_POLICY if root in ("", "dashboard") else DATA_POLICY}
    if root == "artifacts":
        ours["Content-Disposition"] = "attachment"
    if root != "static":
        ours["Cache-Control"] = "no-store"
    replaced = {name.lower() for name in ours}
    others = [(name, value) for name, value in headers if name.lower() not in replaced]
    return [pair for pair in others if not pair[0].lower().startswith("access-control-")] + list(ours.items())
