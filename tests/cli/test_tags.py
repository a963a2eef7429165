"""Token classification through the command line: bad input, a whole study, its export and its predictions."""

import json
from pathlib import Path

import pandas as pd
import pytest
import tagged

pytestmark = pytest.mark.usefixtures("own_folder")


def write(**overrides):
    """Write a study file; lists and mappings of JSON are YAML too."""
    Path("tags.yaml").write_text(json.dumps(tagged.study(Path().absolute(), **overrides)))


TOKENS = {"tokens": ["Ann", "left"], "tags": ["B-PER", "O"]}
TEXT = {"text": "Ann left", "spans": [{"start": 0, "end": 3, "label": "PER"}]}


def span(start, end):
    return {"text": "Ann left", "spans": [*TEXT["spans"], {"start": start, "end": end, "label": "X"}]}


# What is wrong -> the file, its content, the keys of `data:`, and what is said.
BAD = {
    "few columns": (
        "bad.conll",
        "Ann B-PER\nleft\n",
        {},
        ["bad.conll, line 2: 1 column, where its sentence has 2: 'left'"],
    ),
    "no predicate": (
        "bad.conll",
        "Ann - B-A0\nleft left B-V\n\nBob - O\n\nso x O\nhe x O\n",
        {"predicate_column": 2},
        ["predicate: 2", "bad.conll, line 4: no word is marked in column 2", "2 words, 'so' in line 6, 'he' in line 7"],
    ),
    "no such column": ("bad.conll", "Ann B-PER\n", {"tag_column": 5}, ["line 1: 2 columns", "the tag in column 5"]),
    "a tag that follows no other": (
        "bad.conll",
        "Ann B-PER\nleft O\nso I-PER\n",
        {"scheme": "IOB2"},
        ["line 3: 'I-PER' after 'O'"],
    ),
    "no end": ("bad.conll", "Ann S-PER\n\nleft B-PER\n", {}, ["line 3: the end of the sentence after 'B-PER'"]),
    "no tag": ("bad.conll", "Ann B-PER\nleft PER\nO O\n", {}, ["line 2: 'PER' is no tag of IOB2"]),
    "lengths": (
        "bad.jsonl",
        [TOKENS, TOKENS | {"tags": ["O"]}],
        {},
        ["rows with more or fewer tags than tokens: 1", "row 2 of", "2 tokens, 1 tags"],
    ),
    "numbers": ("bad.jsonl", [TOKENS | {"tags": [0, 1]}], {}, ["a number for a tag that has no name: 1", "row 1 of"]),
    "no list": ("bad.jsonl", [TOKENS | {"tokens": "Ann left"}], {}, ["not a list of texts: 1"]),
    "outside": (
        "bad.jsonl",
        [TEXT, span(5, 99)],
        {"text": "text"},
        ["empty or outside their text: 1", "row 2 of", "in a text of 8 characters"],
    ),
    "empty": ("bad.jsonl", [TEXT, span(5, 5)], {"text": "text"}, ["empty or outside their text: 1"]),
    "crossing": (
        "bad.jsonl",
        [TEXT, span(2, 6)],
        {"text": "text"},
        ["spans that overlap another: 1", "overlaps PER 'Ann' (0 to 3)"],
    ),
    "a key": ("bad.jsonl", [TOKENS], {"tag_colum": 2}, ["data.tag_colum: is not a key; did you mean tag_column?"]),
    "a column": ("bad.jsonl", [{"words": ["a"], "tags": ["O"]}], {}, ["has no column 'tokens'; it has words, tags"]),
    "a group": ("bad.conll", "Ann B-PER\n", {"group": "doc"}, ["data.group", "is a CoNLL file"]),
    "no words": ("bad.conll", "\n\n", {}, ["train has no sentence with a word"]),
    "one tag": (
        "bad.conll",
        "".join(f"a{i} O\n\n" for i in range(40)),
        {},
        ["every word of train has the tag 'O'"],
    ),
}


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_with_its_place_and_nothing_is_written(call, command, case):
    name, content, keys, messages = BAD[case]
    rows = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
    Path(name).write_text(rows)
    write(data={"train": name, "validation": 1, "test": 2, **keys})
    before = sorted(Path().rglob("*"))
    code, printed = call(command, "tags.yaml")
    assert code == 2, printed
    assert [message for message in messages if message not in printed] == [], printed
    assert "Traceback" not in printed
    assert sorted(Path().rglob("*")) == before


