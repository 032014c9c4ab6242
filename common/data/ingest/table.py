"""Tables: one row per visit, numbers and categories."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.data.ingest.frames import IngestError, Rows, as_text
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
        raise IngestError(f"the visit has {len(rows)} rows, one is expected")
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
                columns[at : at + width] = _one_hot(as_text(value), variable.codes, feature.codes, variable.column)
        at += width
    return columns


def _one_hot(code: str, codes: dict[str, str], categories: tuple[str, ...], column: str) -> NDArray[np.float32]:
    category = codes.get(code, code if not codes else None)
    if category not in categories:
        raise IngestError.at(column, "holds a code that the manifest does not map to a category")
    return np.asarray(np.arange(len(categories)) == categories.index(category), dtype=np.float32)
