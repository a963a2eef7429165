"""A study on a real PostgreSQL; `conftest.py` starts it."""

import optuna
import pytest

import hpo
from hpo.storage import backends


def test_a_study_is_kept_and_goes_on(postgresql, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = hpo.optimize(lambda params: params["x"], {"x": hpo.Float(0, 1)}, trials=4, storage=postgresql, name="kept")
    before = [trial.params for trial in first.trials]
    again = hpo.optimize(lambda params: params["x"], {"x": hpo.Float(0, 1)}, trials=6, storage=postgresql, name="kept")
    assert [trial.params for trial in again.trials[:4]] == before
    assert len(optuna.load_study(study_name="kept", storage=backends.connect(postgresql)).trials) == 6


def test_a_wrong_password_is_an_error_without_a_password(postgresql):
    with pytest.raises(hpo.HpoError) as caught:
        backends.connect(postgresql.replace("canary", "sparrow"))
    assert "cannot be opened" in str(caught.value)
    assert "sparrow" not in str(caught.value)
