"""Numbers among the values that users, objectives and storages give."""

from __future__ import annotations

import math
from typing import Any


def is_number(value: Any) -> bool:
    """Return whether a value is a number; a truth value is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def finite_or_none(value: float) -> float | None:
    """Return a number as it is; None if it is infinite or NaN, which JSON does not have."""
    return value if math.isfinite(value) else None
