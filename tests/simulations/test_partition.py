"""Partitions: deterministic, independent of order, and no patient on both sides."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConsiliumError
from simulations.partition import assign_modalities, draw_sites, grouped_folds, linked_groups

names = st.text("abcdefgh", min_size=1, max_size=3)
visits = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 20)), min_size=1, max_size=40)


@given(st.sets(names, min_size=1, max_size=12), st.sets(names, min_size=1, max_size=4), st.floats(0, 1), st.integers(0, 99))
def test_every_modality_is_held_twice_whenever_the_number_of_sites_allows_it(sites, modalities, share, seed):
    held = assign_modalities(sites, modalities, full_share=share, seed=seed)

    full = math.ceil(share * len(sites))
    most = max(1, min(2, len(modalities) - 1))
    assert set(held) == sites
    assert sum(set(m) == modalities for m in held.values()) == (len(sites) if len(modalities) == 1 else full)
    assert all(set(m) == modalities or 1 <= len(m) <= most for m in held.values())
    if full >= 2 or (len(sites) >= 2 and (len(sites) - full) * most >= (2 - full) * len(modalities)):
        holders = Counter(m for kept in held.values() for m in kept)
        assert all(holders[m] >= 2 for m in modalities)


@given(st.lists(names, min_size=1, max_size=12, unique=True), st.integers(0, 99), st.randoms())
def test_the_order_of_sites_and_modalities_does_not_decide_who_holds_what(sites, seed, random):
    modalities = ["series", "table", "text"]
    first = assign_modalities(sites, modalities, full_share=1 / 3, seed=seed)
    random.shuffle(sites)
    random.shuffle(modalities)

    assert assign_modalities(sites, modalities, full_share=1 / 3, seed=seed) == first


def test_another_seed_deals_differently():
    sites = [f"site-{i}" for i in range(12)]
    dealt = {tuple(assign_modalities(sites, ["a", "b", "c"], full_share=1 / 3, seed=(s, 0, 1)).items()) for s in range(5)}

    assert len(dealt) == 5


def test_the_deal_is_the_same_on_every_machine():
    assert assign_modalities("abcdef", ["series", "table", "text"], full_share=1 / 3, seed=(0, 0, 1)) == {
        "a": ("table",),
        "b": ("series", "table", "text"),
        "c": ("text",),
        "d": ("series",),
        "e": ("series", "table", "text"),
        "f": ("table", "text"),
    }


@given(visits)
def test_linked_groups_are_the_finest_that_split_no_site_and_no_patient(rows):
    sites, patients = zip(*rows, strict=True)
    group = linked_groups(sites, patients)

    for key in (sites, patients):
        assert all(len({group[i] for i, k in enumerate(key) if k == one}) == 1 for one in set(key))
    merged = [{s} for s in set(sites)]
    for patient in set(patients):
        joined = [m for m in merged if any(s in m for s, p in rows if p == patient)]
        merged = [m for m in merged if m not in joined] + [set().union(*joined)]
    assert len(set(group)) == len(merged)


@given(visits, st.randoms())
def test_the_order_of_visits_does_not_change_their_groups(rows, random):
    before = dict(zip(rows, linked_groups(*zip(*rows, strict=True)), strict=True))
    random.shuffle(rows)

    assert dict(zip(rows, linked_groups(*zip(*rows, strict=True)), strict=True)) == before


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 1)), min_size=60, max_size=120), st.integers(0, 9), st.randoms())
def test_folds_keep_groups_whole_whatever_the_order_of_the_visits(rows, seed, random):
    rows += [(g, y) for g in range(5) for y in (0, 1)] * 3  # at least five groups, and enough of either outcome
    fold = grouped_folds(*zip(*rows, strict=True), folds=5, seed=seed)
    of_group = {group: fold[i] for i, (group, _) in enumerate(rows)}
    random.shuffle(rows)

    again = grouped_folds(*zip(*rows, strict=True), folds=5, seed=seed)
    assert [of_group[group] for group, _ in rows] == again.tolist()
    assert set(again) == set(range(5))


def test_more_folds_than_groups_are_refused():
    with pytest.raises(ConsiliumError, match="2 groups of hospitals cannot make 5 folds"):
        grouped_folds([1, 1, 2, 2], [0, 1, 0, 1], folds=5, seed=0)


@given(st.dictionaries(names, st.integers(0, 9), min_size=1, max_size=30), st.floats(0, 1), st.integers(0, 99), st.randoms())
def test_a_group_is_drawn_as_a_whole_and_never_more_than_the_share(groups, share, seed, random):
    drawn = draw_sites(groups, share=share, seed=seed)
    shuffled = list(groups.items())
    random.shuffle(shuffled)

    assert len(drawn) <= round(share * len(groups))
    assert {groups[s] for s in drawn}.isdisjoint(groups[s] for s in set(groups) - set(drawn))
    assert draw_sites(dict(shuffled), share=share, seed=seed) == drawn
    assert draw_sites({s: 100 - g for s, g in groups.items()}, share=share, seed=seed) == drawn


def test_single_sites_are_drawn_to_the_exact_share():
    assert len(draw_sites({f"s{i}": i for i in range(148)}, share=0.2, seed=(0, 0, 0))) == 30
    assert np.unique([draw_sites({f"s{i}": i for i in range(9)}, share=0.2, seed=s) for s in range(9)]).size > 2
