import json

import numpy as np
import pandas as pd
import pytest
import tiny
from data_files import GOOD, config, frame, load, texts

from hpo.core.errors import DataError
from hpo.core.settings import Mark, marked
from hpo.tasks import loading
from hpo.tasks.classification.keys import TextKeys

# ---------------------------------------------------------------- formats


def test_every_format_gives_the_same_rows(tmp_path):
    table = pd.DataFrame(tiny.rows(60), columns=["text", "label"])
    table.to_csv(tmp_path / "rows.csv", index=False)
    table.to_csv(tmp_path / "rows.tsv", index=False, sep="\t")
    table.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    table.to_json(tmp_path / "rows.json", orient="records")
    table.to_parquet(tmp_path / "rows.parquet")
    digests = {load(tmp_path, train=f"rows.{kind}").digest for kind in ("csv", "tsv", "jsonl", "json", "parquet")}
    assert len(digests) == 1


def test_files_and_patterns_are_joined(tmp_path):
    for i in range(3):
        tiny.write_csv(tmp_path / f"part{i}.csv", 20, seed=i)
    joined = load(tmp_path, train="part*.csv", validation=10, test=10)
    assert [len(joined.splits[name]) for name in loading.SPLITS] == [40, 10, 10]


def test_words_that_pandas_takes_for_missing_are_texts(tmp_path):
    frame(tmp_path, text=["NA", "null", "None", *(f"x{i}" for i in range(37))], label=["a", "b"] * 20)
    texts = {t for s in load(tmp_path).splits.values() for t in s.texts}
    assert {"NA", "null", "None"} <= texts


def test_only_matching_rows_are_kept_and_a_sample_is_seeded(tmp_path):
    frame(tmp_path, text=[f"t{i}" for i in range(100)], label=["a", "b"] * 50, source=["x"] * 60 + ["y"] * 40)
    kept = load(tmp_path, where={"source": "x"}, rows=40)
    texts = sorted(t for s in kept.splits.values() for t in s.texts)
    assert len(texts) == 40
    assert all(int(t[1:]) < 60 for t in texts)
    assert kept.digest == load(tmp_path, where={"source": "x"}, rows=40).digest
    assert kept.digest != load(tmp_path, where={"source": "x"}, rows=40, seed=1).digest


# ---------------------------------------------------------------- tasks and labels


def test_labels_that_are_numbers_are_sorted_as_numbers(tmp_path):
    frame(tmp_path, text=[f"t{i}" for i in range(60)], label=[10, 9, 2] * 20)
    assert load(tmp_path).labels == ("2", "9", "10")


@pytest.mark.parametrize(
    ("labels", "task"),
    [
        (["x", "y"], "single_label"),
        (["0", "1"], "single_label"),
        (["0.5", "2.25"], "regression"),
        ([1, 3], "single_label"),
    ],
)
def test_the_task_is_read_off_the_labels(tmp_path, labels, task):
    frame(tmp_path, text=[f"t{i}" for i in range(40)], label=labels * 20)
    assert load(tmp_path).task == task


def test_several_columns_or_lists_are_many_labels(tmp_path):
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (40, 2))
    frame(tmp_path, text=[f"t{i}" for i in range(40)], hot=targets[:, 0], wet=targets[:, 1])
    columns = load(tmp_path, label=["hot", "wet"])
    names = [[name for name, on in zip(("hot", "wet"), row, strict=True) if on] for row in targets]
    lines = [json.dumps({"text": f"t{i}", "label": row}) for i, row in enumerate(names)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    lists = load(tmp_path, train="rows.jsonl")
    assert columns.task == lists.task == "multi_label"
    assert columns.labels == lists.labels == ("hot", "wet")
    by_text = [
        {t: tuple(y) for s in d.splits.values() for t, y in zip(s.texts, s.targets, strict=True)}
        for d in (columns, lists)
    ]
    assert by_text[0] == by_text[1] == {f"t{i}": tuple(map(float, row)) for i, row in enumerate(targets)}


def test_pairs_keep_both_texts(tmp_path):
    frame(tmp_path, text=[f"t{i}" for i in range(40)], other=[f"o{i}" for i in range(40)], label=["a", "b"] * 20)
    split = load(tmp_path, text_pair="other").splits["train"]
    assert [t[1:] for t in split.texts] == [o[1:] for o in split.pairs]


# ---------------------------------------------------------------- splits


def test_declared_splits_are_taken_as_they_are_and_leaks_are_noted(tmp_path):
    for name, count in (("train", 40), ("validation", 20), ("test", 10)):
        tiny.write_csv(tmp_path / f"{name}.csv", count, seed=0)
    found = load(tmp_path, validation="validation.csv", test="test.csv")
    assert [len(found.splits[name]) for name in loading.SPLITS] == [40, 20, 10]
    assert "20 of 20 rows of validation are in train too" in found.notes[0]
    assert "10 of 10 rows of test are in validation too" in found.notes[2]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("columns", "settings", "says"),
    [
        (GOOD, {"text": "sentence"}, "no column 'sentence'; it has text, label"),
        (GOOD, {"train": "nowhere.csv"}, "there is no file nowhere.csv"),
        (GOOD, {"train": "no*.csv"}, "there is no file no"),
        (GOOD, {"validation": 40}, "validation: 40 asks for 40 rows"),
        (GOOD, {"validation": 0.001}, "validation: 0.001 asks for 0 rows"),
        (GOOD, {"where": {"label": "z"}}, "no row has label = 'z'; the column has a, b"),
        ({**GOOD, "label": ["a"] * 40}, {}, "every row of train has the label 'a'"),
        (
            {**GOOD, "label": ["a", ""] * 20},
            {},
            "train: column 'label' has no label in 20 rows, first in row 2 of .*train.csv",
        ),
        ({**GOOD, "label": [f"l{i}" for i in range(40)]}, {}, "40 different labels in 40 rows"),
    ],
)
def test_bad_input_is_named(tmp_path, columns, settings, says):
    frame(tmp_path, **columns)
    with pytest.raises(DataError, match=says.replace("(", r"\(")):
        load(tmp_path, **settings)


