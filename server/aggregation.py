"""How the updates of sites become one: a mean weighted by training visits (FedAvg, McMahan et al., 2017), per group or block."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from common.arrays import Arrays


def weighted_mean(updates: Mapping[str, Arrays], counts: Mapping[str, int]) -> Arrays:
    """Returns the mean of arrays over sites, weighted by their counts.

    Sites are folded in the order of their names in float64, so that the order of arrival does not matter.

    Args:
        updates: Site -> arrays of equal names and shapes; at least one.
        counts: Site -> positive weight.
    """
    names = sorted(updates)
    total = float(sum(counts[s] for s in names))
    mean: Arrays = {}
    for key, first in updates[names[0]].items():
        folded = sum((updates[s][key].astype(np.float64) * (counts[s] / total) for s in names), np.zeros(first.shape))
        mean[key] = folded.astype(first.dtype)
    return mean
