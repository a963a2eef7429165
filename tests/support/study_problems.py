"""What is wrong in a study that is given as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpo.config import study_spec
from hpo.core.errors import ConfigError

BUILT_IN = {"name": "s", "model": "m", "data": {"train": "rows.csv"}}
CUSTOM = {"name": "s", "objective": "train:objective", "space": {"x": [1, 2]}}


def problems(raw: Mapping[str, Any], folder: Path = Path(), *, look: bool = False) -> dict[str, str]:
    """Path -> message of every problem; none for a valid study."""
    try:
        study_spec.build(raw, "study.yaml", folder, look=look)
    except ConfigError as error:
        return {".".join(map(str, problem.path)): problem.message for problem in error.problems}
    return {}