def test_a_label_seen_only_in_evaluation_is_named_with_its_split(tmp_path):
    frame(tmp_path, **GOOD)
    frame(tmp_path, "test.csv", text=["x", "y"], label=["a", "zebra"])
    with pytest.raises(DataError, match="test has the label 'zebra', which train has not; train has 'a', 'b'"):
        load(tmp_path, test="test.csv")


def test_an_empty_split_is_named(tmp_path):
    frame(tmp_path, **GOOD)
    (tmp_path / "test.csv").write_text("text,label\n")
    with pytest.raises(DataError, match=r"test\.csv has no rows"):
        load(tmp_path, test="test.csv")


def test_rows_that_are_all_one_make_no_splits(tmp_path):
    frame(tmp_path, text=["same"] * 40, label=["a", "b"] * 20)
    with pytest.raises(DataError, match="split has no rows: rows with the same text stay in one split"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("train.csv", b"text;label\na;b\n", r'look separated by ";": set data: \{separator: ";"\}'),
        ("train.csv", b"text\tlabel\na\tb\n", r'look separated by "\\t": set data: \{separator: "\\t"\}'),
        ("train.csv", "text,label\nfine,good\n".encode("utf-16"), "iconv -f utf-16 -t utf-8"),
        ("train.json", b'[{"text": "a"}, 3]', "element 2 of its array is no object"),
        ("train.json", b'[{"text": "a"},\n', "line 2: not JSON"),
    ],
)
def test_what_a_file_really_is_is_said(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        load(tmp_path, train=name)


@pytest.mark.parametrize("test", [1, 0.025, "test.csv"])
def test_a_test_split_of_one_row_is_refused_as_it_has_no_interval(tmp_path, test):
    frame(tmp_path, **GOOD)
    (tmp_path / "test.csv").write_text("text,label\nfine,a\n")
    with pytest.raises(DataError, match="the test split has 1 row, and two or more are needed"):
        load(tmp_path, test=test)


@pytest.mark.parametrize(
    ("name", "raw", "says"),
    [
        ("rows.csv", b'text,label\n"two\nlines",a\ncaf\xe9,b\n', "line 4 has the byte 0xe9"),
        ("rows.csv", b'text,label\r\n"two\r\nlines",a\r\ncaf\xe9,b\r\n', "line 4 has the byte 0xe9"),
        ("rows.csv", b"text,label\rfine,a\rcaf\xe9,b\r", "line 3 has the byte 0xe9"),
        ("rows.csv", b"\xef\xbb\xbftext,label\nfine,a\n\xe9,b\n", "line 3 has the byte 0xe9"),
        ("rows.csv", b"caf\xe9,label\n", "line 1 has the byte 0xe9"),
        ("rows.tsv", b'text\tlabel\n"two\nlines"\ta\ncaf\xe9\tb\n', "line 4 has the byte 0xe9"),
        ("rows.jsonl", b'{"text": "a"}\n\n{"text": "caf\xe9"}\n', "line 3 has the byte 0xe9"),
        ("rows.csv", b'text,label\n"two\nlines",a\n\nx,b\ny,b,c\n', "line 6: 3 fields, not 2"),
        ("rows.csv", b'text,label\r\n5" pipe,a\r\n"two\r\nlines",a\r\ny,b,c\r\n', "line 5: 3 fields, not 2"),
        ("rows.csv", b'text,label\n"' + b"x\n" * 70000 + b'",b\ny,b,c\n', "line 70003: 3 fields, not 2"),
        ("rows.tsv", b'text\tlabel\n"two\nlines"\ta\ny\tb\tc\n', "line 4: 3 fields, not 2"),
        ("rows.csv", b'text,label\n"two\nlines",a\n"y,b\nz,a\n', 'line 4: a " opens a text here'),
        ("rows.jsonl", b'{"text": "a"}\n\n{"text": \n', "line 3: not a JSON object"),
    ],
)
def test_what_is_malformed_is_named_by_the_line_that_an_editor_shows(tmp_path, name, raw, says):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=says):
        load(tmp_path, train=name)


