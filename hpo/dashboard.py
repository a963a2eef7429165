"""Optuna Dashboard for a storage, on this machine only: it has no password, and can delete what it shows."""

from __future__ import annotations

import errno
import threading
import webbrowser
from collections.abc import Callable

from optuna.storages import BaseStorage

from hpo.errors import HpoError, MissingExtraError, StudyError

LOOPBACK = "127.0.0.1"


def serve(
    storage: BaseStorage,
    port: int = 8080,
    host: str = LOOPBACK,
    study: str | None = None,
    open_browser: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the dashboard until Ctrl-C.

    Args:
        storage: The storage that it shows, and can change.
        port: TCP port; 0 takes a free one.
        host: Address to listen on; anyone who reaches another than the loopback one can delete studies.
        study: Name of the study to open in the browser; all of them if None.
        open_browser: Whether to open a browser.
        say: Gets a line for the user, the address first.

    Raises:
        MissingExtraError: Optuna Dashboard or waitress is not installed.
        StudyError: The storage has no such study.
        HpoError: The port cannot be listened on.
    """
    try:
        import optuna_dashboard
        from waitress.server import create_server
    except ImportError:
        raise MissingExtraError("The dashboard", "dashboard") from None
    if not 0 <= port <= 65535:  # the system would take it modulo 65536
        raise HpoError(f"port {port} does not exist; choose one from 0 to 65535 with --port")
    path = _path(storage, study)
    try:
        server = create_server(optuna_dashboard.wsgi(storage), host=host, port=port, ident=None)
    except OSError as error:
        raise HpoError(_refused(host, port, error)) from None
    url = f"http://{host}:{server.effective_port}{path}"
    say(f"Dashboard at {url} (Ctrl-C stops it)")
    if host != LOOPBACK:
        say(f"It has no password: everyone who reaches {host} can change and delete studies.")
    if open_browser:
        # The socket listens already; a browser that blocks must not keep the server from answering.
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
    try:
        server.run()  # returns at Ctrl-C
    finally:
        server.close()


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
