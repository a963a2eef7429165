"""The choice of a way of decoding: what is chosen, what is stored, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest

from hpo.analysis import decoding
from hpo.analysis.confirm_generated import with_texts
from hpo.config.schema import Decoding, GenerateConfig
from hpo.storage.snapshot import DECODING, read
from hpo.tasks.language.predictions import TextPredictions

EXPECTED = ["the red cat sat", "the old dog ran", "a big fish swam", "a wet bird flew"]
ROWS = np.array([0, 1, 3])
LISTED = GenerateConfig(num_beams=[4, 1, 2], length_penalty=[0.6, 1.0])
WAYS = (Decoding(4, 0.6), Decoding(4, 1.0), Decoding(1, 1.0), Decoding(2, 0.6), Decoding(2, 1.0))


class Array:
    """An array whose models write so many of the expected texts in each way of decoding."""

    def __init__(self, right: dict[Decoding, int], generate: GenerateConfig = LISTED) -> None:
        self.setup = SimpleNamespace(config=SimpleNamespace(generate=generate), sampled=lambda split: ROWS)
        self.right, self.set, self.calls = right, list[tuple[str, Decoding]](), list[Decoding]()

    def written(self, folder: Path, split: str, rows: Any, decodings: Sequence[Decoding]) -> Iterator[list[str]]:
        assert split == "validation"
        for way in decodings:
            self.calls.append(way)
            yield [EXPECTED[row] if place < self.right[way] else "no" for place, row in enumerate(rows)]

    def set_decoding(self, folder: Path, way: Decoding) -> None:
        self.set.append((folder.name, way))


def predictions() -> TextPredictions:
    zeros = np.zeros(len(EXPECTED))
    return TextPredictions("seq2seq", zeros, zeros, zeros, zeros, EXPECTED, EXPECTED)


def choice(array: Any, study: optuna.Study | None = None) -> dict[str, Any]:
    found = decoding.choice_of(study or optuna.create_study(), array, 3, Path("trials/3"), predictions)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("right", "chosen"),
    [
        ([0, 3, 1, 2, 0], Decoding(4, 1.0)),
        ([3, 3, 3, 3, 3], Decoding(1, 1.0)),
        ([3, 3, 2, 3, 3], Decoding(2, 0.6)),
        ([3, 3, 0, 2, 2], Decoding(4, 0.6)),
    ],
    ids=["the best", "fewer beams", "fewer beams of the best, the first penalty", "the first penalty"],
)
def test_of_equal_scores_the_cheaper_way_is_chosen(right: list[int], chosen: Decoding) -> None:
    array = Array(dict(zip(WAYS, right, strict=True)))
    found = choice(array)
    assert array.calls == list(WAYS)
    assert decoding.in_use(LISTED, found) == chosen
    assert array.set == [("3", chosen)]
    assert found["rows"] == 3


def test_a_choice_is_stored_and_made_once() -> None:
    study, array = optuna.create_study(), Array(dict(zip(WAYS, [0, 1, 2, 3, 0], strict=True)))
    first = choice(array, study)
    assert choice(array, study) == first == read(study).attrs[f"{DECODING}:3"]
    assert len(array.calls) == len(WAYS)
    assert array.set == [("3", Decoding(2, 0.6))] * 2  # weights that were trained again have it too
    study.set_user_attr(f"{DECODING}:3", "of another program")
    assert choice(array, study)["chosen"] == first["chosen"] | {"seconds": pytest.approx(0, abs=1)}


def test_one_way_is_no_choice() -> None:
    array: Any = Array({}, GenerateConfig(num_beams=[2, 2], length_penalty=1.5))
    assert decoding.choice_of(optuna.create_study(), array, 3, Path("3"), predictions) is None
    assert decoding.in_use(array.setup.config.generate, None) == Decoding(2, 1.5)
    assert array.set == []


def test_with_one_beam_no_length_penalty_is_varied() -> None:
    assert LISTED.decodings == WAYS
    assert GenerateConfig(num_beams=[1, 4], length_penalty=2.0).decodings == (Decoding(1, 1.0), Decoding(4, 2.0))
    assert GenerateConfig().decodings == (Decoding(1, 1.0),)


def test_a_file_without_lists_is_stored_as_before() -> None:
    stored = {"rows": 200, "max_new_tokens": 64, "num_beams": 4, "length_penalty": 0.6}
    assert GenerateConfig(num_beams=4, length_penalty=0.6).model_dump(mode="json") == stored


def test_what_was_tried_is_said_with_rows_seconds_and_ties() -> None:
    found = choice(Array(dict(zip(WAYS, [3, 3, 2, 1, 1], strict=True)))) | {"seconds": 75.0}
    best, default = decoding.sentences([found, found | {"trial": 0}], untuned=True)
    assert best.startswith(
        "Trial 3 decodes with num_beams 4, length_penalty 0.6: of 5 ways that were tried on 3 validation examples, in "
        "1 min 15 s, it has the best chrf, 100, which the choice flatters; 1 more scores the same; the model untuned"
    )
    assert "untuned" not in default
    ((title, heads, rows), _) = decoding.tables([found, found])
    assert title == "Decoding of trial 3, on 3 validation examples"
    assert heads == ["num_beams", "length_penalty", "chrf", "seconds", ""]
    assert [row[:2] for row in rows] == [["4", "0.6"], ["4", "1"], ["1", "-"], ["2", "0.6"], ["2", "1"]]
    assert [row[-1] for row in rows] == ["chosen", "", "", "", ""]


def test_the_texts_of_a_confirmation_are_generated_once_for_a_way_of_decoding(tmp_path: Path) -> None:
    array: Any = Array({**dict.fromkeys(WAYS, 0), WAYS[2]: 4})
    array.written = lambda folder, split, rows, ways: Array.written(array, folder, "validation", rows, ways)
    path = tmp_path / "outputs" / "3.json"
    for way, calls, texts in [(WAYS[2], 1, EXPECTED), (WAYS[2], 1, EXPECTED), (WAYS[0], 2, ["no"] * 4)]:
        found = with_texts(predictions(), array, Path("trials/3"), way, path)
        assert (len(array.calls), list(found.generated)) == (calls, texts)
    path.write_text("half of a fi")
    assert list(with_texts(predictions(), array, Path("trials/3"), WAYS[2], path).generated) == EXPECTED
