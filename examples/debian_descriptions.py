"""Texts of Debian's packages, for the studies `summaries` and `translations` (see studies/). Debian and Ubuntu only.

    python examples/debian_descriptions.py
    hpo run summaries
    hpo run translations

`apt-get update` fetches the lists of packages and their descriptions, from wherever this machine's apt is set up to
fetch them, into a folder of its own. Each description is under the licence of its package, so the files that this
writes are for your own use.

    package_summaries.jsonl      source, description, summary: the description in full, and the line that sums it up
    package_translations.jsonl   source, english, german: the same line in two languages

`source` is the source package. Packages of one source have descriptions in common; they belong in one split.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

LANGUAGES = ("en", "de")
SHORTEST, LONGEST = 200, 1200  # characters of a description
HELPER = "/usr/lib/apt/apt-helper"

Stanza = dict[str, str]
Texts = dict[str, tuple[str, str]]  # Description-md5 -> summary, description


def fetched(lists: Path) -> None:
    """Fetch the lists of packages and of descriptions into a folder."""
    (lists / "partial").mkdir(parents=True)
    private = ["-o", f"Dir::State::lists={lists}", "-o", f"Acquire::Languages={','.join(LANGUAGES)}"]
    private += ["-o", f"APT::Sandbox::User={os.environ.get('USER', 'root')}", "-o", "Debug::NoLocking=1"]
    if subprocess.run(["apt-get", *private, "--quiet=2", "update"], check=False).returncode:
        raise SystemExit("apt-get update failed; its message is above")


def stanzas(path: Path) -> Iterator[Stanza]:
    """Yield the entries of a list: field -> value, with the line breaks of the value."""
    text = subprocess.run([HELPER, "cat-file", str(path)], check=True, capture_output=True).stdout.decode()
    for block in text.split("\n\n"):
        fields = re.findall(r"^([\w-]+):[ ]?(.*(?:\n[ ].*)*)", block, flags=re.MULTILINE)
        if fields:
            yield dict(fields)


def texts(lists: Path, language: str) -> Texts:
    """Return the descriptions in one language."""
    found = {}
    for path in sorted(lists.glob(f"*_Translation-{language}*")):
        for stanza in stanzas(path):
            summary, _, description = stanza.get(f"Description-{language}", "").partition("\n")
            found[stanza["Description-md5"]] = summary.strip(), paragraphs(description)
    return found


def paragraphs(description: str) -> str:
    """Return a description without the marks of its lines: a dot stands for an empty line."""
    lines = [line.strip() for line in description.splitlines()]
    return " ".join(line for line in lines if line != ".")


def sources(lists: Path) -> dict[str, str]:
    """Return Description-md5 -> source package, of each description the first by name."""
    found: dict[str, str] = {}
    for path in sorted(lists.glob("*_Packages*")):
        for stanza in stanzas(path):
            source = stanza.get("Source", stanza["Package"]).partition(" ")[0]
            found.setdefault(stanza.get("Description-md5", ""), source)
    return found


def write(path: str, rows: list[Stanza]) -> None:
    """Write rows as JSONL into the working folder."""
    Path(path).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"wrote {path}: {len(rows):,} rows")


def main() -> None:
    """Write both files."""
    if shutil.which("apt-get") is None or not Path(HELPER).exists():
        raise SystemExit("the descriptions are fetched with apt, which this machine does not have")
    with tempfile.TemporaryDirectory() as scratch:
        lists = Path(scratch) / "lists"
        print("fetching the lists of packages", flush=True)
        fetched(lists)
        english, german = (texts(lists, language) for language in LANGUAGES)
        source = {md5: name for md5, name in sources(lists).items() if md5 in english}
    summaries, translations = [], []
    for md5 in sorted(source):
        summary, description = english[md5]
        if SHORTEST <= len(description) <= LONGEST:
            summaries.append({"source": source[md5], "description": description, "summary": summary})
        translated, _ = german.get(md5, ("", ""))
        if translated and translated != summary:  # some entries were left in English
            translations.append({"source": source[md5], "english": summary, "german": translated})
    write("package_summaries.jsonl", summaries)
    write("package_translations.jsonl", translations)


if __name__ == "__main__":
    main()
