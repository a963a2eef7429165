"""URLs of storages: their scheme, their file, and how they are shown."""

from __future__ import annotations

import re

from hpo.errors import StorageError

FILES = ("sqlite", "journal")
POSTGRESQL = ("postgresql", "postgresql+psycopg", "postgres")


def scheme_of(url: str) -> str:
    """Return what comes before `://`."""
    return url.partition("://")[0]


def path_of(url: str) -> str:
    """Return the file of `scheme:///relative` or `scheme:////absolute`."""
    return url.partition("://")[2].partition("?")[0][1:]


def with_driver(url: str) -> str:
    """Return a PostgreSQL URL that names its driver, psycopg."""
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)


def redacted(url: str) -> str:
    """Return a URL without its password, for messages and reports."""
    return re.sub(r"(password=)[^&\s]*", r"\1***", re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url))


def cannot_be_opened(url: str, error: Exception) -> StorageError:
    """Return what to raise, `from None`, for what SQLAlchemy, psycopg and the journal raise: the URL stays out."""
    reason = redacted(str(error.__cause__ or error)).splitlines()[0] if str(error.__cause__ or error) else ""
    return StorageError(
        f"storage {redacted(url)} cannot be opened ({type(error).__name__}: {reason}). "
        "Check that the path or server exists and may be written"
    )
