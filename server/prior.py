"""How frequent every output is in training, though sites hide small counts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from common.data.manifest import Limits
from common.task import TaskType

LIMIT = Limits().min_count  # the usual one: a site does not tell its own
STEPS = 100
Float = NDArray[np.float64]


def estimated_counts(task_type: TaskType, told: Float, visits: NDArray[np.int64]) -> Float:
    """Returns how many visits have each output, [C], every hidden count replaced by its expectation.

    Where an outcome is rare, most of what is told are zeros and what is hidden are the events: to leave those sites out, or to
    give them the share of the others, would make it rarer still. So a hidden count is what it is on average, given that it is
    hidden and the share of the outcome over all places, which is estimated with it (expectation-maximisation):

    * binary and multi-label: of n visits either the events or the others are 1 to ``LIMIT - 1``; of at most ``LIMIT`` visits,
      whose number is hidden as well, any may be;
    * multi-class: what the told classes leave of the visits belongs to the hidden ones, in proportion to their shares.

    What bias remains: where sites set a higher limit than ``LIMIT``, a rare outcome comes out too rare at large sites and too
    frequent at sites of fewer visits than their limit. What nobody tells is found between even odds and the truth.

    Args:
        task_type: Type of the task.
        told: Visits with each output, [S, C], a place per row; NaN where hidden.
        visits: Visits of each place, [S], at least 1.
    """
    hidden, known = np.isnan(told), np.nan_to_num(told)
    share = (known.sum(0) + 0.5) / ((~hidden * visits[:, None]).sum(0) + 1)
    counts = known
    for _ in range(STEPS):
        if task_type == "multiclass":
            weight = hidden * share
            rest = visits - known.sum(1)
            expected = rest[:, None] * weight / np.maximum(weight.sum(1, keepdims=True), np.finfo(float).tiny)
        else:
            expected = _expected_events(visits, share)
        counts = np.where(hidden, expected, known)
        share = (counts.sum(0) + 0.5) / (visits.sum() + 1)
    return np.asarray(counts.sum(0))


def _expected_events(visits: NDArray[np.int64], share: Float) -> Float:
    """Returns the expectation of a hidden number of events, [S, C], for every place's visits [S] and output's share [C]."""
    n, few = visits[:, None, None], np.arange(LIMIT)
    many = n - few
    events = np.concatenate([np.broadcast_to(few, many.shape), many], axis=-1)
    small = (few > 0) | (n <= LIMIT)
    possible = np.concatenate([small & (few <= n), small & (many >= LIMIT)], axis=-1)  # no number twice
    log = np.where(possible, binom.logpmf(events, n, share[:, None]), -np.inf)
    weight = np.exp(log - log.max(-1, keepdims=True))
    return np.asarray((events * weight).sum(-1) / weight.sum(-1))
