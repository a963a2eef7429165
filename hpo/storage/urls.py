"""URLs of storages: their scheme, their file, and what is secret in them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hpo.core.errors import StorageError, hidden, hide

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

FILES = ("sqlite", "journal")
POSTGRESQL = ("postgresql", "postgresql+psycopg", "postgres")
SECRET = ("password", "sslpassword")  # what libpq takes beside the URL's own password


def scheme_of(url: str) -> str:
    """Return what comes before `://`."""
    return url.partition("://")[0]


def path_of(url: str) -> str:
    """Return the file of `scheme:///relative` or `scheme:////absolute`."""
    return url.partition("://")[2].partition("?")[0][1:]


def is_file(url: str) -> bool:
    """Return whether a URL names a file, and nothing that only a server has."""
    return scheme_of(url) in FILES and url.partition("://")[2].startswith("/")


def parted(url: str) -> tuple[str, dict[str, str]]:
    """Return a PostgreSQL URL without what is secret in it, its driver named, and the secrets as psycopg takes them.

    Raises:
        StorageError: The URL cannot be read.
    """
    parsed = _read(re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url))
    given = {} if parsed is None else {"password": parsed.password, **parsed.query}
    secrets = {key: str(given[key]) for key in SECRET if given.get(key) is not None}
    if parsed is None or any(isinstance(given.get(key), tuple) for key in SECRET):
        raise StorageError(
            f"storage {redacted(url)} cannot be opened: it is not a URL. Write postgresql://user@host:5432/database, "
            "and in a password %40 for @, %2F for /, %3A for : and %25 for %"
        )
    return _bare(parsed).render_as_string(), secrets


def redacted(url: str) -> str:
    """Return a URL without what is secret in it, for messages and reports; of one that cannot be read, its scheme."""
    if is_file(url):
        return hidden(url)
    if "://" not in url:
        return "***" if re.search("[:@=]", url) else url
    parsed = _read(url)
    if parsed is None:
        return f"{scheme_of(url)}://***"
    return hidden(_bare(parsed)._replace(password=parsed.password and "***").render_as_string())


def cannot_be_opened(url: str, error: Exception) -> StorageError:
    """Return what to raise, `from None`, for what SQLAlchemy, psycopg and the journal raise: the URL stays out."""
    reason = (str(error.__cause__ or error).splitlines() or [""])[0]
    return StorageError(
        f"storage {redacted(url)} cannot be opened ({type(error).__name__}: {reason}). "
        "Check that the path or server exists and may be written"
    )


def _read(url: str) -> URL | None:
    """Return a URL's parts; None where a part of a password could be taken for another, and be shown."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return None
    if re.search("[@=]", f"{parsed.host}{parsed.database}"):
        return None
    for secret in (parsed.password, *(parsed.query.get(key) for key in SECRET)):
        for one in (secret,) if isinstance(secret, str) else secret or ():
            hide(one)
    return parsed


def _bare(parsed: URL) -> URL:
    return parsed._replace(password=None).difference_update_query(SECRET)
