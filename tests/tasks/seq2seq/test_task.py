"""Sequence to sequence: reading pairs, their rows, and what is refused."""

import json

import datasets
import numpy as np
import paired
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSeq2SeqLM

from hpo.config import study_spec
from hpo.core.errors import ConfigError, DataError, ModelError
from hpo.tasks.loading import load
from hpo.tasks.registry import TASKS, task_for
from hpo.tasks.rows import IGNORED
from hpo.tasks.seq2seq.keys import PairKeys
from hpo.tasks.seq2seq.pairs import PairSplit

TASK = TASKS["seq2seq"]
PAIRS = paired.pairs(60)


def read(folder, seed=0, **keys):
    return load(PairKeys.model_validate({"validation": 10, "test": 10, **keys}), "seq2seq", seed, folder)


def written(folder, rows, name="pairs.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / name)


def rows_of(found):
    return [{"source": source, "target": target} for source, target in found]


def encoded(found, of_encoder=False, max_length=32, **keys):
    split = PairSplit(*map(list, zip(*found, strict=True)))
    return TASK.encode(split, PairKeys(**keys), paired.tokenizer(of_encoder), max_length)


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_pairs_are_read_from_every_kind_of_table(tmp_path, ending):
    import pandas as pd

    table, path = pd.DataFrame(rows_of(PAIRS)), tmp_path / f"pairs.{ending}"
    table["number"] = range(len(PAIRS))
    if ending == "parquet":
        table.to_parquet(path)
    elif ending == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, index=False, sep="," if ending == "csv" else "\t")
    data = read(tmp_path, train=str(path))
    found = [pair for split in data.splits.values() for pair in zip(split.sources, split.targets, strict=True)]
    assert sorted(found) == sorted(PAIRS)
    numbers = read(tmp_path, train=str(path), target="number").splits["test"].targets
    assert all(number.isdigit() for number in numbers)
    assert (data.labels, {len(data.splits[name]) for name in ("validation", "test")}) == ((), {10})


def test_pairs_are_read_from_the_objects_of_the_hub(tmp_path, monkeypatch):
    rows = [{"translation": {"en": source, "es": target}} for source, target in PAIRS]
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: datasets.Dataset.from_list(rows))
    nested = read(tmp_path, dataset="some/pairs", pair="translation", source="en", target="es")
    flat = read(tmp_path, train=written(tmp_path, rows_of(PAIRS)))
    assert nested.digest == flat.digest


def test_other_columns_are_kept_for_groups_and_conditions(tmp_path):
    rows = [{**row, "document": i // 6, "kind": "ab"[i % 2]} for i, row in enumerate(rows_of(PAIRS))]
    data = read(tmp_path, train=written(tmp_path, rows), group="document", where={"kind": "a"}, validation=6, test=6)
    assert sum(len(split) for split in data.splits.values()) == 30
    assert not set(data.splits["train"].members) & set(data.splits["test"].members)


def test_pairs_with_one_source_stay_in_one_split(tmp_path):
    found = [(f"text {i % 20}", f"answer {i}") for i in range(60)]
    data = read(tmp_path, train=written(tmp_path, rows_of(found)))
    sources = [set(split.sources) for split in data.splits.values()]
    assert sum(map(len, sources)) == len(set.union(*sources)) == 20
    assert "20 of 20 sources have more than one target, e.g. 'text 0': a model can give only one" in " ".join(
        data.notes
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": ""}, r"train: column 'source' is empty in 2 of 60 rows, first in row 3 of .*pairs.jsonl"),
        ({"target": None}, r"train: column 'target' is empty in 2 of 60 rows, first in row 3 of"),
        ({"target": ["a", "b"]}, r"train: column 'target' is no text in 2 of 60 rows, first in row 3 of"),
        ({"source": " ", "target": {}}, r"'source' is empty in 2 .*; train: column 'target' is no text in 2 .* Leave"),
    ],
)
def test_a_text_that_is_none_is_refused(tmp_path, change, message):
    rows = rows_of(PAIRS)
    rows[2] |= change
    rows[7] |= change
    with pytest.raises(DataError, match=message):
        read(tmp_path, train=written(tmp_path, rows))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("a text", "column 'pair' holds no object in 1 rows, first in row 5 of .*leave data: pair out"),
        (
            {"source": "a", "de": "b"},
            "column 'pair' has no 'target' in 1 rows, first in row 5 of .* has 'source', 'de'",
        ),
    ],
)
def test_an_object_that_lacks_a_text_is_refused(tmp_path, cell, message):
    rows = [{"pair": row} for row in rows_of(PAIRS)]
    rows[4] = {"pair": cell}
    with pytest.raises(DataError, match=message):
        read(tmp_path, train=written(tmp_path, rows), pair="pair")


def test_files_without_rows_or_columns_are_refused(tmp_path):
    with pytest.raises(DataError, match="has no rows"):
        read(tmp_path, train=written(tmp_path, []))
    with pytest.raises(DataError, match="has no column 'summary'"):
        read(tmp_path, train=written(tmp_path, rows_of(PAIRS)), target="summary")


