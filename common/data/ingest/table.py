"""Tables: one row per visit, numbers and categories."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.data.ingest.frames import HEADER, IngestError, Rows, as_text, listed
from common.data.manifest import Source
from common.data.standardise import table_columns
from common.task import Modality


def read_table(rows: Rows, source: Source, modality: Modality) -> NDArray[np.generic]:
    """Returns the columns of one visit.

    Args:
        rows: The visit's single row.
        source: Which columns hold the features, and the hospital's codes.
        modality: Features; a categorical one becomes one column per category.

    Returns:
        float32 [D]; NaN where empty, or where the site lacks a feature.

    Raises:
        IngestError: If there are several rows, a column is absent, or a value is no number or an unknown code.
    """
    if len(rows) != 1:
        row = rows.place(1) if len(rows) else HEADER
        raise IngestError.at(row, source.key, f"the visit has {len(rows)} rows, one is expected; keep one")
    columns = np.full(table_columns(modality), np.nan, dtype=np.float32)
    at = 0
    for name, feature in modality.features.items():
        width = len(feature.codes) or 1
        variable = source.variables.get(name)
        if variable is not None and not feature.codes:
            columns[at] = rows.numbers(variable.column)[0]
        elif variable is not None:
            (value,) = rows.cells(variable.column)
            if not pd.isna(value) and str(value).strip():  # type: ignore[call-overload]
                codes = variable.codes or {category: category for category in feature.codes}
                if codes.get(as_text(value)) not in feature.codes:
                    fault = f"column '{variable.column}' holds a code that the manifest does not map to a category"
                    remedy = f"known are {listed(codes)}: correct the cell, or add the code to 'codes' in the manifest"
                    raise IngestError.at(rows.place(), variable.column, f"{fault}; {remedy}")
                columns[at : at + width] = np.arange(width) == feature.codes.index(codes[as_text(value)])
        at += width
    return columns
