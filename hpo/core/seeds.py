"""Seeds: each random draw has its own, derived from the study's seed and the name of what is drawn."""

from __future__ import annotations

import hashlib


def derived_seed(*parts: int | str) -> int:
    """Return a 32-bit seed from parts such as (study seed, trial number, name of what is drawn)."""
    digest = hashlib.sha256(":".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:4], "big")
