"""Sentences from files to splits, and what is said of them and of predictions for them."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import seqeval.metrics
import seqeval.scheme
import tagged
import torch
import word_pieces
from hypothesis import given
from hypothesis import strategies as st

from hpo.analysis.bootstrap import intervals, resampled
from hpo.core.errors import DataError
from hpo.tasks import metrics
from hpo.tasks.metrics import METRICS, score, suggested
from hpo.tasks.registry import TASKS
from hpo.tasks.rows import IGNORED
from hpo.tasks.token_classification.keys import TagKeys
from hpo.tasks.token_classification.predictions import TagPredictions
from hpo.tasks.token_classification.reading import Sentence
from hpo.tasks.token_classification.schemes import SCHEMES, converted
from hpo.tasks.token_classification.scores import ENTITY_SCORES
from hpo.tasks.token_classification.sentences import TagSplit

TASK = TASKS["token_classification"]
LABELS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
FEW = {"validation": 10, "test": 10}


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def rows(count=60, **more):
    """Return rows of tokens and tags."""
    found = [{"tokens": [w for w, _ in each], "tags": [t for _, t in each]} for each in tagged.sentences(count)]
    return [row | {key: values[i % len(values)] for key, values in more.items()} for i, row in enumerate(found)]


def words_of(data):
    return {name: [sentence.words for sentence in split.sentences] for name, split in data.splits.items()}


def tags_of(data, name="train"):
    return [sentence.tags for sentence in data.splits[name].sentences]


# ---------------------------------------------------------------- files


def test_conll_tokens_and_spans_of_the_same_sentences_are_the_same_data(tmp_path):
    found = tagged.sentences(60)
    tagged.write_conll(tmp_path / "a.conll", found)
    lines(tmp_path / "a.jsonl", rows(60))
    pd.DataFrame(rows(60)).to_parquet(tmp_path / "a.parquet")
    spans = []
    for each in found:
        text, own = "", []
        for word, tag in each:
            start = len(text)
            if tag.startswith("I-"):
                own[-1]["end"] = start + len(word)
            elif tag != "O":
                own.append({"start": start, "end": start + len(word), "label": tag[2:]})
            text += f"{word} "
        spans.append({"body": text, "marks": own})
    lines(tmp_path / "spans.jsonl", spans)
    data = [tagged.read(tmp_path, train=name, **FEW) for name in ("a.conll", "a.jsonl", "a.parquet")]
    data.append(tagged.read(tmp_path, train="spans.jsonl", text="body", spans="marks", **FEW))
    assert len({each.digest for each in data}) == 1
    assert data[0].labels == ("O", "B-BAD", "I-BAD", "B-GOOD", "I-GOOD")
    assert [len(data[0].splits[name]) for name in ("train", "validation", "test")] == [40, 10, 10]


def test_several_files_of_several_formats_are_one_split(tmp_path):
    tagged.write_conll(tmp_path / "a.conll", tagged.sentences(20))
    lines(tmp_path / "b.jsonl", rows(30)[20:])
    both = tagged.read(tmp_path, train=["a.conll", "b.jsonl"], validation=5, test=5)
    lines(tmp_path / "c.jsonl", rows(30))
    one = tagged.read(tmp_path, train="c.jsonl", validation=5, test=5)
    assert words_of(both) == words_of(one)


@pytest.mark.parametrize("scheme", ["IOB1", "BIOES", "BILOU"])
def test_every_scheme_is_read_into_the_same_tags(tmp_path, scheme):
    found = tagged.sentences(60)
    tagged.write_conll(tmp_path / "a.conll", found)
    other = [
        list(zip([w for w, _ in each], converted([t for _, t in each], SCHEMES[scheme]), strict=True)) for each in found
    ]
    tagged.write_conll(tmp_path / "b.conll", other)
    guessed, named = (tagged.read(tmp_path, train="b.conll", **FEW, **key) for key in ({}, {"scheme": scheme}))
    assert tags_of(guessed) == tags_of(named) == tags_of(tagged.read(tmp_path, train="a.conll", **FEW))
    assert any(f"read as {scheme}" in note for note in guessed.notes)
    assert not any("read as" in note for note in named.notes)


def test_documents_stay_in_one_split_and_are_its_groups(tmp_path):
    documents = ["".join(f"{w} {t}\n" for w, t in each) for each in tagged.sentences(60)]
    parts = ["-DOCSTART- O\n\n" * (i % 3 == 0) + text for i, text in enumerate(documents)]
    (tmp_path / "a.conll").write_text("\n".join(parts))
    data = tagged.read(tmp_path, train="a.conll", validation=0.2, test=0.2)
    groups = {name: set(split.members) for name, split in data.splits.items()}
    assert sum(map(len, groups.values())) == len(set.union(*groups.values())) == 20
    assert {len(split) % 3 for split in data.splits.values()} == {0}


def test_one_document_is_no_group(tmp_path):
    path = tagged.write_conll(tmp_path / "a.conll", tagged.sentences(40))
    path.write_text("-DOCSTART- O\n\n" + path.read_text())
    assert tagged.read(tmp_path, train="a.conll", **FEW).splits["test"].members is None


def test_a_column_of_groups_is_kept_together(tmp_path):
    lines(tmp_path / "a.jsonl", rows(60, by=list(range(12))))
    data = tagged.read(tmp_path, train="a.jsonl", validation=0.2, test=0.2, group="by")
    assert sum(len(set(split.members)) for split in data.splits.values()) == 12


def test_rare_types_stay_in_train(tmp_path):
    own = rows(60)
    for row in own[:2]:
        row["tags"] = ["B-RARE"] + ["O"] * (len(row["tags"]) - 1)
    lines(tmp_path / "a.jsonl", own)
    for seed in range(8):
        data = tagged.read(tmp_path, seed, train="a.jsonl", validation=20, test=20)
        assert any("B-RARE" in tags for tags in tags_of(data))


def test_a_type_that_train_has_not_is_noted(tmp_path):
    own = rows(40)
    lines(tmp_path / "train.jsonl", own[:20])
    own[39]["tags"][0] = "B-NEW"
    lines(tmp_path / "test.jsonl", own[20:])
    data = tagged.read(tmp_path, train="train.jsonl", validation=5, test="test.jsonl")
    assert "test has 1 types of entities that train has not (NEW 1 entities): no model finds them" in data.notes


def test_parts_of_speech_are_tags_of_their_own(tmp_path):
    own = rows(60)
    for row in own:
        row["tags"] = ["NOUN" if tag == "O" else "ADJ" for tag in row["tags"]]
    lines(tmp_path / "a.jsonl", own)
    data = tagged.read(tmp_path, train="a.jsonl", **FEW)
    assert data.labels == ("ADJ", "NOUN")
    assert TASK.default_metric(data) == "token_accuracy"
    with pytest.raises(
        DataError, match=r"'entity_f1' is for tags that write entities .* 'ADJ', 'NOUN' .*token_accuracy"
    ):
        TASK.refuse_metric("entity_f1", data)
    TASK.refuse_metric("token_accuracy", data)


def test_a_tag_without_a_prefix_among_others_is_an_error_and_no_class(tmp_path):
    own = rows(40)
    own[3]["tags"][1] = "GOOD"
    lines(tmp_path / "a.jsonl", own)
    with pytest.raises(
        DataError, match=r"(?s)tags that IOB2 does not allow: 1\n.*row 4 of .*, word 2: 'GOOD' is no tag"
    ):
        tagged.read(tmp_path, train="a.jsonl", **FEW)
    assert "GOOD" in tagged.read(tmp_path, train="a.jsonl", scheme="none", **FEW).labels


def test_tags_without_a_type_are_entities(tmp_path):
    own = rows(40)
    for row in own:
        row["tags"] = [tag[:1] for tag in row["tags"]]
    lines(tmp_path / "a.jsonl", own)
    assert tagged.read(tmp_path, train="a.jsonl", **FEW).labels == ("O", "B-_", "I-_")


def test_all_words_without_an_entity_are_refused(tmp_path):
    own = [row | {"tags": ["O"] * len(row["tags"])} for row in rows(40)]
    lines(tmp_path / "a.jsonl", own)
    with pytest.raises(DataError, match="every word of train has the tag 'O': nothing can be learned"):
        tagged.read(tmp_path, train="a.jsonl", **FEW)


def test_rows_without_a_word_are_left_out_and_counted(tmp_path):
    lines(tmp_path / "a.jsonl", [*rows(40), {"tokens": [], "tags": []}])
    data = tagged.read(tmp_path, train="a.jsonl", **FEW)
    assert sum(map(len, data.splits.values())) == 40
    assert any("rows without a word, which are left out: 1, first row 41" in note for note in data.notes)
    lines(tmp_path / "none.jsonl", [{"tokens": [], "tags": []}] * 3)
    with pytest.raises(DataError, match="test has no sentence with a word"):
        tagged.read(tmp_path, train="a.jsonl", validation=5, test="none.jsonl")


def test_a_predicate_is_marked_for_the_model_and_its_sentence_stays_whole(tmp_path):
    own = [row | {"verb": verb} for row in rows(40) for verb in (0, 1)]
    lines(tmp_path / "a.jsonl", own)
    data = tagged.read(tmp_path, train="a.jsonl", predicate="verb", validation=20, test=20)
    first = data.splits["train"].sentences[0]
    assert first.model_words[first.predicate] == f"* {first.words[first.predicate]} *"
    words = {name: set(each) for name, each in words_of(data).items()}
    assert not words["train"] & words["test"]
    assert sum(map(len, words.values())) == 40
    rows_of = TASK.encode(data.splits["train"], data.keys, word_pieces.bert(), 64)
    assert rows_of.units.tolist() == [len(sentence.words) for sentence in data.splits["train"].sentences]
    lines(tmp_path / "b.jsonl", [*own, own[0] | {"verb": 99}, own[0] | {"verb": "x"}])
    with pytest.raises(DataError, match="rows whose predicate is not the number of a word: 2"):
        tagged.read(tmp_path, train="b.jsonl", predicate="verb", **FEW)


# ---------------------------------------------------------------- encoding and losses


SENTENCES = [["player", "unaffable", "in", "Rome"], ["games"], ["don", "played", "unplayable", "warm", "warmer"] * 4]


def split_of(sentences=SENTENCES, labels=LABELS):
    tags = [[labels[(i + j) % len(labels)] for j, _ in enumerate(words)] for i, words in enumerate(sentences)]
    data = [
        Sentence(tuple(words), tuple(own), "a", i) for i, (words, own) in enumerate(zip(sentences, tags, strict=True))
    ]
    return TagSplit(sentences=data, labels=labels)


@pytest.mark.parametrize("every", [False, True])
def test_rows_are_those_of_run_ner(every):
    """Without windows: transformers' `examples/pytorch/token-classification/run_ner.py`, tokenize_and_align_labels."""
    tokenizer, split = word_pieces.bert(), split_of()
    begins = [LABELS.index(f"I-{n[2:]}") if n.startswith("B-") else i for i, n in enumerate(LABELS)]
    encoded = tokenizer([list(s.words) for s in split.sentences], is_split_into_words=True)
    expected = []
    for i, label in enumerate(split.targets):
        previous, ids = None, []
        for word in encoded.word_ids(i):
            if word is None:
                ids.append(-100)
            elif word != previous:
                ids.append(label[word])
            else:
                ids.append(begins[label[word]] if every else -100)
            previous = word
        expected.append(ids)
    found = TASK.encode(split, TagKeys(label_all_pieces=every), tokenizer, 512)
    assert list(found.inputs["input_ids"]) == encoded["input_ids"]
    assert list(found.token_targets["labels"]) == expected
    assert found.units.tolist() == [sum(label != -100 for label in own) for own in expected]


