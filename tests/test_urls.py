from __future__ import annotations

import pytest

from hpo import urls


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///hpo.db", "sqlite:///hpo.db"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("postgresql://me:pw@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:p@w@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:p/w:x@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("postgresql://:pw@host/db", "postgresql://:***@host/db"),
        ("postgresql://host/db?user=me&password=pw&sslmode=on", "postgresql://host/db?user=me&password=***&sslmode=on"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert urls.redacted(url) == shown
