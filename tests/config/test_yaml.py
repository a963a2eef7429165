from __future__ import annotations

import datetime
import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.config import yaml
from hpo.core.errors import ConfigError


def read(folder: Path, text: str | bytes) -> tuple[dict[str, Any], dict[yaml.SourcePath, int]]:
    path = folder / "file.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return yaml.read(path)


def refused(folder: Path, text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    assert caught.value.source == str(folder / "file.yaml")
    (problem,) = caught.value.problems
    return str(problem)


VALUES = [
    ("1e-5", 1e-5),
    ("1E5", 1e5),
    ("-2.5e+3", -2500.0),
    ("3", 3),
    ("3.0", 3.0),
    ("0x1F", 31),
    (".inf", math.inf),
    ("on", "on"),
    ("yes", "yes"),
    ("No", "No"),
    ("true", True),
    ("False", False),
    ("null", None),
    ("~", None),
    ("", None),
    ("'1e-5'", "1e-5"),
    ('"on"', "on"),
    ("[1, two, 3e-1]", [1, "two", 0.3]),
    ("{a: [true], b: {}}", {"a": [True], "b": {}}),
    ("sqlite:///hpo.db", "sqlite:///hpo.db"),
    ("2020-01-01", datetime.date(2020, 1, 1)),
]


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_values_are_those_of_yaml_1_2_and_plain(tmp_path: Path, text: str, value: Any) -> None:
    raw, _ = read(tmp_path, f"key: {text}\n")
    assert raw == {"key": value}
    assert type(raw["key"]) is type(value)
    given_alone = yaml.scalar(text)
    assert given_alone == value
    assert type(given_alone) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "a: b: c",
        "*x",
        "[&a [x, x], &b [*a, *a], *b]",
        "[1, 2",
        "!!python/name:os.system x",
        "!!str 3",
        "\ta: {",
        "'open",
        "2020-13-01",
        "7" * 5000,
        "[" * 500 + "]" * 500,
    ],
)
def test_a_setting_that_is_not_yaml_is_the_text_itself(text: str) -> None:
    assert yaml.scalar(text) == text


@given(st.dictionaries(st.text("abcdef", min_size=1), st.floats(allow_nan=False) | st.integers() | st.booleans()))
def test_numbers_keep_their_value_and_type(values: dict[str, Any]) -> None:
    for value in values.values():
        shown = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
        text = shown.replace("inf", ".inf")
        assert yaml.scalar(text) == value
        assert type(yaml.scalar(text)) is type(value)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from([v for v, _ in VALUES]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), JSON))
