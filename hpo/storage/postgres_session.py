"""A connection to PostgreSQL that owns locks: one session for as long as it lasts, and no other process's."""

from __future__ import annotations

import os
import re
import socket
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from hpo.core.errors import MissingExtraError, StorageError
from hpo.storage.file_lock import this_process
from hpo.storage.urls import cannot_be_opened, parted, redacted

if TYPE_CHECKING:
    import psycopg

OLDEST_SERVER = 14

WAITS = {"connect_timeout": 10, "tcp_user_timeout": 30_000}  # seconds; milliseconds until a silent server is gone

# An idle session stays; one whose machine has vanished ends, and frees its locks, within a minute instead of hours.
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
    """Return who holds an advisory lock of 64 bits: `process 12 on host`, or another program's server process."""
    found = session.execute(HOLDERS.encode(), [key]).fetchall()
    ours = re.compile(r"hpo (process \d+ on [\w.-]+)")
    return [named[1] if (named := ours.match(name)) else f"server process {pid}" for name, pid in found]


def open_session(url: str) -> psycopg.Connection[Any]:
    """Open a connection, its URL read as SQLAlchemy reads it; each statement commits itself.

    Raises:
        StorageError: The server cannot be reached, refuses, or is too old.
        MissingExtraError: The driver is not installed.
    """
    try:
        import psycopg
    except ImportError:
        raise MissingExtraError("A PostgreSQL storage", "postgresql") from None
    from sqlalchemy.engine import make_url

    bare, secrets = parted(url)
    try:
        parsed = make_url(bare)
        _, named = parsed.get_dialect()().create_connect_args(parsed)
        ours = {"application_name": f"hpo {this_process()}"}
        session = psycopg.connect(**{**WAITS, **named, **secrets, **ours}, autocommit=True)
        session.execute(SETTINGS)
    except Exception as error:  # of the URL, the driver or the server; their texts may quote the password
        raise cannot_be_opened(url, error) from None
    version = session.info.server_version // 10_000
    if version < OLDEST_SERVER:
        session.close()
        raise StorageError(f"storage {redacted(url)} is PostgreSQL {version}; hpo needs {OLDEST_SERVER} or later")
    _open.add(session)
    return session


_open: WeakSet[psycopg.Connection[Any]] = WeakSet()


def _let_go() -> None:
    """Cut a forked child off: the server would keep the locks of its parent until the child's end too."""
    for session in _open:
        if not session.closed:
            ours, other = socket.socketpair()
            os.dup2(ours.fileno(), session.fileno(), inheritable=False)  # reads as a connection that the server closed
            ours.close()
            other.close()


os.register_at_fork(after_in_child=_let_go)
