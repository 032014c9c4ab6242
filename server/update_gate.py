"""What an update must satisfy before it may be aggregated."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from common.messages import Arrays


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


def score_fault(scores: Mapping[str, tuple[float, int]]) -> str | None:
    """Returns why validation losses (what was validated -> mean loss, visits) are refused, or None."""
    for name, (_, visits) in scores.items():
        if visits < 1:
            return f"its validation loss of '{name}' rests on {visits} visits"
    return not_finite({f"validation loss of '{name}'": loss for name, (loss, _) in scores.items()})


def not_finite(values: Mapping[str, float]) -> str | None:
    """Returns the reason if a number is NaN or infinite, or None."""
    for name, value in values.items():
        if not np.isfinite(value):
            return f"its {name} is NaN or infinite"
    return None
