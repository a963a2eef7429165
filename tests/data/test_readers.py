import json
import re

import pytest
from data_files import load, texts

from hpo.core.errors import DataError

QUOTED = "text,label\nDon\u2019t stop,a\ncaf\xe9,b\n" + "".join(f"x{i},{'ab'[i % 2]}\n" for i in range(40))


def test_the_advice_for_a_windows_file_reads_it_as_it_was_written(tmp_path):
    (tmp_path / "train.csv").write_bytes(QUOTED.encode("cp1252"))
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    said = str(caught.value)
    assert "line 2 has the byte 0x92. Read as cp1252 (not as latin-1), the line is 'Don\u2019t stop,a'" in said
    advised = re.search(r"encoding: ([\w-]+)", said)[1]
    assert re.search(r"iconv -f ([\w-]+) ", said)[1] == advised
    assert {"Don\u2019t stop", "caf\xe9"} <= texts(load(tmp_path, encoding=advised))


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"text,label\ncaf\xe9,a\n", "cp1252 or latin-1, which are the same here, the line is 'caf\xe9,a'"),
        (b"text,label\na\x81\x92b,a\n", "It is neither cp1252 nor latin-1 text"),
        (b"text,label\n" + b"x" * 500 + b"\x93end,a\n", "the line is 'x{54}\u201cend,a'"),
        ("text,label\nfine,a\n".encode("utf-16"), "It begins as UTF-16 does: set data: {encoding: utf-16}"),
    ],
)
def test_an_encoding_is_advised_only_where_it_gives_text(tmp_path, raw, said):
    (tmp_path / "train.csv").write_bytes(raw)
    with pytest.raises(DataError, match=said):
        load(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8", "utf-8-sig", "latin-1", "cp1252"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
def test_a_file_is_read_in_the_encoding_that_is_named(tmp_path, encoding, kind):
    rows = [{"text": f"caf\xe9 {i}", "label": "ab"[i % 2]} for i in range(40)]
    content = {
        "csv": "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows),
        "jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        "json": json.dumps(rows, ensure_ascii=False),
    }
    (tmp_path / f"rows.{kind}").write_bytes(content[kind].encode(encoding))
    assert texts(load(tmp_path, train=f"rows.{kind}", encoding=encoding)) == {row["text"] for row in rows}


def test_a_wrong_encoding_is_named_with_the_line(tmp_path):
    (tmp_path / "train.csv").write_bytes(b"text,label\nfine,a\nx\x81,b\n")
    with pytest.raises(DataError, match="is not cp1252 text: line 3 has the byte 0x81"):
        load(tmp_path, encoding="cp1252")


@pytest.mark.parametrize(("separator", "name"), [(";", "train.csv"), ("|", "train.tsv"), ("\t", "train.csv")])
def test_fields_are_separated_as_the_study_says(tmp_path, separator, name):
    rows = "".join(f'"a{separator}b, {i}"{separator}{"xy"[i % 2]}\n' for i in range(40))
    (tmp_path / name).write_text(f"text{separator}label\n{rows}")
    assert texts(load(tmp_path, train=name, separator=separator)) == {f"a{separator}b, {i}" for i in range(40)}