@pytest.mark.parametrize("same", ["source", "target"])
def test_texts_that_are_all_equal_are_refused(tmp_path, same):
    rows = [{**row, same: "one", "document": i} for i, row in enumerate(rows_of(PAIRS))]
    names = ("train", "validation", "test")
    files = {name: written(tmp_path, rows, f"{name}.jsonl") for name in names}
    with pytest.raises(DataError, match=f"every row of train has the same {same}, 'one': nothing can be learned"):
        read(tmp_path, **files)


def test_copies_are_noted(tmp_path):
    copied = [(source, source) for source, _ in PAIRS]
    notes = read(tmp_path, train=written(tmp_path, rows_of(copied))).notes
    assert any("every target is equal to its source" in note for note in notes)
    notes = read(tmp_path, train=written(tmp_path, rows_of([*PAIRS[4:], *copied[:4]]))).notes
    assert [note for note in notes if "equal" in note] == ["4 of 60 targets are equal to their source"]


def test_keys_that_do_not_go_together_are_refused(tmp_path):
    raw = paired.study(tmp_path, data={"target": "source", "max_target_length": 1})
    with pytest.raises(ConfigError, match="max_target_length") as found:
        study_spec.build(raw, "test", tmp_path)
    raw = paired.study(tmp_path, data={"target": "source", "group": "source"})
    with pytest.raises(ConfigError) as found:
        study_spec.build(raw, "test", tmp_path)
    assert "is 'source', which is the source already" in str(found.value)
    assert "'source', which is a text" in str(found.value)


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("of_encoder", [False, True])
def test_labels_are_the_target_with_its_end(of_encoder):
    tokenizer = paired.tokenizer(of_encoder)
    rows = encoded(PAIRS, of_encoder, prefix="translate: ")
    end = tokenizer.sep_token_id if of_encoder else tokenizer.eos_token_id
    for (source, target), ids, labels in zip(
        PAIRS, rows.inputs["input_ids"], rows.token_targets["labels"], strict=True
    ):
        assert ids == tokenizer("translate: " + source)["input_ids"]
        assert labels == tokenizer(text_target=target)["input_ids"]
        assert labels[-1] == end
    assert rows.units.tolist() == [len(labels) for labels in rows.token_targets["labels"]]


def test_a_tokenizer_without_an_end_gets_one():
    tokenizer = paired.tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    split = PairSplit(["word1 word2"], ["palabra1 palabra2"])
    for length in (20, 4):
        labels = TASK.encode(split, PairKeys(max_target_length=length), tokenizer, 32).token_targets["labels"][0]
        assert labels[-1] == tokenizer.eos_token_id
        assert labels.count(tokenizer.eos_token_id) == 1
        assert len(labels) <= length


@settings(max_examples=20)
@given(st.integers(4, 12), st.integers(4, 12))
def test_what_is_cut_is_counted(longest_source, longest_target):
    whole, cut = encoded(PAIRS), encoded(PAIRS, max_length=longest_source, max_target_length=longest_target)
    for name, longest, found, count in (
        ("source", longest_source, (whole.inputs["input_ids"], cut.inputs["input_ids"]), cut.alignment.cut_sources),
        (
            "target",
            longest_target,
            (whole.token_targets["labels"], cut.token_targets["labels"]),
            cut.alignment.cut_targets,
        ),
    ):
        assert count == sum(len(row) > longest for row in found[0]), name
        for before, after in zip(*found, strict=True):
            assert after == (before if len(before) <= longest else [*before[: longest - 1], before[-1]])
    said = TASK.row_notes({"train": cut, "test": cut}, PairKeys(max_target_length=longest_target))
    expected = []
    if count := cut.alignment.cut_sources:
        expected.append(f"sources are cut, {count} of 60 of train, {count} of 60 of test: ")
    if count := cut.alignment.cut_targets:
        expected.append(f"targets are cut at {longest_target} tokens, {count} of 60 of train, {count} of 60 of test: ")
    assert len(said) == len(expected)
    assert all(note.startswith(start) for note, start in zip(said, expected, strict=True))


def test_nothing_is_noted_where_nothing_is_cut():
    assert TASK.row_notes({"train": encoded(PAIRS)}, PairKeys()) == []


def test_prompts_are_the_sources():
    split = PairSplit(*map(list, zip(*PAIRS, strict=True)))
    keys = PairKeys(prefix="translate: ")
    assert (
        TASK.prompts(split, keys, paired.tokenizer(), 9)
        == encoded(PAIRS, max_length=9, prefix="translate: ").inputs["input_ids"]
    )


def test_a_row_is_shown_with_its_target_marked():
    rows, tokenizer = encoded(PAIRS), paired.tokenizer()
    tokens = tokenizer.convert_ids_to_tokens(rows.inputs["input_ids"][1])
    target = tokenizer.convert_ids_to_tokens(rows.token_targets["labels"][1])
    assert TASK.marked(rows, 1, tokens, ()) == f"{' '.join(tokens)} -> [[{' '.join(target)}]]"


