"""How the updates of sites become one: a mean weighted by training visits (FedAvg, McMahan et al., 2017), per group or block.

Hospitals that hold different modalities pull in different directions, and their mean is a short step: momentum carries on where
round after round points the same way (FedAvgM; Hsu, Qi and Brown, arXiv 1909.06335).
"""

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


def step(before: Arrays, mean: Arrays, velocity: Arrays, momentum: float) -> tuple[Arrays, Arrays]:
    """Returns parameters a step further, and that step: the mean's, and with it a share of the last one.

    Args:
        before: What the sites were sent; may hold more than ``mean``.
        mean: What they made of it.
        velocity: The last step; empty at first.
        momentum: Share of it that is carried on, in [0, 1).
    """
    if not momentum:
        return mean, {}
    taken = {k: (a - before[k] + momentum * velocity.get(k, 0)).astype(a.dtype) for k, a in mean.items()}
    return {k: before[k] + a for k, a in taken.items()}, taken