@pytest.mark.parametrize("max_length", [8, 12, 64])
@pytest.mark.parametrize("stride", [0, 3, 100])
def test_predictions_come_back_to_their_words_whatever_the_windows(max_length, stride):
    keys, split = TagKeys(stride=stride), split_of()
    rows = TASK.encode(split, keys, word_pieces.bert(), max_length)
    assert max(map(len, rows.inputs["input_ids"])) <= max_length
    longest = max(map(len, rows.token_targets["labels"]))
    labels = np.array([[*own, *[IGNORED] * (longest - len(own))] for own in rows.token_targets["labels"]])
    answers = {"predicted": labels, "confidence": np.ones(labels.shape), "loss": rows.units}
    found = TASK.predictions(split, rows, answers, keys)
    assert score("entity_f1", found) == score("token_accuracy", found) == score("loss", found) == 1.0
    assert found.counts.tolist() == [len(words) for words in SENTENCES]
    assert [row["predicted"] for row in found.rows(LABELS)] == [list(sentence.tags) for sentence in split.sentences]


def test_a_byte_level_tokenizer_is_loaded_so_that_words_have_blanks_before_them():
    assert TASK.tokenizer_options(word_pieces.roberta(add_prefix_space=False), None) == {"add_prefix_space": True}
    assert TASK.tokenizer_options(word_pieces.roberta(), None) == {}
    assert TASK.tokenizer_options(word_pieces.bert(), None) == {}


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_of_a_row_is_the_sum_of_pytorchs_over_its_labelled_tokens(smoothing, weighted):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (4, 6), generator=generator)
    labels[0, 2:], labels[3] = IGNORED, IGNORED
    weights = torch.rand(5, generator=generator, dtype=torch.float64) if weighted else None
    options = {"weight": weights, "label_smoothing": smoothing, "ignore_index": IGNORED, "reduction": "none"}
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, **options).sum(dim=1)
    for each_smoothing in (smoothing, torch.full((4,), smoothing, dtype=torch.float64)):
        of_rows = weights.repeat(4, 1) if weighted and torch.is_tensor(each_smoothing) else weights
        found = TASK.loss((logits,), {"labels": labels}, each_smoothing, of_rows)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_balanced_weights_have_a_mean_of_one_over_the_words(tmp_path):
    tagged.write_conll(tmp_path / "a.conll", tagged.sentences(60))
    data = tagged.read(tmp_path, train="a.conll", **FEW)
    weights = TASK.class_weights(data)["balanced"]
    words = np.concatenate(data.splits["train"].targets)
    assert weights[words].mean() == pytest.approx(1.0)
    assert weights[1] > 5 * weights[0]


