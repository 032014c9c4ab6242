"""How frequent every output is in training, though sites hide small counts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from common.data.manifest import Limits
from common.task import TaskType

LIMIT = Limits().min_count  # the usual one: a site does not tell its own
STEPS = 50
Float = NDArray[np.float64]


def estimated_counts(task_type: TaskType, told: Float, visits: NDArray[np.int64]) -> Float:
    """Returns how many visits have each output, [C], every hidden count replaced by its expectation.

    Where an outcome is rare, most of what is told are zeros and what is hidden are the events: to leave those sites out, or to
    give them the share of the others, would make it rarer still. So a hidden count is what it is on average, given that it is
    hidden and the share of the outcome over all places, which is estimated with it:

    * binary and multi-label: few visits, 1 to ``LIMIT - 1``, are on the outcome's rarer side, whichever that is among the told
      counts; an outcome that nobody tells is taken to be rare. Of fewer than ``2 LIMIT`` visits either side may be the small
      one, and of at most ``LIMIT``, whose number is hidden as well, any number may have it;
    * multi-class: what the told classes leave of the visits belongs to the hidden ones, in proportion to their shares.

    What bias remains: a site with a higher limit than ``LIMIT``, or whose patients are of the other kind than the other sites',
    is taken for one with few events (or few others).

    Args:
        task_type: Type of the task.
        told: Visits with each output, [S, C], a place per row; NaN where hidden.
        visits: Visits of each place, [S], at least 1.
    """
    hidden, known = np.isnan(told), np.nan_to_num(told)
    share = (known.sum(0) + 0.5) / ((~hidden * visits[:, None]).sum(0) + 1)
    flipped = (share > 0.5) & (task_type != "multiclass") & ~hidden.all(0)
    known = np.where(flipped & ~hidden, visits[:, None] - known, known)
    share = np.where(flipped, 1 - share, share)
    counts = known
    for _ in range(STEPS):
        if task_type == "multiclass":
            weight = hidden * share
            rest = visits - known.sum(1)
            expected = rest[:, None] * weight / np.maximum(weight.sum(1, keepdims=True), np.finfo(float).tiny)
        else:
            expected = _expected_few(visits, share)
        counts = np.where(hidden, expected, known)
        share = (counts.sum(0) + 0.5) / (visits.sum() + 1)
    return np.asarray(np.where(flipped, visits.sum() - counts.sum(0), counts.sum(0)))


def _expected_few(visits: NDArray[np.int64], share: Float) -> Float:
    """Returns the expectation of a hidden small number, [S, C], for every place's visits [S] and output's share [C]."""
    n, few = visits[:, None, None], np.arange(2 * LIMIT)
    either = (few > 0) & ((few < LIMIT) | ((n < 2 * LIMIT) & (few < n)))
    possible = np.where(n <= LIMIT, few <= n, either)
    log = np.where(possible, binom.logpmf(few, n, share[:, None]), -np.inf)
    weight = np.exp(log - log.max(-1, keepdims=True))
    return np.asarray((few * weight).sum(-1) / weight.sum(-1))
