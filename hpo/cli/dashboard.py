"""Optuna Dashboard for a storage, protected by a token: see `hpo.cli.dashboard_guard`."""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from html import escape
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from optuna.storages import BaseStorage

from hpo.cli.dashboard_guard import Guard, allowed_hosts, with_port
from hpo.core.errors import HpoError, MissingExtraError, StudyError

LOOPBACK = "127.0.0.1"
LOOPBACK_NAMES = ("localhost", LOOPBACK, "[::1]")
TOKEN = "HPO_DASHBOARD_TOKEN"
MAKE_TOKEN = f"export {TOKEN}=$(python3 -c 'import secrets; print(secrets.token_urlsafe())')"
LARGEST_BODY = 10 * 2**20  # bytes; the server reads a body before the guard sees its request

OPENER = """<!doctype html><meta charset="utf-8"><meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0; url={url}"><title>Dashboard</title><a href="{url}">Open the dashboard</a>
"""


def serve(
    storage: BaseStorage,
    port: int = 8080,
    host: str = LOOPBACK,
    study: str | None = None,
    open_browser: bool = True,
    allow_edit: bool = False,
    allow_hosts: Sequence[str] = (),
    token: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the dashboard until Ctrl-C.

    Args:
        storage: The storage that it shows.
        port: TCP port; 0 takes a free one.
        host: IP address to listen on, or localhost.
        study: Name of the study to open in the browser; all of them if None.
        open_browser: Whether to open a browser.
        allow_edit: Whether studies can be changed and deleted.
        allow_hosts: Further `HOST` or `HOST:PORT` by which browsers reach it, e.g. of a tunnel or a proxy.
        token: The token; by default a random one, which is part of the printed link. A given token is not printed.
        say: Prints a line for the user; the first has the address.

    Raises:
        MissingExtraError: Optuna Dashboard or waitress is not installed.
        StudyError: The storage has no such study.
        HpoError: The port cannot be listened on; other machines could reach it and no token is given; the token is
            weak; a host is not valid.
    """
    try:
        import optuna_dashboard
        from waitress.server import create_server
    except ImportError:
        raise MissingExtraError("The dashboard", "dashboard") from None
    address = _address(host)
    _check_token(token, address)
    path = _path(storage, study)
    # waitress warns of every request that waits for a moment, as a browser's do: it sends several at once.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    with _listening(address, port) as listener:
        port = listener.getsockname()[1]
        name, hosts = _names(address, allow_hosts, port)
        guard = Guard(optuna_dashboard.wsgi(storage), token or secrets.token_urlsafe(32), hosts, port, allow_edit)
        server = create_server(guard, sockets=[listener], ident=None, max_request_body_size=LARGEST_BODY)
        url = f"http://{name}{path}"
        link = f"{url}?token={guard.token}"
        say(f"Dashboard at {url if token else link} ({'editable' if allow_edit else 'read-only'}; Ctrl-C stops it)")
        if token:
            say(f"To open it for the first time in a browser, add ?token= and the value of {TOKEN} to the address.")
        if not address.is_loopback:
            say("It is not encrypted: everybody who can read the network's traffic can read the token.")
        try:
            with _browser(link, say) if open_browser else nullcontext():
                server.run()  # returns at Ctrl-C
        finally:
            server.close()


def _address(host: str) -> IPv4Address | IPv6Address:
    try:
        return ip_address(LOOPBACK if host == "localhost" else host.strip("[]"))
    except ValueError:
        raise HpoError(f"{host!r} is no IP address; write one, e.g. --host {LOOPBACK}") from None


def _check_token(token: str | None, address: IPv4Address | IPv6Address) -> None:
    if token is None and not address.is_loopback:
        raise HpoError(
            f"other machines can reach {address}, and no token is set; choose one that only you know: {MAKE_TOKEN}"
        )
    if token is not None and not re.fullmatch(r"[\w.~-]{20,}", token, re.ASCII):
        raise HpoError(f"{TOKEN} must have 20 or more letters, digits and any of . _ ~ -; make one: {MAKE_TOKEN}")


def _names(address: IPv4Address | IPv6Address, allow_hosts: Sequence[str], port: int) -> tuple[str, frozenset[str]]:
    """Return the host and port of the link, and all Host headers that are allowed."""
    own = [] if address.is_unspecified else [f"[{address}]" if address.version == 6 else str(address)]
    reached = [*own, *allow_hosts]
    if not reached:
        raise HpoError(f"{address} is no address that a browser opens; add this machine's name with --allow-host")
    try:
        return with_port(reached[0], port), allowed_hosts([*LOOPBACK_NAMES, *reached], port)
    except ValueError as error:
        raise HpoError(f"--allow-host {error}: write HOST or HOST:PORT, e.g. localhost:9000") from None


@contextmanager
def _listening(address: IPv4Address | IPv6Address, port: int) -> Iterator[socket.socket]:
    """Listen before the address is printed, so that the port is known and a port in use is an error."""
    if not 0 <= port <= 65535:  # the system would use it modulo 65536
        raise HpoError(f"port {port} does not exist; choose one from 0 to 65535 with --port")
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        listener = socket.create_server((str(address), port), family=family)
    except OSError as error:
        raise HpoError(_refused(str(address), port, error)) from None
    with listener:
        yield listener


@contextmanager
def _browser(link: str, say: Callable[[str], None]) -> Iterator[None]:
    """Open a browser with a file that only its owner can read, as all users can read a browser's command line.

    The file is in `runs/`, since browsers in a sandbox cannot read the folder for temporary files or hidden files.
    """
    with ExitStack() as stack:
        try:
            Path("runs").mkdir(exist_ok=True)
            handle, name = tempfile.mkstemp(prefix="dashboard-", suffix=".html", dir="runs")
            stack.callback(Path(name).unlink, missing_ok=True)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(OPENER.format(url=escape(link)))
        except OSError as error:
            say(f"No browser was opened: runs/ cannot be written ({error.strerror}). Open the address above.")
        else:
            # In a thread, so that the server answers even if starting the browser blocks.
            threading.Thread(target=webbrowser.open, args=(Path(name).absolute().as_uri(),), daemon=True).start()
        yield


def _path(storage: BaseStorage, study: str | None) -> str:
    if study is None:
        return "/dashboard"
    try:
        return f"/dashboard/studies/{storage.get_study_id_from_name(study)}"
    except KeyError:
        raise StudyError(f"the storage has no study {study!r}; leave the name out to see all") from None


def _refused(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use; choose another with --port, or --port 0 for a free one"
    return f"port {port} of {host} cannot be listened on ({error}); choose another with --port"