def test_a_row_is_shown_with_the_tag_of_each_word():
    rows = TASK.encode(split_of(), TagKeys(), word_pieces.bert(), 64)
    tokens = word_pieces.bert().convert_ids_to_tokens(rows.inputs["input_ids"][0])
    assert TASK.marked(rows, 0, tokens, LABELS) == (
        "[CLS] play/O ##er un/B-LOC ##aff ##able [UNK]/I-LOC rome/B-PER [SEP]"
    )


# ---------------------------------------------------------------- scores


def predictions(gold, predicted, labels=LABELS, entities=True):
    """Return predictions of tags, each word with a loss of its own."""
    index = {label: i for i, label in enumerate(labels)}
    counts = np.array([len(own) for own in gold])
    flat = [np.array([index[tag] for own in each for tag in own], dtype=np.int64) for each in (gold, predicted)]
    words = np.concatenate([np.arange(count) for count in counts])
    data = [Sentence(tuple(f"w{j}" for j in range(len(own))), tuple(own), "a", i) for i, own in enumerate(gold)]
    return TagPredictions(
        data, labels, entities, *flat, np.full(len(words), 0.5), words, counts, counts * 2.0, counts * 1.0
    )


tag_lists = st.lists(
    st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=6),
    min_size=1,
    max_size=8,
)


