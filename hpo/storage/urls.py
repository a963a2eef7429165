"""URLs of storages: their scheme, their file and their secrets."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hpo.core.errors import StorageError, hidden, hide

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

FILES = ("sqlite", "journal")
POSTGRESQL = ("postgresql", "postgresql+psycopg", "postgres")
SECRET = ("password", "sslpassword")  # keys of a query that libpq reads as secrets


def scheme_of(url: str) -> str:
    """Return what comes before `://`."""
    return url.partition("://")[0]


def path_of(url: str) -> str:
    """Return the file of `scheme:///relative` or `scheme:////absolute`."""
    return url.partition("://")[2].partition("?")[0][1:]


def is_file(url: str) -> bool:
    """Return whether a URL names a file, and no host or user."""
    return scheme_of(url) in FILES and url.partition("://")[2].startswith("/")


def split_secrets(url: str) -> tuple[str, dict[str, str]]:
    """Return a PostgreSQL URL without its secrets but with its driver, and the secrets as arguments of psycopg.

    Raises:
        StorageError: The URL cannot be read.
    """
    parsed = _read(re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url))
    values = {} if parsed is None else {"password": parsed.password, **parsed.query}
    secrets = {key: str(values[key]) for key in SECRET if values.get(key) is not None}
    if parsed is None or any(isinstance(values.get(key), tuple) for key in SECRET):
        raise StorageError(
            f"storage {redacted(url)} cannot be opened: it is not a URL. Write postgresql://user@host:5432/database, "
            "and in a password %40 for @, %2F for /, %3A for : and %25 for %"
        )
    return _without_secrets(parsed).render_as_string(), secrets


def redacted(url: str) -> str:
    """Return a URL without its secrets, for messages and reports; only the scheme if the URL cannot be read."""
    if is_file(url):
        return hidden(url)
    if "://" not in url:
        return "***" if re.search("[:@=]", url) else url
    parsed = _read(url)
    if parsed is None:
        return f"{scheme_of(url)}://***"
    return hidden(_without_secrets(parsed)._replace(password=parsed.password and "***").render_as_string())


def opening_error(url: str, error: Exception) -> StorageError:
    """Return the error to raise `from None` for one of SQLAlchemy, psycopg or Optuna, which may quote the URL."""
    reason = (str(error.__cause__ or error).splitlines() or [""])[0]
    return StorageError(
        f"storage {redacted(url)} cannot be opened ({type(error).__name__}: {reason}). "
        "Check that the path or server exists and may be written"
    )


def _read(url: str) -> URL | None:
    """Return a URL's parts; None if it is no URL, or if its host or database may be a part of the password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return None
    if re.search("[@=]", f"{parsed.host}{parsed.database}"):
        return None
    for value in (parsed.password, *(parsed.query.get(key) for key in SECRET)):
        for secret in (value,) if isinstance(value, str) else value or ():
            hide(secret)
    return parsed


def _without_secrets(parsed: URL) -> URL:
    return parsed._replace(password=None).difference_update_query(SECRET)