# ---------------------------------------------------------------- the decoder


@pytest.mark.parametrize("kind", paired.SIZES)
def test_the_inputs_of_the_decoder_are_those_of_transformers(kind):
    """On a padded batch, as transformers shifts labels itself."""
    model = paired.model(kind)
    rows = TASK.for_model(encoded(PAIRS, kind == "encoder-decoder"), model)
    found, labels = rows.decoder_inputs["decoder_input_ids"], rows.token_targets["labels"]
    longest = max(map(len, labels))
    padded = torch.tensor([[*row, *[IGNORED] * (longest - len(row))] for row in labels])
    wanted = model.prepare_decoder_input_ids_from_labels(labels=padded)
    for own, expected, row in zip(found, wanted.tolist(), labels, strict=True):
        assert own == expected[: len(row)]
        assert own[1:] == row[:-1]


@pytest.mark.filterwarnings("ignore:Version v4.12.0")
@pytest.mark.parametrize("kind", paired.KINDS)
def test_the_loss_is_that_of_the_model(kind):
    """With the decoder's inputs and mask of a batch, and with `labels` alone."""
    from hpo.finetune.data.encoded import on_device

    model = paired.model(kind).double().eval()
    rows = TASK.for_model(encoded(PAIRS[:7], kind == "encoder-decoder"), model)
    inputs, targets = on_device(rows, 0, torch.device("cpu")).batch(np.arange(7))
    logits = model(**inputs).logits.flatten(0, 1)
    own = torch.nn.functional.cross_entropy(logits, targets["labels"].flatten(), reduction="sum") / rows.units.sum()
    alone = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=targets["labels"])
    assert own.item() == pytest.approx(alone.loss.item(), rel=1e-9)


def test_a_decoder_that_knows_no_first_token_is_refused():
    config = paired.config("encoder-decoder", decoder_start_token_id=None)
    with pytest.raises(ModelError, match=r"write decoder_start_token_id into its config.json.*\[CLS\]"):
        TASK.for_model(encoded(PAIRS, True), AutoModelForSeq2SeqLM.from_config(config))


def test_targets_that_the_decoder_cannot_read_are_refused():
    config = paired.config("marian")
    config.max_position_embeddings = 4
    model = AutoModelForSeq2SeqLM.from_config(config)
    with pytest.raises(
        ModelError, match=r"a target has \d+ tokens, and the decoder of MarianMTModel reads 4; set data"
    ):
        TASK.for_model(encoded(PAIRS), model)


# ---------------------------------------------------------------- the task


@pytest.mark.parametrize("kind", paired.SIZES)
def test_the_task_is_found_by_the_class_of_a_model(kind):
    assert task_for(type(paired.model(kind)).__name__, None, 2) is TASK


def test_other_classes_are_other_tasks():
    for name in ("BertForSequenceClassification", "T5ForSequenceClassification", "BartForQuestionAnswering"):
        assert task_for(name, None, 2) is not TASK


def test_sources_alone_can_be_predicted():
    split = TASK.unlabelled([{"source": "word1"}, {"source": "word2"}], PairKeys())
    assert (split.sources, split.targets) == (["word1", "word2"], ["", ""])
    encoded = TASK.encode(split, PairKeys(), paired.tokenizer(), 32)
    found = TASK.predictions(split, encoded, {"loss": np.ones(2), "right": np.ones(2)}, PairKeys())
    assert TASK.predicted_rows(found, ()) == [{"predicted": None}] * 2
    with pytest.raises(DataError, match="the source is empty in 1 of 2 rows, first in row 2"):
        TASK.unlabelled([{"source": "word1"}, {"source": ""}], PairKeys())


def test_the_code_of_the_card_runs(tmp_path, capsys):
    folder = paired.save_model(tmp_path / "model", "bart")
    code = TASK.usage({"max_length": 16, "data": {"prefix": "translate: ", "max_target_length": 5, "train": "x.csv"}})
    exec(code.replace("FOLDER", str(folder)).replace("TEXT", "word1 word2"), {})
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_facts_say_how_long_texts_are(tmp_path):
    data = read(tmp_path, train=written(tmp_path, rows_of(PAIRS)), prefix="translate: ")
    found = TASK.facts(data)
    assert found["before each source"] == "'translate: '"
    assert f"{max(map(len, data.splits['train'].targets))} at most" in found["characters"]


def test_texts_that_are_made_without_a_model():
    split = PairSplit(["One. Two.", "Three"], ["1", "3"])
    made = TASKS["seq2seq"].texts_without_model(split)
    assert made == {"The source copied": split.sources, "The first sentence of the source": ["One.", "Three"]}
    assert list(TASKS["seq2seq"].texts_without_model(PairSplit(["One two"], ["1"]))) == ["The source copied"]