@given(tag_lists)
def test_every_metric_is_seqevals(pairs):
    gold, predicted = ([[pair[side] for pair in own] for own in pairs] for side in (0, 1))
    found = predictions(gold, predicted)
    strict = {"mode": "strict", "scheme": seqeval.scheme.IOB2, "zero_division": 0}
    for name in ENTITY_SCORES:
        reference = getattr(seqeval.metrics, f"{name}_score")
        assert score(f"entity_{name}", found) == pytest.approx(reference(gold, predicted, zero_division=0), abs=1e-12)
        assert score(f"entity_{name}_strict", found) == pytest.approx(reference(gold, predicted, **strict), abs=1e-12)
    assert score("token_accuracy", found) == pytest.approx(seqeval.metrics.accuracy_score(gold, predicted), abs=1e-12)
    assert score("loss", found) == 2.0


@given(tag_lists, st.data())
def test_a_resample_by_counts_is_one_by_sentences(pairs, data):
    found = predictions(*([[pair[side] for pair in own] for own in pairs] for side in (0, 1)))
    drawn = np.array(data.draw(st.lists(st.integers(0, len(found) - 1), min_size=1, max_size=12)))
    part = found.take(drawn)
    for name, entry in METRICS.items():
        if "token_classification" in entry.tasks:
            assert entry.value(entry.counts(found)[drawn].sum(axis=0)) == pytest.approx(score(name, part), abs=1e-12)


