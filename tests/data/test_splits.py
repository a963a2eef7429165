import numpy as np
import pytest
from data_files import GOOD, frame, load
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hpo.core.errors import DataError
from hpo.tasks import loading
from hpo.tasks.classification.texts import TextSplit


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.integers(0, 30), min_size=30, max_size=120),
    shares=st.tuples(st.sampled_from([0.1, 0.25, 5]), st.sampled_from([0.1, 0.2, 4])),
    seed=st.integers(0, 5),
)
def test_made_splits_are_a_partition_with_duplicates_on_one_side(tmp_path_factory, texts, shares, seed):
    folder = tmp_path_factory.mktemp("splits")
    frame(folder, text=[f"t{i}" for i in texts], label=["ab"[i % 2] for i in texts])
    try:
        splits = load(folder, seed=seed, validation=shares[0], test=shares[1]).splits
    except DataError:  # too few texts to make three splits of
        assume(False)
    assert sorted(t for s in splits.values() for t in s.texts) == sorted(f"t{i}" for i in texts)
    sets = [set(split.texts) for split in splits.values()]
    assert sum(map(len, sets)) == len(set().union(*sets))


def test_made_splits_have_the_size_asked_for_and_the_classes_in_proportion(tmp_path):
    frame(tmp_path, text=[f"t{i}" for i in range(1000)], label=["a"] * 700 + ["b"] * 250 + ["c"] * 50)
    splits = load(tmp_path, validation=100, test=0.2).splits
    assert [len(splits[name]) for name in loading.SPLITS] == [700, 100, 200]
    assert np.bincount(splits["validation"].targets).tolist() == [70, 25, 5]
    assert np.bincount(splits["test"].targets).tolist() == [140, 50, 10]


def test_a_rare_class_is_never_taken_out_of_train_whole(tmp_path):
    labels = [f"rare{i}" for i in range(9)] + ["a", "b"] * 60
    frame(tmp_path, text=[f"t{i}" for i in range(len(labels))], label=labels)
    found = load(tmp_path, validation=0.2, test=0.2)
    assert set(found.splits["train"].targets) == set(range(len(found.labels)))


# ---------------------------------------------------------------- groups


@settings(max_examples=40)
@given(
    rows=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 60)), min_size=60, max_size=150),
    seed=st.integers(0, 5),
)
def test_neither_a_group_nor_a_text_is_on_two_sides(tmp_path_factory, rows, seed):
    folder = tmp_path_factory.mktemp("groups")
    frame(
        folder,
        text=[f"t{t}" for t, _ in rows],
        who=[f"g{g}" for _, g in rows],
        label=["ab"[(t + g) % 2] for t, g in rows],
    )
    try:
        splits = load(folder, seed=seed, validation=0.2, test=0.2, group="who").splits
    except DataError:  # all rows are linked, or the groups are too large
        assume(False)
    assert sum(map(len, splits.values())) == len(rows)
    for of in (lambda split: set(split.members), lambda split: set(split.texts)):
        sides = [of(split) for split in splits.values()]
        assert sum(map(len, sides)) == len(set().union(*sides))


def test_splits_of_groups_have_about_the_size_and_the_classes_asked_for(tmp_path):
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 150, 1000)
    labels = np.where(rng.random(1000) < 0.1 + 0.6 * (groups % 3 == 0), "rare", "often")
    frame(tmp_path, text=[f"t{i}" for i in range(1000)], label=labels, who=[f"g{g}" for g in groups])
    share = (labels == "rare").mean()
    found = load(tmp_path, validation=0.2, test=100, group="who")
    for name, rows in (("validation", 200), ("test", 100)):
        split = found.splits[name]
        assert abs(len(split) - rows) <= 5
        assert abs((split.targets == found.labels.index("rare")).mean() - share) < 0.02
    assert found.digest == load(tmp_path, validation=0.2, test=100, group="who").digest
    assert found.digest != load(tmp_path, validation=0.2, test=100, group="who", seed=1).digest


@pytest.mark.parametrize("seed", range(5))
def test_a_class_of_one_group_stays_in_train(tmp_path, seed):
    labels = ["a", "b"] * 45 + ["rare"] * 10
    frame(tmp_path, text=[f"t{i}" for i in range(100)], label=labels, who=[f"g{i // 10}" for i in range(100)])
    found = load(tmp_path, seed=seed, validation=0.2, test=0.2, group="who")
    assert (found.splits["train"].targets == found.labels.index("rare")).sum() == 10
    assert [len(found.splits[name]) for name in loading.SPLITS] == [60, 20, 20]


def test_groups_too_large_to_be_set_aside_are_named(tmp_path):
    frame(tmp_path, **GOOD, who=["g", "h"] * 20)
    with pytest.raises(DataError, match="rows with the same text or the same 'who' stay in one split"):
        load(tmp_path, group="who")


def test_rows_of_one_text_or_one_group_are_one_draw(tmp_path):
    one = TextSplit(["a", "b", "a", "c"], None, np.zeros(4))
    assert one.groups.tolist() == [0, 1, 0, 2]
    pairs = TextSplit(["a", "a", "a"], ["x", "y", "x"], np.zeros(3))
    assert pairs.groups.tolist() == [0, 1, 0]
    linked = TextSplit(["a", "b", "c", "a", "d"], None, np.zeros(5), members=["g", "g", "h", "h", "i"])
    assert linked.groups.tolist() == [0, 0, 0, 0, 1]  # g and h both have the text a
    assert TextSplit([], None, np.zeros(0), members=[]).groups.tolist() == []
