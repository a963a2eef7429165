"""Questions in SQuAD's form: thirty written by hand, seven of them without an answer, and more by template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tiny

# Context -> (question, answer or none).
WRITTEN: dict[str, list[tuple[str, str | None]]] = {
    "The lighthouse on Gull Rock was built in 1841 from grey granite. Its lamp burned whale oil until 1879, when the "
    "keeper, Martha Pell, had it changed to paraffin. The tower is 38 metres high.": [
        ("When was the lighthouse on Gull Rock built?", "1841"),
        ("What is the lighthouse made of?", "grey granite"),
        ("Who was the keeper in 1879?", "Martha Pell"),
        ("How high is the tower?", "38 metres"),
        ("Who built the lighthouse?", None),
    ],
    "Bread rises because yeast eats sugar and gives off carbon dioxide. The gas is held by gluten, a net of proteins "
    "that forms when flour is kneaded with water. Salt slows the yeast down and makes the gluten stronger.": [
        ("What does yeast eat?", "sugar"),
        ("Which gas makes bread rise?", "carbon dioxide"),
        ("What holds the gas?", "gluten, a net of proteins"),
        ("What slows the yeast down?", "Salt"),
        ("At what temperature does yeast die?", None),
    ],
    "In the spring of 1902 the Oster river left its bed and flooded the lower town for nine days. Nobody was drowned, "
    "but the old bridge fell. A new one of iron was opened by the mayor, Jonas Brandt, two years later.": [
        ("Which river flooded the lower town?", "the Oster river"),
        ("How long did the flood last?", "nine days"),
        ("What was the new bridge made of?", "iron"),
        ("Who opened the new bridge?", "the mayor, Jonas Brandt"),
        ("How many people were drowned in the upper town?", None),
    ],
    "Swifts spend most of their lives in the air. They eat, drink and even sleep while they fly, and they land only to "
    "nest. A young swift may fly for three years before it lands for the first time.": [
        ("Where do swifts spend most of their lives?", "in the air"),
        ("Why do swifts land?", "to nest"),
        ("How long may a young swift fly before it lands?", "three years"),
        ("How fast do swifts fly?", None),
    ],
    "The clock of St. Anne's has one hand only. It was made in 1623 by a smith called Ruprecht, who held that “nobody "
    "needs minutes”. A second hand was proposed in 1790, and the parish refused it by 41 votes to 7.": [
        ("How many hands does the clock of St. Anne's have?", "one hand only"),
        ("What did the smith hold?", "“nobody needs minutes”"),
        ("By how many votes was a second hand refused?", "41 votes to 7"),
        ("Who proposed a second hand?", None),
    ],
    "Émile Fournier's café in the Rue d'Arc opened at 5 a.m. for the men of the market. A cup of coffee cost two sous, "
    "and a cup with chicory one sou. It closed in 1911, when the market moved to the harbour.": [
        ("Whose café was in the Rue d'Arc?", "Émile Fournier's"),
        ("What did a cup of coffee cost?", "two sous"),
        ("Where did the market move to?", "the harbour"),
        ("Who bought the café in 1911?", None),
    ],
    "Graphite and diamond are both carbon. In graphite the atoms lie in sheets that slide over each other, which is "
    "why a pencil writes; in diamond each atom is bound to four others.": [
        ("Of what are graphite and diamond made?", "carbon"),
        ("How do the atoms lie in graphite?", "in sheets that slide over each other"),
        ("Where are most diamonds found?", None),
    ],
}

_TOWNS = ["Alder", "Brack", "Corin", "Dunmore", "Elsing", "Fallow", "Garth", "Holm", "Irby", "Kessel"]
_PEOPLE = ["Ada Lind", "Bruno Falk", "Clara Moss", "David Ross", "Edith Gray", "Felix Horn", "Greta Stone", "Hugo West"]
_GOODS = ["salt", "wool", "tin", "glass", "timber", "barley", "paper", "copper"]
# Fact: sentence, question.
_FACTS = {
    "year": ("{town} was founded in {year}.", "When was {town} founded?"),
    "founder": ("Its founder was {founder}.", "Who was the founder of {town}?"),
    "goods": ("For long the town lived on {goods}.", "What did {town} live on?"),
    "mayor": ("The present mayor is {mayor}.", "Who is the mayor of {town}?"),
    "people": ("The town has {people} inhabitants.", "How many inhabitants has {town}?"),
}


def written() -> list[dict[str, Any]]:
    """Return the questions that were written by hand, as rows with the Hub's columns."""
    return [
        _row(f"w{number}-{place}", question, context, answer)
        for number, (context, asked) in enumerate(WRITTEN.items())
        for place, (question, answer) in enumerate(asked)
    ]