def test_the_interval_is_paired_by_sentence():
    rng = np.random.default_rng(0)
    gold = [[*rng.choice(LABELS[:1] * 3 + ("B-PER", "B-LOC"), 8)] for _ in range(40)]
    worse = [[tag if rng.random() < 0.7 else "O" for tag in own] for own in gold]
    best, other = predictions(gold, gold), predictions(gold, worse)
    ((low, high),) = intervals("entity_f1", [best, other])
    assert 0 < low < 1 - score("entity_f1", other) < high < 1
    assert resampled("entity_f1", [best, other]).shape == (2000, 2)


def test_too_few_entities_have_no_interval():
    gold = [["B-PER", "O"]] * 4 + [["O", "O"]] * 20
    (why,) = intervals("entity_f1", [predictions(gold, gold)] * 2)
    assert why == "the test sentences have 4 entities"


def test_one_tag_for_every_word_is_a_collapse_and_is_named():
    gold = [["B-PER", "O"], ["O", "O"]]
    found = predictions(gold, [["O", "O"]] * 2)
    assert found.collapsed
    assert TASK.collapse(found) == "gives every word the tag 'O'"
    assert not predictions(gold, gold).collapsed
    assert not predictions([["O", "O"]], [["O", "O"]]).collapsed
    assert TASK.breakdown(found, LABELS)["collapse"] == "gives every word the tag 'O'"


def test_outputs_that_are_not_finite_are_seen():
    found = predictions([["O"]], [["O"]])
    assert found.finite
    assert not replace(found, losses=np.array([np.nan])).finite


@given(tag_lists)
def test_the_breakdown_is_seqevals_report(pairs):
    gold, predicted = ([[pair[side] for pair in own] for own in pairs] for side in (0, 1))
    found = TASK.breakdown(predictions(gold, predicted), LABELS)
    if not any(tag != "O" for own in gold for tag in own):
        assert found["absent"] == ["LOC", "PER"]
        return
    report = seqeval.metrics.classification_report(gold, predicted, output_dict=True, zero_division=0)
    for row in found["classes"]:
        expected = report.get(row["label"])
        if expected is None:
            assert row["support"] == row["predicted"] == 0
            continue
        assert row["support"] == expected["support"]
        assert (row["precision"] or 0.0) == pytest.approx(expected["precision"])
        assert (row["recall"] or 0.0) == pytest.approx(expected["recall"])
        assert (row["f1"] or 0.0) == pytest.approx(expected["f1-score"])
    assert found["counted"] == "entities"


def test_the_breakdown_of_plain_tags_counts_words_and_mistakes():
    labels = ("ADJ", "NOUN")
    found = TASK.breakdown(predictions([["ADJ", "NOUN"]], [["NOUN", "NOUN"]], labels, entities=False), labels)
    assert (found["counted"], found["confusion"]) == ("words", [[0, 1], [0, 1]])
    assert found["never_predicted"] == ["ADJ"]
    assert [row["support"] for row in found["classes"]] == [1, 1]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("f1", "entity_f1"),
        ("overall_f1", "entity_f1"),
        ("seqeval", "entity_f1"),
        ("overall_accuracy", "token_accuracy"),
    ],
)
def test_other_names_of_metrics_are_understood(given, expected):
    assert suggested(given, "token_classification") == f"; did you mean {expected}?"
    assert "entity" not in suggested(given) or given == "seqeval"
    assert metrics.chosen(None, "token_classification", "entity_f1") == "entity_f1"


# ---------------------------------------------------------------- baselines


def test_the_baselines_are_the_most_frequent_tags(tmp_path):
    train = [[("a", "B-X"), ("b", "O"), ("c", "O")], [("a", "B-X"), ("a", "O"), ("d", "O")], [("b", "O"), ("a", "B-X")]]
    tied = [[("e", "B-X"), ("e", "O"), ("f", "O")]]
    test = [[("a", "B-X"), ("z", "O")], [("e", "O"), ("b", "B-X")], [("f", "O")]]
    for name, found in (("train", train + tied), ("validation", train), ("test", test)):
        tagged.write_conll(tmp_path / f"{name}.conll", found)
    data = tagged.read(tmp_path, train="train.conll", validation="validation.conll", test="test.conll")
    found = TASK.references(data, "entity_f1", tmp_path)
    assert found["majority"].says == "Giving every word the tag 'O'"
    assert found["majority"].predictions.tags(found["majority"].predictions.predicted) == [
        ["O", "O"],
        ["O", "O"],
        ["O"],
    ]
    frequent = found["frequent_tag"].predictions
    assert frequent.tags(frequent.predicted) == [["B-X", "O"], ["O", "O"], ["O"]]  # z is unknown, e is a tie
    shares = np.array([7, 4]) / 11
    assert frequent.losses[0] == pytest.approx(-np.log((3 + shares[1]) / 5) - np.log(shares[0]))
    assert score("token_accuracy", frequent) == 4 / 5
    for each in found.values():
        assert set(each.predictions.tags(each.predictions.gold)[0]) == {"B-X", "O"}


