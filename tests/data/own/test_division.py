"""Division: shares, strata, groups, folds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgrec_jax.data.own.division import canonical_split, connected, divide, group_finder, held_out, parse_fold

SHARES = (0.8, 0.1, 0.1)


def test_spellings_of_splits():
    names = ("Train", "training", "VAL", "valid", "validation", "dev", "test", "Testing", "train set", "plane")
    assert [canonical_split(name) for name in names] == [*["train"] * 2, *["validation"] * 4, *["test"] * 2, "train", None]


@pytest.mark.parametrize("text", ["", "0/5", "6/5", "1/1", "a/b", "2", "1/5/2"])
def test_folds_that_are_none(text):
    with pytest.raises(ValueError, match="expected e.g. '2/5'"):
        parse_fold(text)


def test_every_class_is_in_every_part_and_shares_hold():
    strata = np.repeat([0, 1, 2, 3], [100, 40, 3, 1])
    names = [str(n) for n in range(len(strata))]
    parts = divide(names, strata, np.arange(len(strata)), SHARES, 0)
    table = np.array([[((strata == c) & (parts == p)).sum() for p in range(3)] for c in range(4)])
    assert table.tolist() == [[80, 10, 10], [32, 4, 4], [1, 1, 1], [1, 0, 0]]
    assert divide(names, strata, np.arange(len(strata)), SHARES, 0).tolist() == parts.tolist()
    assert divide(names, strata, np.arange(len(strata)), SHARES, 1).tolist() != parts.tolist()


def test_what_is_added_moves_few():
    names = [f"{n}.png" for n in range(1000)]
    strata, groups = np.zeros(1100, int), np.arange(1100)
    before = divide(names, strata[:1000], groups[:1000], SHARES, 0)
    after = divide([*names, *(f"new{n}.png" for n in range(100))], strata, groups, SHARES, 0)[:1000]
    assert (before != after).mean() < 0.05


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 5), st.integers(10, 60))
def test_folds_cover_every_group_once(seed, folds, classes, groups):
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), rng.integers(1, 6, groups))
    strata = rng.integers(0, classes, len(group))
    names = [str(n) for n in range(len(group))]
    part = divide(names, strata, group, folds, seed)
    assert part.min() >= 0 and part.max() < folds
    assert all(len(set(part[group == g])) == 1 for g in range(groups))
    assert sum(((part == p).sum()) for p in range(folds)) == len(group)
    if groups >= 5 * folds:
        sizes = np.bincount(part, minlength=folds)
        assert sizes.max() - sizes.min() <= 0.5 * len(group)


@pytest.mark.parametrize(("folds", "counts"), [(10, [40, 5]), (5, [2] * 50), (3, [1, 1, 1]), (4, [7, 3, 2, 9])])
@pytest.mark.parametrize("each", [1, 2])
def test_folds_deal_every_class(folds, counts, each):
    """Also where every image has a twin in its group."""
    strata = np.repeat(np.arange(len(counts)), np.array(counts) * each)
    part = divide([str(n) for n in range(len(strata))], strata, np.arange(len(strata)) // each, folds, 0)
    table = np.array([np.bincount(part[strata == c], minlength=folds) for c in range(len(counts))])
    assert np.ptp(table, axis=1).max() <= each and np.ptp(table.sum(0)) <= (each if each == 1 else 2 * each)


def test_the_only_group_of_a_class_is_never_held_out():
    strata = np.array([0] * 8 + [1] * 3 + [2])
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4, 5])
    names = [str(n) for n in range(12)]
    held = [held_out(names, strata, groups, f"{n}/4", 0) for n in range(1, 5)]
    assert np.sum([out for out, _ in held], axis=0).tolist() == [1] * 8 + [0] * 4
    assert held[0][1].tolist() == [False] * 8 + [True] * 4
    with pytest.raises(ValueError, match="config.data.fold='2/4' holds nothing out: 0 of 2 images or groups"):
        held_out(names[:5], np.array([0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1]), "2/4", 0)


@pytest.mark.parametrize("counts", [[2, 1], [1, 1, 1], [3, 1], [2, 2], [5]])
def test_no_class_leaves_the_first_part(counts):
    strata = np.repeat(np.arange(len(counts)), counts)
    for seed in range(5):
        part = divide([str(n) for n in range(len(strata))], strata, np.arange(len(strata)), SHARES, seed)
        assert set(strata[part == 0]) == set(range(len(counts)))


def test_groups_by_a_regex():
    assert list(map(group_finder(r"p(\d+)_"), ("p12_3", "q12_3"))) == ["12", ""]
    assert group_finder(r"p\d")("xp12") == "p1" and group_finder("")("x") == "" and group_finder("(a)|b")("b") == ""
    with pytest.raises(ValueError, match=r"config.data.group='\(' is no regular expression"):
        group_finder("(")


def test_connected_joins_what_shares_any_key():
    joined = connected(np.array([0, 0, 1, 2, 3]), np.array([7, 8, 9, 8, 5]))
    assert joined[0] == joined[1] == joined[3] and len({joined[0], joined[2], joined[4]}) == 3
