"""What an update must satisfy before it may be aggregated."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from torch import nn

from common.arrays import Arrays
from common.learning.loop import Fit
from server.rounds import RunFailed

LARGEST_LOSS = 1e6
"""Of a network that has not diverged; a mean of several such numbers stays finite."""
ROUNDING = 1e-3
"""Below zero, where a Dice loss of a perfect segmentation may round."""


def fault(
    update: Mapping[str, Arrays], expected: Mapping[str, Arrays], counts: Mapping[str, int], least: int, most: int | None = None
) -> str | None:
    """Returns why an update is refused, or None.

    Args:
        update: Group or block -> arrays, as received.
        expected: Group or block -> arrays, as sent to the site.
        counts: Group or block -> training visits behind the update.
        least: Fewest training visits of an update.
        most: Training visits that the site enrolled with: one that claims more would own the mean.
    """
    for name, arrays in update.items():
        if name not in expected:
            return f"it holds '{name}', which it was not asked for"
        if set(arrays) != set(expected[name]):
            return f"the arrays of '{name}' have other names than those sent"
        for key, array in arrays.items():
            sent = expected[name][key]
            if array.shape != sent.shape or array.dtype != sent.dtype:
                return f"'{key}' of '{name}' is {array.dtype} {array.shape}, {sent.dtype} {sent.shape} was sent"
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                return f"'{key}' of '{name}' holds NaN or infinity"
        if most is not None and counts.get(name, 0) > most:
            return f"'{name}' claims {counts[name]} training visits, the site enrolled with {most}"
        if counts.get(name, 0) < least:
            return f"'{name}' rests on {counts.get(name, 0)} training visits, fewer than federation.min_patients = {least}"
    return None


def score_fault(scores: Mapping[str, tuple[float, int]], most: int) -> str | None:
    """Returns why validation losses (what was validated -> mean loss, visits) are refused, or None.

    Args:
        scores: As received.
        most: Validation visits that the site enrolled with.
    """
    for name, (_, visits) in scores.items():
        if not 1 <= visits <= most:
            return f"its validation loss of '{name}' rests on {visits} visits, the site enrolled with {most}"
    return loss_fault({f"validation loss of '{name}'": loss for name, (loss, _) in scores.items()})


def loss_fault(losses: Mapping[str, float]) -> str | None:
    """Returns why mean losses (what they are -> value) are refused, or None."""
    for name, loss in losses.items():
        if not -ROUNDING <= loss <= LARGEST_LOSS:  # nor NaN
            return f"its {name} is NaN, infinite, negative or above {LARGEST_LOSS:g}: no loss of a task is"
    return None


def require_finite(what: str, module: nn.Module, fit: Fit, setting: str) -> None:
    """Checks what the server trained itself as it checks what sites send.

    Args:
        what: What was trained, in words.
        module: It.
        fit: How its training went.
        setting: Key of its learning rate.

    Raises:
        RunFailed: If a parameter or a loss is NaN or infinite.
    """
    losses = (*fit.training, *fit.validation)
    if not all(map(math.isfinite, losses)) or not all(p.isfinite().all() for p in module.state_dict().values()):
        raise RunFailed(f"training {what} on the reference set diverged: its loss or parameters are not finite. Lower {setting}")