def test_all_faults_of_all_files_are_said_at_once(call):
    Path("a.conll").write_text("Ann B-PER\nleft\n\nso I-PER\n\n" + "no I-PER\n\n" * 6)
    Path("b.conll").write_text("x B-PER\n\ny I-PER\n")
    write(data={"train": "a.conll", "validation": "b.conll", "test": "b.conll", "scheme": "IOB2"})
    code, printed = call("check", "tags.yaml")
    assert code == 2
    assert "the data have 10 faults" in printed
    assert "tags that IOB2 does not allow: 9" in printed
    assert "a.conll, line 4: 'I-PER' at the start of the sentence" in printed
    assert "and 6 more" in printed
    assert "In IOB2, an entity starts with B-" in printed


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("f1", "did you mean entity_f1?"),
        ("accuracy", "'accuracy' is not defined for token_classification; one of entity_f1"),
        ("f1_macro", "not defined for token_classification"),
    ],
)
def test_a_metric_of_another_task_is_refused_with_those_of_this_one(call, metric, message):
    write(metric=metric)
    code, printed = call("check", "tags.yaml")
    assert code == 2
    assert message in printed


def test_check_shows_the_first_rows_with_their_tags(call):
    write()
    code, printed = call("check", "tags.yaml")
    assert code == 0, printed
    assert "token_classification, entity_f1 (maximize)" in printed
    shown = printed.partition("as the model sees the first rows of train:")[2].splitlines()[1:4]
    assert all(line.strip().startswith("[CLS] ") and line.endswith(" [SEP]") for line in shown)
    assert "/O " in shown[0]
    assert any("/B-" in line for line in shown)


SPACE = {"learning_rate": {"low": 7e-3, "high": 1e-2}, "batch_size": 8, "epochs": 8}


@pytest.fixture
def trained(call):
    """Run a study whose best trial finds entities."""
    write(count=240, space=SPACE, trials=3, max_length=32)
    code, printed = call("run", "tags.yaml")
    assert code == 0, printed
    return printed


def test_a_study_from_its_file_to_predictions(call, trained):
    """Verdict, report, model card, export, transformers' pipeline and `hpo predict` say the same."""
    from transformers import pipeline

    assert "(entity_f1); the published default (trial 0) scores" in trained
    assert "Giving each word its most frequent tag in train scores" in trained
    assert "Giving every word the tag 'O' scores 0" in trained
    code, printed = call("show", "tiny", "--json")
    verdict = json.loads(printed)["verdict"]
    assert verdict["best"]["score"] > 0.2
    assert {row["label"] for row in verdict["classes"]["classes"]} == {"GOOD", "BAD"}
    assert verdict["classes"]["counted"] == "entities"
    assert list(verdict["references"]) == ["majority", "frequent_tag"]
    assert "test entities" in Path("runs/tiny/report.html").read_text()

    code, printed = call("export", "tiny", "-o", "exported")
    assert code == 0, printed
    card = Path("exported/README.md").read_text()
    assert "pipeline_tag: token-classification" in card
    assert "| label | precision | recall | F1 | test entities | predicted |" in card

    text = "w1 fine warm w2 w3 dull w4 bright w5 grim cold w6 lovely w7 stale"
    spoken = pipeline("token-classification", model="exported", aggregation_strategy="simple", device="cpu")(text)
    code, printed = call("predict", "exported", text)
    (row,) = [json.loads(line) for line in printed.splitlines()]
    assert row["entities"]
    assert [(e["label"], e["start"], e["end"]) for e in row["entities"]] == [
        (e["entity_group"], e["start"], e["end"]) for e in spoken
    ]
    assert [e["score"] for e in row["entities"]] == pytest.approx([float(e["score"]) for e in spoken], abs=1e-4)
    written = pd.read_csv(next(Path("runs/tiny/predictions").glob(f"trial_{verdict['best']['number']}_test.csv")))
    assert list(written.columns) == ["row", "words", "tags", "predicted", "entities", "group", "counts of entity_f1"]
    assert all(len(json.loads(row.tags)) == len(json.loads(row.predicted)) for row in written.itertuples())


