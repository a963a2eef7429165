"""Class weights: functions of the number of examples in each class, and the dict that names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def _balanced(counts: Array) -> Array:
    """Return n / (k * count) as scikit-learn does, k being the classes with examples; the mean over examples is 1."""
    share = counts / counts.sum()
    return np.where(counts > 0, 1 / (np.count_nonzero(counts) * np.where(counts > 0, share, 1.0)), 1.0)


CLASS_WEIGHTS: dict[str, Callable[[Array], Array]] = {
    "none": lambda counts: np.ones(len(counts)),
    "balanced": _balanced,
}
"""Name -> function from the examples of each class, [classes], to the weights of their losses, [classes]."""
