"""Optuna's own conformance suites, against the storages that hpo opens and the samplers that it wraps."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.search_space import intersection_search_space
from optuna.storages import BaseStorage, RDBStorage
from optuna.testing import pytest_samplers
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import FrozenTrial

from hpo.search.samplers import SAMPLERS, TrialSeededSampler
from hpo.storage import backends

# ---------------------------------------------------------------- storages


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an SQLite file with its tables made, which takes longer than a test does."""
    path = tmp_path_factory.mktemp("sqlite") / "empty.db"
    kept = backends.connect(f"sqlite:///{path}")
    assert isinstance(kept, RDBStorage)
    kept.engine.dispose()
    return path


class TestSQLite(StorageTestCase):
    @pytest.fixture
    def storage(self, empty_database: Path, tmp_path: Path) -> BaseStorage:
        shutil.copy(empty_database, tmp_path / "hpo.db")
        return backends.connect(f"sqlite:///{tmp_path}/hpo.db")


class TestJournal(StorageTestCase):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> BaseStorage:
        return backends.connect(f"journal:///{tmp_path}/hpo.log")


@pytest.fixture(scope="module")
def conformance_database(postgresql_server: str) -> str:
    import psycopg

    with psycopg.connect(f"{postgresql_server}postgres", autocommit=True) as connection:
        connection.execute("CREATE DATABASE conformance")
    return f"{postgresql_server}conformance"


class TestPostgreSQL(StorageTestCase):
    @pytest.fixture
    def storage(self, conformance_database: str) -> Iterator[BaseStorage]:
        kept = backends.connect(conformance_database)
        assert isinstance(kept, RDBStorage)
        yield kept
        kept.remove_session()
        with kept.engine.begin() as connection:
            connection.exec_driver_sql("TRUNCATE studies CASCADE")
        kept.engine.dispose()


# ---------------------------------------------------------------- samplers


class AnySpace:
    """A search space without conditions, as `TrialSeededSampler` asks one."""

    def __init__(self, distributions: dict[str, BaseDistribution]) -> None:
        self._distributions = distributions
        self.parameters: dict[str, Any] = {}  # that may have a prior

    def distributions(self) -> dict[str, BaseDistribution]:
        return self._distributions

    def active(self, name: str, params: Any) -> bool:
        return True

    def only_value(self, name: str) -> Any:
        return self._distributions[name].to_external_repr(0 if hasattr(self._distributions[name], "choices") else 1)


class Following(TrialSeededSampler):
    """The wrapper as it is, but that its space is what the suite's trials have: a study file's does not change."""

    def __init__(self, name: str) -> None:
        super().__init__(name, {}, AnySpace({}), 0)  # type: ignore[arg-type]

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return intersection_search_space(study.get_trials(deepcopy=False))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        self.space = AnySpace(search_space)  # type: ignore[assignment]
        return super().sample_relative(study, trial, search_space)


@pytest.fixture(autouse=True)
def no_redraws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw a duplicate twice, not eleven times: the suite's spaces have as few as three points."""
    monkeypatch.setattr("hpo.search.samplers.MAX_REDRAWS", 1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SAMPLERS)
class TestSamplers(pytest_samplers.BasicSamplerTestCase, pytest_samplers.RelativeSamplerTestCase):
    @pytest.fixture
    def sampler(self, name: str) -> Callable[[], BaseSampler]:
        return lambda: Following(name)


class TestBesideTheSpace(pytest_samplers.MultiObjectiveSamplerTestCase):
    """What is drawn beside the space is drawn the same way for every sampler.

    `SingleOnlySamplerTestCase` does not apply: hpo's studies have one direction, so that no sampler has to refuse two.
    """

    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: Following("tpe")