def test_files_of_every_kind_are_predicted_and_keep_their_columns(call, trained):
    assert call("export", "tiny", "-o", "exported")[0] == 0
    Path("a.conll").write_text("w1 O\nfine B-GOOD\n\ndull x\n")
    Path("b.conll").write_text("w1\nfine\n\ndull\n")
    Path("c.jsonl").write_text('{"id": 1, "tokens": ["w1", "fine"]}\n{"id": 2, "tokens": ["dull"]}\n')
    Path("d.csv").write_text("id,body\n1,w1 fine\n2,dull\n")
    found = []
    for name, options in (("a.conll", ()), ("b.conll", ()), ("c.jsonl", ()), ("d.csv", ("--text", "body"))):
        code, printed = call("predict", "exported", "--file", name, *options)
        assert code == 0, printed
        found.append([json.loads(line) for line in printed.splitlines()])
    assert len({json.dumps([row["predicted"] for row in rows]) for rows in found}) == 1
    assert [row["id"] for row in found[2]] == [1, 2]
    code, printed = call("predict", "exported", "--file", "c.jsonl", "-o", "out.csv")
    assert (code, printed) == (0, "out.csv\n")
    assert list(pd.read_csv("out.csv").columns) == ["id", "tokens", "predicted", "entities"]
    Path("e.jsonl").write_text('{"tokens": ["w1"], "entities": []}\n')
    code, printed = call("predict", "exported", "--file", "e.jsonl")
    assert code == 2
    assert "column 'entities', where predictions go" in printed


def test_adapters_are_exported_as_a_whole_model(call):
    from transformers import pipeline

    space = {"learning_rate": [1e-2], "batch_size": [8, 16], "epochs": 1, "lora_rank": 4}
    write(space=space, trials=2, sampler="grid", baseline=False)
    assert call("run", "tags.yaml")[0] == 0
    assert call("export", "tiny", "-o", "exported")[0] == 0
    assert isinstance(pipeline("token-classification", model="exported", device="cpu")("w1 fine"), list)
    code, printed = call("predict", "exported", "w1 fine")
    assert code == 0, printed


# ---------------------------------------------------------------- predicates


def test_roles_of_marked_predicates_from_the_file_to_predictions(call):
    Path("roles.conll").write_text(tagged.roles(160))
    data = {"train": "roles.conll", "predicate_column": 2}
    write(data=data, space=SPACE | {"epochs": 2}, trials=1, max_length=32)
    code, printed = call("check", "tags.yaml")
    assert code == 0, printed
    assert "[UNK]/B-V" in printed  # the tokenizer has no *
    code, printed = call("run", "tags.yaml")
    assert code == 0, printed
    assert call("export", "tiny", "-o", "exported")[0] == 0
    Path("new.conll").write_text("w1 -\nfine x\ndull -\n\nfine 1\nw2 0\nfine 0\n")
    Path("new.jsonl").write_text(
        '{"tokens": ["w1", "fine", "dull"], "predicate": 1}\n{"tokens": ["fine", "w2", "fine"], "predicate": 0}\n'
    )
    found = []
    for name in ("new.conll", "new.jsonl"):
        code, printed = call("predict", "exported", "--file", name)
        assert code == 0, printed
        found.append([json.loads(line) for line in printed.splitlines()])
    assert found[0] == found[1]
    assert [row["predicate"] for row in found[0]] == [1, 0]
    code, printed = call("predict", "exported", "w1 fine dull", "1")
    assert [json.loads(printed)["predicted"]] == [found[0][0]["predicted"]]
    Path("bad.conll").write_text("w1 -\nfine -\n\nw1 x\nfine x\n")
    code, printed = call("predict", "exported", "--file", "bad.conll")
    assert code == 2
    assert "not one word is marked as the predicate: 2" in printed
    assert "bad.conll, line 1: no word is marked in column 2" in printed
