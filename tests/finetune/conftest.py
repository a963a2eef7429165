from __future__ import annotations

from typing import Any

import pytest

from hpo.finetune.models.loading import load_model


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let arrays load models in float64."""

    def load(*args: Any) -> Any:
        model, head = load_model(*args)
        return model.double(), head

    monkeypatch.setattr("hpo.finetune.setup.load_model", load)
