from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from hpo.core.errors import DataError
from hpo.core.paths import absolute, expand, locate, verify


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The working folder, and the study's."""
    here, study = tmp_path / "here", tmp_path / "study"
    for folder in (here, study):
        folder.mkdir()
    monkeypatch.chdir(here)
    return here, study


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed package that must not be imported."""
    inside = tmp_path / "site" / "some_rows" / "data"
    inside.mkdir(parents=True)
    (inside.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    (inside / "rows.csv").write_text("a\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return "some_rows"


def test_the_working_folder_comes_before_the_studys(folders: tuple[Path, Path]) -> None:
    here, study = folders
    (study / "a.csv").touch()
    assert locate("a.csv", study) == study / "a.csv"
    (here / "a.csv").touch()
    assert locate("a.csv", study) == Path("a.csv")
    assert locate(str(study / "a.csv"), here) == study / "a.csv"
    assert locate("b.csv", study) is None


def test_a_name_is_made_absolute_where_it_is_found_and_else_kept(folders: tuple[Path, Path]) -> None:
    here, study = folders
    (study / "a.csv").touch()
    (study / "part1.csv").touch()
    assert absolute("a.csv", study) == str(study / "a.csv")
    assert absolute("part*.csv", study) == str(study / "part*.csv")
    (here / "a.csv").symlink_to(study / "part1.csv")
    assert absolute("a.csv", study) == str(here / "a.csv")
    for name in ("bert-base-uncased", "package:some/model", str(study / "*.csv"), "no*.csv"):
        assert absolute(name, study) == name


def test_the_home_folder_is_understood(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    here, study = folders
    monkeypatch.setenv("HOME", str(study))
    (study / "a.csv").touch()
    assert locate("~/a.csv", here) == study / "a.csv"


def test_a_file_of_a_package_is_found_without_importing_it(package: str, tmp_path: Path) -> None:
    found = locate(f"package:{package}/data/rows.csv", tmp_path)
    assert found is not None
    assert found.read_text() == "a\n"
    assert package not in sys.modules


@pytest.mark.parametrize(
    "name", ["no_such_package_at_all/x", "some_rows/data/none.csv", "/x", "no.such.parent/x", "sys/x"]
)
def test_what_a_package_has_not_is_not_found(package: str, tmp_path: Path, name: str) -> None:
    assert locate(f"package:{name}", tmp_path) is None


def test_patterns_and_names_expand_in_the_order_given(folders: tuple[Path, Path]) -> None:
    here, study = folders
    for name in ("c.csv", "b.csv", "x.tsv"):
        (study / name).touch()
    assert expand(["x.tsv", "*.csv"], study) == [study / name for name in ("x.tsv", "b.csv", "c.csv")]
    assert expand(str(study / "*.csv"), here) == [study / "b.csv", study / "c.csv"]
    (here / "z.csv").touch()
    assert expand("*.csv", study) == [Path("z.csv")]


def test_all_that_is_missing_is_named_with_the_next_step(folders: tuple[Path, Path]) -> None:
    here, study = folders
    with pytest.raises(DataError) as caught:
        expand(["a.csv", "*.tsv"], study)
    for said in ("a.csv", "*.tsv", str(here), str(study)):
        assert said in str(caught.value)
    with pytest.raises(DataError, match="install the package no-such-rows"):
        expand("package:no_such_rows/x.csv", study)


def test_a_checksum_must_hold(folders: tuple[Path, Path]) -> None:
    _, study = folders
    for name in ("a.csv", "b.csv"):
        (study / name).write_text("rows")
    right = hashlib.sha256(b"rows").hexdigest()
    verify({"a.csv": right, "b.csv": right.upper(), "*.csv": right}, study)
    with pytest.raises(DataError, match=rf"b\.csv has SHA-256 {right}, not 0000"):
        verify({"a.csv": right, "b.csv": "0" * 64}, study)
    with pytest.raises(DataError, match=r"no file c\.csv"):
        verify({"c.csv": right}, study)
    with pytest.raises(DataError, match="is a folder"):
        verify({str(study): right}, study)
