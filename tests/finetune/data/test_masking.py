"""Masks of tokens: how many, of which kind, and on what they depend."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpo.finetune.data.encoded import Tokens, on_device
from hpo.tasks.rows import IGNORED, EncodedRows, Masking

MASK, WORDS, PAD = 1, 1000, 0
CPU = torch.device("cpu")


def tokens(lengths: list[int], share: float = 0.15, key: int = 3) -> Tokens:
    """Return rows of tokens between two special ones, which are never masked."""
    rng = np.random.default_rng(0)
    rows = [np.concatenate([[2], rng.integers(10, WORDS, length), [3]]) for length in lengths]
    labels = [np.where((row == 2) | (row == 3), IGNORED, row) for row in rows]
    counts = np.array([max(1, round(share * length)) for length in lengths])
    encoded: Any = EncodedRows(
        {"input_ids": rows}, {"masked": counts}, {"labels": labels}, counts.astype(float), np.arange(len(rows)),
        masking=Masking(MASK, WORDS),
    )  # fmt: skip
    return on_device(encoded, PAD, CPU, key)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.sampled_from([0.01, 0.15, 0.5, 0.99]), st.integers(0))
def test_of_each_row_exactly_so_many_tokens_are_masked(lengths: list[int], share: float, key: int) -> None:
    split = tokens(lengths, share)
    rows = np.arange(len(lengths))
    inputs, targets = split.batch(rows, key=key % 2**32)
    original = split.ids.long()
    assert (targets["labels"] != IGNORED).sum(dim=1).tolist() == split.units.tolist()
    for row, start, length in zip(rows, split.starts.tolist(), split.lengths, strict=True):
        own = original[start : start + length]
        labels, ids = targets["labels"][row], inputs["input_ids"][row]
        given_out = labels != IGNORED
        assert not given_out[0]
        assert not given_out[length - 1 :].any()
        assert torch.equal(labels[given_out], own[given_out[:length]])
        assert torch.equal(ids[:length][~given_out[:length]], own[~given_out[:length]])
    assert torch.equal(inputs["attention_mask"].sum(dim=1), split.counts)


def test_eight_of_ten_are_hidden_one_is_another_token_and_one_stays() -> None:
    split = tokens([1000] * 40)
    inputs, targets = split.batch(np.arange(40))
    chosen = targets["labels"] != IGNORED
    ids, labels = inputs["input_ids"][chosen], targets["labels"][chosen]
    assert len(ids) == 6000
    kinds = np.array(
        [float(each.float().mean()) for each in (ids == MASK, (ids != MASK) & (ids != labels), ids == labels)]
    )
    # Three standard errors of a share of 6,000; of the other tokens, 1 in 1,000 is the same by chance.
    assert np.all(np.abs(kinds - [0.8, 0.1, 0.1]) < 3 * (0.25 / 6000) ** 0.5)
    others = ids[(ids != MASK) & (ids != labels)]
    assert 0 <= int(others.min()) < 50
    assert 950 < int(others.max()) < WORDS


def test_every_position_is_masked_equally_often() -> None:
    split = tokens([20])
    counts = torch.zeros(22)
    for key in range(2000):
        counts += split.batch(np.array([0]), key=key)[1]["labels"][0, :22] != IGNORED
    assert counts[[0, 21]].tolist() == [0, 0]
    assert (abs(counts[1:21] / 2000 - 0.15) < 4 * (0.15 * 0.85 / 2000) ** 0.5).all()


def test_masks_depend_on_key_and_row_and_not_on_the_batch_or_its_padding() -> None:
    split = tokens([30, 12, 30, 7])
    alone, beside = split.batch(np.array([1]), key=5), split.batch(np.array([3, 1, 0]), key=5)
    padded = split.gather(torch.tensor([1]), 64, keys=torch.tensor([5]))
    for found, row in ((beside, 1), (padded, 0)):
        for mine, theirs in zip(alone, found, strict=True):
            for name in set(mine) - {"masked"}:
                assert torch.equal(mine[name][0, :14], theirs[name][row, :14])
    other_key = split.batch(np.array([1]), key=6)[1]["labels"]
    assert not torch.equal(other_key, alone[1]["labels"])
    whole = split.batch(np.array([0, 2]), key=5)[1]["labels"] != IGNORED
    assert not torch.equal(whole[0], whole[1])


def test_without_a_key_a_split_has_its_own_masks() -> None:
    rows = np.arange(3)
    one, again, other = (tokens([30, 12, 30], key=key).batch(rows)[0]["input_ids"] for key in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
