"""Hyperparameter optimisation for fine-tuning transformers: search, folded training, results you can trust."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpo.core.errors import HpoError
    from hpo.core.trainer import Evaluation
    from hpo.execution.optimize import optimize
    from hpo.space.parameters import Categorical, Float, Int
    from hpo.space.search_space import SearchSpace

__version__ = "0.1.0"

# Name -> module: imported when first asked for, so that `import hpo` costs nothing.
_PLACES = {
    "Categorical": "hpo.space.parameters",
    "Evaluation": "hpo.core.trainer",
    "Float": "hpo.space.parameters",
    "HpoError": "hpo.core.errors",
    "Int": "hpo.space.parameters",
    "SearchSpace": "hpo.space.search_space",
    "optimize": "hpo.execution.optimize",
}

__all__ = ["Categorical", "Evaluation", "Float", "HpoError", "Int", "SearchSpace", "optimize"]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'hpo' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