def made(count: int, seed: int = 0, unanswerable: float = 0.2) -> list[dict[str, Any]]:
    """Return questions made by template, one for each context.

    Args:
        count: Number of questions.
        seed: Seeds the facts.
        unanswerable: Share of the questions about a fact that the context leaves out.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        facts: dict[str, str] = {"town": str(rng.choice(_TOWNS)), "goods": str(rng.choice(_GOODS))}
        facts |= dict(zip(("founder", "mayor"), map(str, rng.choice(_PEOPLE, 2, replace=False)), strict=True))
        facts |= {"year": str(rng.integers(1100, 1900)), "people": str(rng.integers(2, 90) * 100)}
        asked = str(rng.choice(list(_FACTS)))
        left_out = rng.random() < unanswerable
        told = [name for name in rng.permutation(list(_FACTS)) if not (left_out and name == asked)]
        context = " ".join(_FACTS[name][0].format(**facts) for name in told)
        question = _FACTS[asked][1].format(**facts)
        rows.append(_row(f"m{number}", question, context, None if left_out else facts[asked]))
    return rows


def topics(count: int, seed: int = 0, unanswerable: float = 0.2, words: int = 12) -> list[dict[str, Any]]:
    """Return questions in the words of `tiny.tokenizer`: the answer is the context's word of the question's topic.

    Args:
        count: Number of questions, two about each context.
        seed: Seeds the words.
        unanswerable: Share of the contexts without a word of the topic that is asked for.
        words: Words of a context at most.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        if number % 2 == 0:
            told = {topic: str(rng.choice(each)) for topic, each in tiny.TOPICS.items()}
            if rng.random() < 2 * unanswerable:
                del told[str(rng.choice(list(told)))]
            context = [*map(str, rng.choice(tiny.FILLER, rng.integers(3, words - 1), replace=False)), *told.values()]
            rng.shuffle(context)
        topic = list(tiny.TOPICS)[number % 2]
        question = f"{rng.choice(tiny.TOPICS[topic])} {rng.choice(tiny.FILLER)}"
        rows.append(_row(f"t{seed}-{number}", question, " ".join(context), told.get(topic)))
    return rows


def document(rows: list[dict[str, Any]], version: str = "v2.0") -> dict[str, Any]:
    """Return rows as SQuAD's JSON; version 1.1 has no marks of questions without an answer."""
    paragraphs: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        pairs = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
        asked = {"id": row["id"], "question": row["question"]}
        asked["answers"] = [{"text": text, "answer_start": start} for text, start in pairs]
        if version == "v2.0":
            asked["is_impossible"] = not asked["answers"]
        paragraphs.setdefault(row["context"], []).append(asked)
    listed = [{"context": context, "qas": asked} for context, asked in paragraphs.items()]
    return {"version": version, "data": [{"title": "tests", "paragraphs": listed}]}


def write(path: Path, content: Any) -> Path:
    """Write JSON, or JSONL and Parquet from rows, by the file's ending."""
    if path.suffix == ".parquet":
        import pandas as pd

        pd.DataFrame(content).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in content), encoding="utf-8")
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
    return path


def _row(name: str, question: str, context: str, answer: str | None) -> dict[str, Any]:
    texts = [] if answer is None else [answer]
    starts = [context.index(text) for text in texts]
    return {"id": name, "question": question, "context": context, "answers": {"text": texts, "answer_start": starts}}


def study(folder: Path, **overrides: Any) -> dict[str, Any]:
    """Return a study of questions in `folder`: as `tiny.study`; some have two windows."""
    if not (folder / "questions.jsonl").exists():
        write(folder / "questions.jsonl", topics(160))
    data = {"train": str(folder / "questions.jsonl"), "validation": 30, "test": 30, "stride": 4}
    settings = {"name": "asked", "task": "question_answering", "max_length": 16, "evaluations_per_epoch": 1}
    return tiny.study(folder, **{**settings, "data": data, **overrides})
