"""How two nested mappings differ, leaf by leaf."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (path, old, new) of every leaf that differs; `settings` and `facts` are left out of the path."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            inner = key if path in ("", "settings", "facts") else f"{path}.{key}"
            yield from differences(old.get(key), new.get(key), inner)
    elif old != new:
        yield path, old, new
