"""How sure one can be of a metric, and of a difference between two methods: the patient-clustered bootstrap.

A patient's visits resemble each other, so patients are drawn, with all their visits. Within each resample the metric is
computed per seed and then averaged over the seeds; predictions of different seeds are never averaged, because the mean of
several networks is another, better model than any of them. A resample in which the metric is undefined (no event drawn) is
skipped. Intervals are percentile intervals of 95 %.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.evaluation.metrics import LOWER_IS_BETTER, Floats, resampled
from common.task import TaskType

RESAMPLES = 1000
PERCENTILES = (2.5, 97.5)
BLOCK_CELLS = 2_000_000
"""Weights held at once: 16 MB, small enough for the processor's cache to help."""


@dataclass(frozen=True)
class Sample:
    """The predictions of one method under one seed.

    Attributes:
        scores: Probabilities, or the numbers of a regression, float [N, C] (or [N]).
        labels: 0/1, or numbers, [N, C] (or [N]; the index of the class for multiclass tasks).
        clusters: Key of the patient of each row, [N].
    """

    scores: NDArray[Any]
    labels: NDArray[Any]
    clusters: NDArray[Any]

    def __post_init__(self) -> None:
        if not len(self.scores) == len(self.labels) == len(self.clusters):
            raise ValueError(f"{len(self.scores)} scores, {len(self.labels)} labels, {len(self.clusters)} clusters")


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval.

    Attributes:
        estimate: Mean over seeds on the patients as they are.
        low: Lower end.
        high: Upper end.
    """

    estimate: float
    low: float
    high: float

    def verdict(self, metric: str) -> str:
        """For a difference a - b in a metric: whether a is resolved to be better or worse than b."""
        if self.low <= 0 <= self.high:
            return "not resolved"
        return "better" if (self.low > 0) != (metric in LOWER_IS_BETTER) else "worse"


def interval(
    samples: Sequence[Sample], metric: str, task_type: TaskType, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """Returns a method's metric, averaged over seeds, with its interval.

    Args:
        samples: One per seed.
        metric: One that the task type has.
        task_type: What the outputs mean together.
        resamples: How often the patients are drawn.
        seed: Seed of the draws.

    Returns:
        None if the metric is undefined, or undefined in more than half of the resamples.
    """
    return _percentiles(lambda draws: _per_draw(samples, metric, task_type, draws), samples, resamples, seed)


def paired_difference(
    a: Sequence[Sample], b: Sequence[Sample], metric: str, task_type: TaskType, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """Returns the metric of ``a`` less that of ``b`` on the same patients, with the interval of the difference.

    Args:
        a: One per seed.
        b: As many, with the same rows in the same order as the sample of ``a`` beside it.
        metric: One that the task type has.
        task_type: What the outputs mean together.
        resamples: How often the patients are drawn; both sides see the same draws.
        seed: Seed of the draws.

    Returns:
        None if the metric is undefined, or undefined in more than half of the resamples.

    Raises:
        ValueError: If the rows of the two sides differ.
    """
    for one, other in zip(a, b, strict=True):
        if not (np.array_equal(one.clusters, other.clusters) and np.array_equal(one.labels, other.labels)):
            raise ValueError("the two sides of a paired difference must hold the same rows in the same order")
    return _percentiles(
        lambda draws: _per_draw(a, metric, task_type, draws) - _per_draw(b, metric, task_type, draws), a, resamples, seed
    )


def _percentiles(
    statistic: Callable[[Sequence[Floats]], Floats], samples: Sequence[Sample], resamples: int, seed: int
) -> Interval | None:
    """Returns the statistic on the patients as they are, and its percentiles over the draws."""
    if not all(len(s.clusters) for s in samples):
        return None
    patients, rows = np.unique(np.concatenate([s.clusters for s in samples]), return_inverse=True)
    codes = np.split(rows, np.cumsum([len(s.clusters) for s in samples])[:-1])
    estimate = float(statistic([np.ones((len(code), 1)) for code in codes])[0])
    draws = _draws(len(patients), resamples, seed)
    block = max(1, BLOCK_CELLS // max(len(rows), 1))
    values = np.concatenate(
        [statistic([draws[code, i : i + block].astype(np.float64) for code in codes]) for i in range(0, resamples, block)]
    )
    values = values[~np.isnan(values)]
    if np.isnan(estimate) or len(values) < resamples / 2:
        return None
    low, high = np.percentile(values, PERCENTILES)
    return Interval(estimate, float(low), float(high))


def _per_draw(samples: Sequence[Sample], metric: str, task_type: TaskType, weights: Sequence[Floats]) -> Floats:
    """Returns the metric per draw, averaged over seeds, float64 [B]; NaN where it is undefined for a seed."""
    per_seed = [resampled(metric, task_type, s.scores, s.labels, w) for s, w in zip(samples, weights, strict=True)]
    return np.asarray(np.mean(per_seed, axis=0))


@functools.lru_cache(maxsize=8)
def _draws(patients: int, resamples: int, seed: int) -> NDArray[np.uint16]:
    """Returns how often each patient is drawn, uint16 [patients, resamples]; the same for the same arguments."""
    rng = np.random.default_rng(seed)
    drawn = [np.bincount(rng.integers(patients, size=patients), minlength=patients) for _ in range(resamples)]
    counts = np.stack(drawn, axis=1).astype(np.uint16)
    counts.flags.writeable = False
    return counts
