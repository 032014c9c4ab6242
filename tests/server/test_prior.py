"""How frequent an outcome is, estimated from sites that hide small counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from common.learning.lessons import log_odds
from server import checkpoint
from server.prior import LIMIT, estimated_counts
from server.record import Record
from server.rounds import RunFailed
from tests.server import fakes
from tests.server.fakes import Clock, Site


def tell(events: np.ndarray, visits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """What sites tell of events and visits: a count that is small, or leaves a small one of the others, is hidden."""
    small = [(c > 0) & (c < LIMIT) for c in (events, visits - events)]
    return np.where(small[0] | small[1], np.nan, events)[:, None], np.maximum(visits, LIMIT)


def odds(events: float, visits: int) -> float:
    return float(log_odds("binary", np.array([events]), visits)[0])


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=6))
def test_what_is_told_is_taken_as_it_is(sites: list[tuple[int, int]]) -> None:
    told = np.array(sites, dtype=float)
    visits = np.full(len(sites), 50)
    assert estimated_counts("multilabel", told, visits).tolist() == told.sum(0).tolist()


@pytest.mark.parametrize("visits", [3, 5, 6, 8, 9, 10, 60])
def test_a_hidden_count_is_what_it_is_on_average_among_the_hidden(visits: int) -> None:
    y = np.arange(visits + 1)
    hidden = np.isnan(tell(y, np.full(len(y), visits))[0][:, 0]) | (visits <= LIMIT)  # how many visits is hidden as well
    hidden &= (y < LIMIT) | (visits < 2 * LIMIT)
    weight = binom.pmf(y, visits, 0.2) * hidden
    found = estimated_counts("binary", np.array([[2e7], [np.nan]]), np.array([10**8, visits]))[0] - 2e7
    assert found == pytest.approx((y * weight).sum() / weight.sum(), abs=1e-3)


@pytest.mark.parametrize("rate", [0.03, 0.09, 0.91])
@pytest.mark.parametrize(("sites", "size"), [(180, 6), (40, 60)])
def test_a_rare_outcome_is_found_where_the_sites_that_tell_mislead(rate: float, sites: int, size: int) -> None:
    rng = np.random.default_rng(3)
    visits = rng.geometric(1 / size, sites)
    events = rng.binomial(visits, rng.beta(20 * rate, 20 * (1 - rate), sites))
    told, visits_told = tell(events, visits)
    truth = odds(events.sum(), visits.sum())
    assert odds(estimated_counts("binary", told, visits_told)[0], visits_told.sum()) == pytest.approx(truth, abs=0.4)
    tells = ~np.isnan(told[:, 0])
    if size == 6:  # most of the small ones that tell have no event at all, or nothing else
        assert abs(odds(told[tells].sum(), visits[tells].sum()) - truth) > 0.9


def test_of_several_classes_the_hidden_ones_share_what_the_others_leave() -> None:
    told = np.array([[30.0, 12.0, 8.0], [40.0, np.nan, 7.0], [20.0, np.nan, np.nan]])
    counts = estimated_counts("multiclass", told, np.array([50, 50, 25]))
    assert counts.sum() == pytest.approx(125)
    assert counts[0] == 90
    assert counts[1] == pytest.approx(12 + 3 + 2.5)  # of the last five half: 15 : 15


@pytest.mark.parametrize("size", [20, 40, 60, 80, 200])
def test_what_nobody_tells_is_rare_whatever_the_size_of_the_sites(size: int) -> None:
    silent = np.full((3, 1), np.nan)
    events = estimated_counts("binary", silent, np.full(3, size))[0]
    assert 3 <= events <= 3 * (LIMIT - 1)


@pytest.mark.parametrize(("told", "side"), [(5.0, False), (200.0, True)])
def test_one_site_that_tells_little_does_not_turn_the_others_over(told: float, side: bool) -> None:
    others = np.full((8, 1), np.nan)
    visits = np.array([*[200] * 8, 10 if told < 10 else 210])
    events = estimated_counts("binary", np.vstack([others, [[told]]]), visits)[0]
    assert (events > visits.sum() / 2) == side
    assert min(events, visits.sum() - events) <= 8 * (LIMIT - 1) + 10


def test_what_nobody_tells_is_said_in_the_record(tmp_path: Path, clock: Clock) -> None:
    hides = fakes.in_round("query.enrol", 0, fakes.changed(labels={"event": None}))
    fakes.perform(tmp_path / "all", [Site("ash", script=hides), Site("birch", script=hides)])
    (event,) = Record(tmp_path / "all").events("guessed")
    assert event["outputs"] == ["event"]
    assert odds(2, 80) - 0.1 < checkpoint.load(tmp_path / "all").prior[0] < odds(8, 80)
    fakes.perform(tmp_path / "one", [Site("ash"), Site("birch", script=hides)])
    assert Record(tmp_path / "one").events("guessed") == []
    told, both = np.log(12.5 / 28.5), np.log((12 + 4 + 0.5) / (80 - 16 + 0.5))
    (prior,) = checkpoint.load(tmp_path / "one").prior
    assert both - 0.1 < prior < told


def test_an_outcome_that_no_training_visit_has_ends_the_run_before_anything_is_trained(tmp_path: Path, clock: Clock) -> None:
    never = fakes.in_round("query.enrol", 0, fakes.changed(labels={"event": 0}))
    with pytest.raises(RunFailed, match="all training visits have the same label"):
        fakes.perform(tmp_path / "never", [Site("ash", script=never), Site("birch", script=never)])
    always = fakes.in_round("query.enrol", 0, fakes.changed(labels={"event": 40}))
    with pytest.raises(RunFailed, match="all training visits have the same label"):
        fakes.perform(tmp_path / "always", [Site("ash", script=always)])
    fakes.perform(tmp_path / "one", [Site("ash", script=never), Site("birch")])
    assert Record(tmp_path / "one").events("untaught") == []


def test_a_class_that_no_training_visit_has_is_said_and_the_others_are_learned(tmp_path: Path, clock: Clock) -> None:
    classes = {"task__type": "multiclass", "task__outputs": ["a", "b", "c"]}
    told = fakes.in_round("query.enrol", 0, fakes.changed(labels={"a": 20, "b": 20, "c": 0}))
    short = fakes.small_config(**classes, refine__rounds=0)
    with pytest.raises(RunFailed, match="nothing would train the student"):  # far behind enrolment
        fakes.perform(tmp_path / "run", [Site("ash", script=told)], short)
    (event,) = Record(tmp_path / "run").events("untaught")
    assert event["outputs"] == ["c"] and "nobody can learn it" in event["reason"]
    alone = fakes.in_round("query.enrol", 0, fakes.changed(labels={"a": 40, "b": 0, "c": 0}))
    with pytest.raises(RunFailed, match="all training visits have the same label"):
        fakes.perform(tmp_path / "alone", [Site("ash", script=alone)], short)