def test_doubts_and_facts_count_entities(tmp_path):
    tagged.write_conll(tmp_path / "a.conll", tagged.sentences(60))
    data = tagged.read(tmp_path, train="a.conll", **FEW)
    doubts = TASK.doubts(data, "entity_f1")
    assert "test has only 10 sentences to measure entity_f1 on" in doubts
    assert any(text.startswith("2 types of entities of test are rare: ") for text in doubts)
    facts = TASK.facts(data)
    assert facts["words"].endswith(" test")
    assert set(facts["types of entities"].split()) >= {"GOOD", "BAD"}


# ---------------------------------------------------------------- without tags


def test_texts_and_words_can_be_predicted():
    keys = TagKeys()
    split = TASK.unlabelled([{"tokens": "Ann Lee, Rome"}, {"tokens": ["Ann", "left"]}, {"tokens": ""}], keys)
    assert [s.words for s in split.sentences] == [("Ann", "Lee", ",", "Rome"), ("Ann", "left"), ()]
    found = predictions([["B-PER", "I-PER", "O", "B-LOC"]], [["B-PER", "I-PER", "O", "B-LOC"]])
    found = replace(found, sentences=split.sentences[:1])
    (row,) = TASK.predicted_rows(found, LABELS)
    assert row == {
        "predicted": ["B-PER", "I-PER", "O", "B-LOC"],
        "entities": [
            {"label": "PER", "words": ["Ann", "Lee"], "start": 0, "end": 7, "score": 0.5},
            {"label": "LOC", "words": ["Rome"], "start": 9, "end": 13, "score": 0.5},
        ],
    }
    with pytest.raises(DataError, match="neither a text nor a list of words"):
        TASK.unlabelled([{"tokens": 3}], keys)
    with pytest.raises(DataError, match="predicate '9' is not the number"):
        TASK.unlabelled([{"tokens": "a b", "verb": "9"}], TagKeys(predicate="verb"))


def test_sentences_without_any_token_cannot_be_encoded():
    with pytest.raises(DataError, match="no token of any word"):
        TASK.encode(TASK.unlabelled([{"tokens": ""}], TagKeys()), TagKeys(), word_pieces.bert(), 16)


@pytest.mark.parametrize(
    ("keys", "place", "message"),
    [
        ({"train": "a.conll", "group": "doc"}, ("group",), "a.conll is a CoNLL file; a document"),
        ({"train": "a.conll", "where": {"x": 1}}, ("where",), "is for tables"),
        ({"train": "a.conll", "predicate": "v"}, ("predicate",), "is for tables"),
        (
            {"train": "a.jsonl", "predicate_column": 3},
            ("predicate_column",),
            "a.jsonl is none; write predicate: COLUMN",
        ),
        ({"dataset": "d", "predicate_column": 3}, ("predicate_column",), "d is none; write predicate: COLUMN"),
        ({"train": "a.conll", "predicate_column": -1}, ("predicate_column",), "is column -1, which has another use"),
        ({"train": "a.conll", "separator": ";"}, ("separator",), "is for CSV and TSV files"),
        ({"word_column": 2, "tag_column": 2}, ("tag_column",), "which is the words' already"),
        ({"tags": "tokens"}, (), "are not all different"),
        ({"text": "t", "predicate": "v"}, ("predicate",), "is for rows of tokens"),
        ({"text": "t", "scheme": "BIOES"}, ("scheme",), "spans have none"),
    ],
)
def test_keys_that_do_not_go_together_are_named(keys, place, message):
    found = dict(TASK.key_problems(TagKeys.model_validate({"train": "a.jsonl", **keys})))
    assert message in found[place]
    assert not list(TASK.key_problems(TagKeys(train="a.jsonl")))