def test_what_is_written_is_read_back_equal(tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    yaml.write(content, path)
    assert repr(yaml.read(path)[0]) == repr(content)


def test_every_key_and_item_has_its_line(tmp_path: Path) -> None:
    text = "# comment\nname: x\ndata:\n  train: a\n  where: {source: b,\n    kind: c}\nlist:\n- 1\n- k: 2\n"
    _, lines = read(tmp_path, text)
    assert lines == {
        ("name",): 2,
        ("data",): 3,
        ("data", "train"): 4,
        ("data", "where"): 5,
        ("data", "where", "source"): 5,
        ("data", "where", "kind"): 6,
        ("list",): 7,
        ("list", 0): 8,
        ("list", 1): 9,
        ("list", 1, "k"): 9,
    }


@pytest.mark.parametrize(
    ("path", "line"), [(("a", "b"), 2), (("a", "b", "low"), 2), (("a", "c"), 1), (("z",), None), ((), None)]
)
def test_a_value_without_a_line_has_that_of_what_contains_it(path: yaml.SourcePath, line: int | None) -> None:
    assert yaml.line_of(path, {("a",): 1, ("a", "b"): 2}) == line


BOMB = "a: &a [x, x]\n" + "\n".join(
    f"{new}: &{new} [*{old}, *{old}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: is not valid YAML: found duplicate key"),
        ("d:\n  x: 1\n  x: 2\n", "line 3: is not valid YAML: found duplicate key"),
        (BOMB, "line 2: uses the alias *a; write the value out"),
        ("base: &b {x: 1}\nuse:\n  y: *b\n", "line 3: uses the alias *b"),
        ("base: &b {x: 1}\nuse:\n  <<: *b\n", "line 3: has the merge key <<; write the keys out"),
        ("use:\n  <<: {x: 1}\n", "line 2: has the merge key <<"),
        ("a: 1\nb: !mine 3\n", "line 2: has the tag !mine; leave it out"),
        (
            "a: !!python/object/apply:os.mkdir [x]\n",
            "line 1: has the tag tag:yaml.org,2002:python/object/apply:os.mkdir",
        ),
        ("%YAML 1.1\n---\na: yes\n", "line 2: has a %YAML directive"),
        ("a: 1\nb: {x: 1, 2: 3}\n", "line 2: has 2, which is not text, as a key; write it in quotes"),
        ("a:\n- null: 3\n", "line 2: has None, which is not text, as a key"),
        ("a: 2020-13-01\n", "is not valid YAML: month must be in 1..12"),
        ("a: 1\nb: " + "7" * 5000, "line 2: has a number of 5000 digits"),
        ("b: -0x" + "f" * 5000, "line 1: has a number of 5003 digits"),
        ("a: |\n" + "  text\n" * 20_000, "is larger than 131,072 bytes"),
        ("a: 1\n\tb: 2\n", "line 2: is not valid YAML"),
        ("a: [1, 2\nb: 3\n", "line 2: is not valid YAML"),
        ("a: 1\nb: c: d\n", "line 2: is not valid YAML: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2\n", "line 2: is not valid YAML"),
        ("a: \x00\n", "is not valid YAML"),
        ("a: 1\n? [x, y]\n: 2\n", "line 2: has a list or a mapping as a key"),
        ("a: " + "[" * 700 + "]" * 700, "line 1: is nested more than 32 levels deep"),
        ("- 1\n- 2\n", "must be a mapping"),
        ("just text", "must be a mapping"),
        ("", "must be a mapping"),
        (b"a: caf\xe9\n", "is not UTF-8 text (byte 6)"),
    ],
)
def test_what_is_not_a_strict_mapping_is_refused_with_its_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    assert refused(tmp_path, text).startswith(said)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    assert read(tmp_path, b"\xef\xbb\xbfa: 1\n")[0] == {"a": 1}


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read_is_said_to_be_so(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        yaml.read(tmp_path / name)


LEVELS = 10_000


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: " + "[" * LEVELS + "]" * LEVELS, 1),
        ("a: " + "[" * LEVELS, 1),
        ("a: " + "{a: " * LEVELS + "1" + "}" * LEVELS, 1),
        ("a:\n" + " [\n" * LEVELS + " ]\n" * LEVELS, 33),  # the mapping is the first level
        ("a:\n  " + "- " * LEVELS + "1", 2),
        ("".join(" " * depth + "a:\n" for depth in range(400)), 33),
    ],
)
def test_deep_nesting_is_refused_with_its_line_and_read_no_further(tmp_path: Path, text: str, line: int) -> None:
    began = time.process_time()
    assert refused(tmp_path, text) == f"line {line}: is nested more than 32 levels deep; a study needs fewer"
    assert yaml.scalar(text) == text
    assert time.process_time() - began < 5  # reading all levels would take minutes


@pytest.mark.parametrize("levels", [31, 32])
def test_nesting_up_to_the_limit_is_read(tmp_path: Path, levels: int) -> None:
    text = "a: " + "[" * levels + "]" * levels
    if levels == 31:
        value = read(tmp_path, text)[0]["a"]
        for _ in range(levels):
            (value,) = value or [None]
        assert value is None
    else:
        refused(tmp_path, text)
