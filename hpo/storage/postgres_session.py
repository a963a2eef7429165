"""A connection to PostgreSQL whose session holds advisory locks; a forked child cannot use it."""

from __future__ import annotations

import os
import re
import socket
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from hpo.core.errors import MissingExtraError, StorageError
from hpo.storage.file_lock import this_process
from hpo.storage.urls import opening_error, redacted, split_secrets

if TYPE_CHECKING:
    import psycopg

OLDEST_SERVER = 14

TIMEOUTS = {
    "connect_timeout": 10,
    "tcp_user_timeout": 30_000,
}  # seconds; milliseconds until a silent server counts as lost

# The server ends no idle session. If a machine is lost, its session ends, and frees its locks, within a minute.
SETTINGS = b"""
    SET statement_timeout = 0; SET lock_timeout = 0; SET idle_session_timeout = 0;
    SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3
"""

HOLDERS = """
    SELECT DISTINCT coalesce(application_name, ''), pid FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND objsubid = 1 AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND ((classid::bigint << 32) | objid::bigint) = %s ORDER BY 1, 2
"""


def holders(session: psycopg.Connection[Any], key: int) -> list[str]:
    """Return the holders of an advisory lock of 64 bits: `process 12 on host`, or another program's server process."""
    found = session.execute(HOLDERS.encode(), [key]).fetchall()
    own = re.compile(r"hpo (process \d+ on [\w.-]+)")
    return [match[1] if (match := own.match(name)) else f"server process {pid}" for name, pid in found]


def open_session(url: str) -> psycopg.Connection[Any]:
    """Open a connection in which each statement is a transaction; SQLAlchemy reads the URL.

    Raises:
        StorageError: The server cannot be reached, refuses, or is too old.
        MissingExtraError: The driver is not installed.
    """
    try:
        import psycopg
    except ImportError:
        raise MissingExtraError("A PostgreSQL storage", "postgresql") from None
    from sqlalchemy.engine import make_url

    bare, secrets = split_secrets(url)
    try:
        parsed = make_url(bare)
        _, arguments = parsed.get_dialect()().create_connect_args(parsed)
        name = {"application_name": f"hpo {this_process()}"}
        session = psycopg.connect(**{**TIMEOUTS, **arguments, **secrets, **name}, autocommit=True)
        session.execute(SETTINGS)
    except Exception as error:  # from the URL, the driver or the server; its text may quote the password
        raise opening_error(url, error) from None
    version = session.info.server_version // 10_000
    if version < OLDEST_SERVER:
        session.close()
        raise StorageError(f"storage {redacted(url)} is PostgreSQL {version}; hpo needs {OLDEST_SERVER} or later")
    _sessions.add(session)
    return session


_sessions: WeakSet[psycopg.Connection[Any]] = WeakSet()


def _disconnect_child() -> None:
    """Close a forked child's connections: through them the parent's locks would be held until the child ends too."""
    for session in _sessions:
        if not session.closed:
            one, other = socket.socketpair()
            os.dup2(one.fileno(), session.fileno(), inheritable=False)  # looks like a connection that the server closed
            one.close()
            other.close()


os.register_at_fork(after_in_child=_disconnect_child)
