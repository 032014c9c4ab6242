"""Time series: rows with hours since the start of the visit, averaged into steps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.data.ingest.frames import IngestError, Rows
from common.data.manifest import Source
from common.task import Modality


def bin_series(rows: Rows, source: Source, modality: Modality) -> NDArray[np.generic] | None:
    """Returns the steps of one visit.

    Args:
        rows: Rows of the visit, in any order; rows outside the steps are ignored.
        source: Which columns hold the time and the variables.
        modality: Steps and features.

    Returns:
        float32 [T, F]; NaN where nothing was observed in a step, or where the site lacks a variable. None where nothing was
        observed in any step: the visit has no such series.

    Raises:
        IngestError: If a column is absent or no number, or a value has no time.
    """
    hours = rows.numbers(source.time)
    step = np.floor(hours / modality.step_hours)
    within = (step >= 0) & (step < modality.steps)
    index = step[within].astype(np.int64)
    binned = np.full((modality.steps, len(modality.features)), np.nan)
    for f, name in enumerate(modality.features):
        if name not in source.variables:
            continue
        values = rows.numbers(source.variables[name].column)
        if (timeless := np.isnan(hours) & ~np.isnan(values)).any():
            row = rows.place(int(timeless.argmax()))
            raise IngestError.at(
                row, source.time, f"column '{source.time}' is empty beside a value; write its time, or remove the row"
            )
        values = values[within]
        seen = np.isfinite(values)
        count = np.bincount(index[seen], minlength=modality.steps)
        total = np.bincount(index[seen], weights=values[seen], minlength=modality.steps)
        binned[:, f] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return None if np.isnan(binned).all() else binned.astype(np.float32)
