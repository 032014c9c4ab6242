"""CSV and Parquet files: read once, cut into visits."""

from __future__ import annotations

from pathlib import Path

import pandas as pd


class IngestError(Exception):
    """A file or cell that cannot be used; the text names columns and causes, never values."""


def inside(folder: Path, cell: str) -> Path:
    """Returns the file that a cell names.

    Raises:
        IngestError: If it lies outside the manifest's folder or does not exist.
    """
    path = (folder / cell).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise IngestError("the path leaves the manifest's folder")
    if not path.is_file():
        raise IngestError("the file does not exist")
    return path


def read_frame(path: Path) -> pd.DataFrame:
    """Returns a CSV or Parquet file as strings and numbers.

    Raises:
        IngestError: If it cannot be read as what its suffix says.
    """
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except Exception as error:  # pandas and pyarrow raise many kinds, whose texts may quote cells
        raise IngestError(f"the file cannot be read as {path.suffix[1:] or 'CSV'} ({type(error).__name__})") from None


class Frames:
    """Files of one patient folder, cached while it is opened."""

    def __init__(self) -> None:
        """Starts empty."""
        self._whole: dict[Path, pd.DataFrame] = {}
        self._visits: dict[tuple[Path, str], dict[str, pd.DataFrame]] = {}

    def rows(self, path: Path, key: str | None, visit: str) -> pd.DataFrame:
        """Returns the rows of one visit: all rows of the file, or those whose key column names the visit.

        Raises:
            IngestError: If the file cannot be read, lacks the key column or has no row for the visit.
        """
        if path not in self._whole:
            self._whole[path] = read_frame(path)
        frame = self._whole[path]
        if key is None:
            return frame
        if key not in frame:
            raise IngestError(f"the file has no key column '{key}'")
        if (path, key) not in self._visits:
            self._visits[path, key] = {str(v): part for v, part in frame.groupby(frame[key].astype(str), sort=False)}
        if visit not in self._visits[path, key]:
            raise IngestError("the file has no row for this visit")
        return self._visits[path, key][visit]


def numbers(frame: pd.DataFrame, column: str) -> pd.Series:
    """Returns a column as float64, NaN where empty.

    Raises:
        IngestError: If the column is absent or holds text.
    """
    if column not in frame:
        raise IngestError(f"the file has no column '{column}'")
    values = frame[column]
    if pd.api.types.is_numeric_dtype(values):
        return values.astype("float64")
    parsed = pd.to_numeric(values, errors="coerce").astype("float64")
    if (parsed.isna() & values.notna()).any():
        raise IngestError(f"column '{column}' holds text where a number is expected")
    return parsed
