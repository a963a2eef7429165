from __future__ import annotations

import pytest

from hpo.core.errors import ConfigError, HpoError, Problem, StorageError
from hpo.storage import urls


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///hpo.db", "sqlite:///hpo.db"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("postgresql://me:pw@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:p%40w@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:p w@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:p@w@host/db", "postgresql://***"),  # where does the password end?
        ("postgresql://me:p@w/x@host/db", "postgresql://***"),
        ("postgresql://me:pw/db", "postgresql://***"),  # its host was forgotten, or its port is pw
        ("postgresql://m/e:pw@host/db", "postgresql://***"),
        ("sqlite://me:pw@host/db", "sqlite://me:***@host/db"),
        ("sqlite:////data:1/m@il.db", "sqlite:////data:1/m@il.db"),
        ("unknown:///host=h user=me password=pw", "unknown://***"),
        ("unknown:///me:pw@host/db", "unknown://***"),
        ("me:pw@host/db", "***"),
        ("hpo.db", "hpo.db"),
        ("postgresql://me:p/w:x@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("postgresql://:pw@host/db", "postgresql://:***@host/db"),
        ("postgresql://host/db?pass%77ord=pw&sslpassword=pw", "postgresql://host/db"),
        ("postgresql://host/db?user=me&password=pw&sslmode=on", "postgresql://host/db?sslmode=on&user=me"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert urls.redacted(url) == shown


@pytest.mark.parametrize(
    ("url", "bare", "secrets"),
    [
        ("postgresql://me@host/db", "me@host/db", {}),
        ("postgres://me:p%40w@host:5/db?sslmode=on", "me@host:5/db?sslmode=on", {"password": "p@w"}),
        ("postgresql://host/db?user=me&password=pw", "host/db?user=me", {"password": "pw"}),
        ("postgresql://me:a@host/db?password=b", "me@host/db", {"password": "b"}),  # as libpq reads it
        ("postgresql+psycopg:///?service=mine&sslpassword=x", "/?service=mine", {"sslpassword": "x"}),
    ],
)
def test_a_url_is_split_from_its_secrets(url: str, bare: str, secrets: dict[str, str]) -> None:
    assert urls.split_secrets(url) == (f"postgresql+psycopg://{bare}", secrets)


@pytest.mark.parametrize(
    "url",
    ["postgresql://me:c4n4ry@w@host/db", "postgresql://me:c4n4ry/db", "postgresql://h/d?password=c4n4ry&password=x"],
)
def test_a_url_that_cannot_be_split_says_how_to_write_it(url: str) -> None:
    with pytest.raises(StorageError, match="%40 for @") as caught:
        urls.split_secrets(url)
    assert "c4n4ry" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at postgresql://me:p@w@host/db and a@b", "at postgresql://me:***@host/db and a@b"),
        ("'redis://:pw@host'", "'redis://:***@host'"),
        ("host=h PASSWORD = 'p w' port=5", "host=h PASSWORD = *** port=5"),
        ("http://host:80/x, see you", "http://host:80/x, see you"),
        ("postgresql://me:p w@host", "postgresql://me:***@host"),
        ("'redis://host:80': write postgresql://me@host", "'redis://host:80': write postgresql://me@host"),
        ("'redis://host': write to me@host", "'redis://host': write to me@host"),
    ],
)
def test_an_error_hides_passwords_in_any_text(text: str, shown: str) -> None:
    assert str(HpoError(text)) == shown
    assert shown in str(ConfigError("s.yaml", [Problem(("storage",), text)]))