def test_a_number_that_is_none_is_named(tmp_path):
    frame(tmp_path, text=[f"t{i}" for i in range(40)], label=["0.5", "high"] * 20)
    with pytest.raises(DataError, match=r"label 'high' in row .* is not a number"):
        load(tmp_path, task="regression")


def test_a_hub_data_set_without_network_gets_one_error_with_the_way_on(tmp_path):
    with pytest.raises(DataError, match=r"cannot be had from the Hub.*local files"):
        load(tmp_path, dataset="nobody/nothing-at-all", train="train")


def test_rows_with_more_fields_than_the_header_are_refused(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + "fine,good,\ndull,bad,\n" * 20)
    with pytest.raises(DataError, match="more fields in its rows than in its header"):
        load(tmp_path)


def test_a_line_of_json_may_hold_any_separator_of_unicode(tmp_path):
    lines = [json.dumps({"text": f"a\u2028b{i}", "label": "xy"[i % 2]}, ensure_ascii=False) for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert sum(len(split) for split in load(tmp_path, train="rows.jsonl").splits.values()) == 40


# ---------------------------------------------------------------- options that earlier versions did not have


@pytest.mark.parametrize(
    ("settings", "task", "seed", "digest"),
    [
        ({"train": "train.csv"}, "auto", 0, "4f042ecf2186b6a4"),
        ({"train": "train.csv", "test": "test.csv", "validation": 0.2, "rows": 60}, "auto", 3, "2be9bb150a7d1ddf"),
        ({"train": "rows.csv", "text_pair": "other", "where": {"s": "p"}}, "auto", 1, "c0de372ae59cac4a"),
        ({"train": "rows.csv", "label": "score", "validation": 12, "test": 12}, "regression", 2, "e14b8043b9f432ef"),
        ({"train": ["rows.csv", "rows.csv"], "label": ["x", "y"]}, "auto", 0, "5b611f40835edf23"),
    ],
)
def test_splits_are_to_the_row_those_of_earlier_versions(tmp_path, settings, task, seed, digest):
    tiny.write_csv(tmp_path / "train.csv", 120)
    tiny.write_csv(tmp_path / "test.csv", 20, seed=1)
    i = np.arange(60)
    frame(
        tmp_path,
        "rows.csv",
        text=[f"t{k}" for k in i % 37],
        other=[f"o{k}" for k in i % 7],
        label=[["a", "b", "c"][k] for k in i % 3],
        score=[str(float(k) / 7) for k in i],
        x=i % 2,
        y=(i % 3 == 0).astype(int),
        s=["p" if k < 50 else "q" for k in i],
    )
    assert load(tmp_path, task, seed, **settings).digest.startswith(digest)


def test_a_study_without_the_newer_options_is_stored_as_earlier_versions_did():
    assert set(config().model_dump(mode="json")) == {
        *("dataset", "subset", "train", "validation", "test", "text", "text_pair", "label", "where", "rows")
    }
    used = config(
        group="g", unlabelled="drop", normalize_labels=True, encoding="cp1252", separator=";", benchmark="glue/rte"
    )
    stored = json.loads(json.dumps(used.model_dump(mode="json")))
    assert TextKeys.model_validate(stored) == used
    assert set(marked(TextKeys, Mark.NEWER)) <= set(stored)


def test_rows_without_a_label_are_left_out_if_the_study_says_so_and_counted(tmp_path):
    frame(tmp_path, text=[f"t{i}" for i in range(60)], label=["a", "b", ""] * 20)
    frame(tmp_path, "test.csv", text=["x", "y", "z"], label=["", "a", "b"])
    found = load(tmp_path, test="test.csv", unlabelled="drop")
    assert texts(found) == {f"t{i}" for i in range(60) if i % 3 < 2} | {"y", "z"}
    assert (
        found.notes[0] == f"20 of 60 rows of train have no label and are left out, first row 3 of {tmp_path}/train.csv"
    )
    assert found.notes[1].startswith("1 of 3 rows of test have no label and are left out, first row 1 of ")
    with pytest.raises(DataError, match=r"or leave them out with data: {unlabelled: drop}"):
        load(tmp_path, test="test.csv")
    frame(tmp_path, "test.csv", text=["x", "y"], label=["", ""])
    with pytest.raises(DataError, match="no row of test has a label"):
        load(tmp_path, test="test.csv", unlabelled="drop")


def test_a_row_that_lacks_one_of_several_labels_is_left_out(tmp_path):
    frame(tmp_path, text=[f"t{i}" for i in range(40)], x=[1, 0] * 20, y=["", "1", "0", "1"] * 10)
    assert len(texts(load(tmp_path, label=["x", "y"], unlabelled="drop"))) == 30


def test_labels_that_differ_in_case_or_blanks_become_one(tmp_path):
    labels = ["Very good", "very  good ", "BAD", "bad"] * 15
    frame(tmp_path, text=[f"t{i}" for i in range(60)], label=labels)
    found = load(tmp_path, normalize_labels=True)
    assert found.labels == ("bad", "very good")
    assert found.notes[:2] == (
        "'BAD', 'bad' are one label, 'bad'",
        "'Very good', 'very  good ' are one label, 'very good'",
    )
    assert len(load(tmp_path).labels) == 4
    lines = [json.dumps({"text": f"t{i}", "label": ["A", " b"][: 1 + i % 2]}) for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    assert load(tmp_path, train="rows.jsonl", normalize_labels=True).labels == ("a", "b")


def test_a_label_of_blanks_is_none_once_labels_are_normalized(tmp_path):
    frame(tmp_path, text=[f"t{i}" for i in range(40)], label=["a", "b", "c", " "] * 10)
    assert " " in load(tmp_path).labels
    with pytest.raises(DataError, match="has no label in 10 rows"):
        load(tmp_path, normalize_labels=True)
    assert load(tmp_path, normalize_labels=True, unlabelled="drop").labels == ("a", "b", "c")


def test_a_label_of_another_spelling_in_the_test_split_leads_to_normalize_labels(tmp_path):
    frame(tmp_path, **GOOD)
    frame(tmp_path, "test.csv", text=["x", "y"], label=["A ", "b"])
    with pytest.raises(DataError, match=r"differ only in case or blanks: set data: {normalize_labels: true}"):
        load(tmp_path, test="test.csv")
    assert load(tmp_path, test="test.csv", normalize_labels=True).labels == ("a", "b")


def test_a_file_and_its_row_are_named_after_sampling_and_splitting(tmp_path):
    frame(tmp_path, "one.csv", text=[f"t{i}" for i in range(40)], x=[0, 1] * 20)
    frame(tmp_path, "two.csv", text=[f"u{i}" for i in range(40)], x=[0] * 20 + [7] + [1] * 19)
    with pytest.raises(DataError, match=r"column 'x' has '7' in row 21 of .*two\.csv; write 0 or 1"):
        load(tmp_path, train=["one.csv", "two.csv"], label=["x"])


def test_groups_that_given_files_share_are_noted(tmp_path):
    frame(tmp_path, **GOOD, who=[f"g{i // 2}" for i in range(40)])
    frame(tmp_path, "test.csv", text=["x", "y", "z"], label=["a", "b", "a"], who=["g3", "new", "g3"])
    assert any(
        note.startswith("1 of 2 groups of test are in ") and "e.g. 'g3'" in note
        for note in load(tmp_path, test="test.csv", group="who").notes
    )


def test_a_row_without_a_group_is_refused(tmp_path):
    frame(tmp_path, **GOOD, who=["g"] * 20 + [""] + ["h"] * 19)
    with pytest.raises(DataError, match="column 'who' has no group in 1 rows, first in row 21 of"):
        load(tmp_path, group="who")


# ---------------------------------------------------------------- nothing to learn


def given_files(folder, **columns):
    frame(folder, **columns)
    for name in ("validation", "test"):
        frame(folder, f"{name}.csv", **{key: [*values[:6]] for key, values in columns.items()})
    return {"validation": "validation.csv", "test": "test.csv"}


@pytest.mark.parametrize(
    ("columns", "task", "label", "said"),
    [
        ({"text": ["same"] * 40, "label": ["a", "b"] * 20}, "auto", "label", "has the same text, 'same'"),
        ({"text": GOOD["text"], "label": ["2.5"] * 40}, "regression", "label", "every row of train has the same label"),
        ({"text": GOOD["text"], "x": [1] * 40, "y": [0] * 40}, "auto", ["x", "y"], "train has the same label"),
    ],
)
def test_data_of_which_nothing_can_be_learned_is_refused(tmp_path, columns, task, label, said):
    with pytest.raises(DataError, match=said):
        load(tmp_path, task, label=label, **given_files(tmp_path, **columns))
