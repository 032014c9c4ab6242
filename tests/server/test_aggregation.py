"""The weighted mean, as a mathematician would test it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from common.arrays import Arrays
from server.aggregation import step, weighted_mean

names = st.lists(st.text("abcdefgh", min_size=1, max_size=4), min_size=1, max_size=6, unique=True)
counts = st.integers(1, 10**6)
numbers = st.floats(-1e6, 1e6, width=32)
parameters = hnp.arrays(np.float32, (2, 3), elements=numbers)


@st.composite
def federations(draw: st.DrawFn) -> tuple[dict[str, Arrays], dict[str, int]]:
    sites = draw(names)
    return {s: {"w": draw(parameters), "b": draw(parameters)[0]} for s in sites}, {s: draw(counts) for s in sites}


@given(federations(), numbers)
def test_the_weights_sum_to_one(federation: tuple[dict[str, Arrays], dict[str, int]], value: float) -> None:
    updates, visits = federation
    alike = {s: {"w": np.full((2, 3), value, np.float32)} for s in updates}
    np.testing.assert_allclose(weighted_mean(alike, visits)["w"], np.float32(value), rtol=1e-6)


@given(st.permutations("abcdef"), st.lists(st.tuples(counts, st.integers(0, 2**32)), min_size=6, max_size=6))
def test_the_order_of_arrival_does_not_matter_to_the_last_bit(order: list[str], places: list[tuple[int, int]]) -> None:
    # In float64, where every other order of adding up shows.
    updates = {s: {"w": np.random.default_rng(seed).normal(size=20)} for s, (_, seed) in zip("abcdef", places, strict=True)}
    visits = {s: count for s, (count, _) in zip("abcdef", places, strict=True)}
    there = weighted_mean({s: updates[s] for s in order}, visits)["w"]
    assert weighted_mean(updates, visits)["w"].tobytes() == there.tobytes()


@given(parameters, counts)
def test_a_group_of_one_is_taken_as_it_is(array: np.ndarray, count: int) -> None:  # type: ignore[type-arg]
    mean = weighted_mean({"only": {"w": array}}, {"only": count})["w"]
    assert mean.dtype == array.dtype
    np.testing.assert_array_equal(mean, array)


@given(federations())
def test_the_mean_lies_between_the_smallest_and_the_largest(federation: tuple[dict[str, Arrays], dict[str, int]]) -> None:
    updates, visits = federation
    stack = np.stack([a["w"] for a in updates.values()]).astype(np.float64)
    mean = weighted_mean(updates, visits)["w"]
    room = 1e-6 * np.abs(stack).max(0) + 1e-12
    assert (mean >= stack.min(0) - room).all()
    assert (mean <= stack.max(0) + room).all()


@given(federations(), st.integers(1, 50))
def test_only_the_ratio_of_the_counts_matters(federation: tuple[dict[str, Arrays], dict[str, int]], factor: int) -> None:
    updates, visits = federation
    more = {s: factor * n for s, n in visits.items()}
    np.testing.assert_allclose(weighted_mean(updates, visits)["w"], weighted_mean(updates, more)["w"], rtol=1e-5, atol=1e-6)


def test_a_site_counts_by_its_patients() -> None:
    updates = {"ash": {"w": np.array([0.0, 1.0], np.float32)}, "birch": {"w": np.array([4.0, 5.0], np.float32)}}
    np.testing.assert_allclose(weighted_mean(updates, {"ash": 30, "birch": 10})["w"], [1.0, 2.0])


@given(parameters, parameters, st.floats(0, 0.9))
def test_momentum_carries_a_pull_in_one_direction_on(
    start: NDArray[np.float32], pull: NDArray[np.float32], momentum: float
) -> None:
    at, velocity, moved = {"w": start.astype(np.float64)}, Arrays(), []
    for _ in range(3):
        after, velocity = step(at, {"w": at["w"] + pull}, velocity, momentum)
        moved.append(after["w"] - at["w"])
        at = after
    for steps, share in zip(moved, (1, 1 + momentum, 1 + momentum + momentum**2), strict=True):
        np.testing.assert_allclose(steps, share * pull.astype(np.float64), rtol=1e-6, atol=1e-6 * (1 + abs(start).max()))


def test_without_momentum_a_step_leads_to_the_mean_itself() -> None:
    before, mean = {"w": np.float32([1e8])}, {"w": np.float32([1.5])}
    assert step(before, mean, {"w": np.float32([7])}, 0.0) == (mean, {})
