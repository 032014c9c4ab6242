"""CSV and Parquet files: read once, cut into visits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

LARGEST = float(np.finfo(np.float32).max)
Parsed = tuple[NDArray[np.float64], NDArray[np.bool_]]


class IngestError(Exception):
    """A file or cell that cannot be used; the text names columns and causes, never values.

    Attributes:
        column: Column at fault, if it is known.
    """

    column: str | None = None

    @classmethod
    def at(cls, column: str, problem: str) -> IngestError:
        """Returns the error of a column."""
        error = cls(f"column '{column}' {problem}")
        error.column = column
        return error


def inside(folder: Path, cell: str) -> Path:
    """Returns the file that a cell names.

    Raises:
        IngestError: If it lies outside the manifest's folder or does not exist.
    """
    try:
        path = (folder / cell).resolve()
        exists = path.is_file()
    except (OSError, ValueError):  # longer than a path may be, or holding a null: a note without `inline`, for instance
        raise IngestError("the cell holds no path") from None
    if not path.is_relative_to(folder.resolve()):
        raise IngestError("the path leaves the manifest's folder")
    if not exists:
        raise IngestError("the file does not exist")
    return path


def read_frame(path: Path) -> pd.DataFrame:
    """Returns a CSV or Parquet file as strings and numbers.

    Raises:
        IngestError: If it cannot be read as what its suffix says.
    """
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except UnicodeDecodeError:
        raise IngestError("the file is not in encoding 'utf-8'; save it in that encoding, or as Parquet") from None
    except Exception as error:  # pandas and pyarrow raise many kinds, whose texts may quote cells
        raise IngestError(f"the file cannot be read as {path.suffix[1:] or 'CSV'} ({type(error).__name__})") from None


def separated(frame: pd.DataFrame) -> str:
    """Returns what to do where columns are missing because semicolons stand between them; empty where that is not so."""
    return ". It is separated by semicolons: write it with commas." if any(";" in str(c) for c in frame) else ""


class Rows:
    """Some rows of a file."""

    def __init__(self, frame: pd.DataFrame, parsed: dict[str, Parsed], at: NDArray[np.int64]) -> None:
        """Args: the whole file, its numeric columns parsed so far (shared), and the rows' positions."""
        self._frame = frame
        self._parsed = parsed
        self._at = at

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self._at)

    def cells(self, column: str) -> list[object]:
        """Returns a column as it stands.

        Raises:
            IngestError: If the column is absent.
        """
        if column not in self._frame:
            raise IngestError(f"the file has no column '{column}'")
        return list(self._frame[column].iloc[self._at])

    def numbers(self, column: str) -> NDArray[np.float64]:
        """Returns a column as float64, NaN where empty; the whole file's column is parsed once.

        Raises:
            IngestError: If the column is absent, or if one of these rows holds something else than a finite number.
        """
        if column not in self._parsed:
            self._parsed[column] = numbers(self._frame, column)
        values, bad = self._parsed[column]
        if bad[self._at].any():
            raise IngestError.at(column, "holds text or infinity where a number is expected")
        return values[self._at]


class Frames:
    """Files of one patient folder, read once while it is opened."""

    def __init__(self) -> None:
        """Starts empty."""
        self._whole: dict[Path, tuple[pd.DataFrame, dict[str, Parsed]]] = {}
        self._visits: dict[tuple[Path, str], dict[str, NDArray[np.int64]]] = {}

    def rows(self, path: Path, key: str | None, visit: str) -> Rows:
        """Returns the rows of one visit: all rows of the file, or those whose key column names the visit.

        Raises:
            IngestError: If the file cannot be read, lacks the key column or has no row for the visit.
        """
        if path not in self._whole:
            self._whole[path] = (read_frame(path), {})
        frame, parsed = self._whole[path]
        if key is None:
            return Rows(frame, parsed, np.arange(len(frame)))
        if key not in frame:
            raise IngestError(f"the file has no key column '{key}'")
        if (path, key) not in self._visits:
            found = frame.groupby(texts(frame[key]), sort=False).indices
            self._visits[path, key] = {str(v): np.asarray(at, dtype=np.int64) for v, at in found.items()}
        if visit not in self._visits[path, key]:
            raise IngestError("the file has no row for this visit")
        return Rows(frame, parsed, self._visits[path, key][visit])


def numbers(frame: pd.DataFrame, column: str) -> Parsed:
    """Returns a column as float64 [N], NaN where empty; and bool [N], where it holds anything else than a finite float32 number.

    Raises:
        IngestError: If the column is absent.
    """
    if column not in frame:
        raise IngestError(f"the file has no column '{column}'")
    cells = frame[column]
    if pd.api.types.is_numeric_dtype(cells):  # most are, and there may be thousands of them
        values = cells.to_numpy(np.float64, na_value=np.nan)
        return values, np.abs(values) > LARGEST
    values = np.asarray(pd.to_numeric(cells, errors="coerce"), dtype=np.float64)
    filled = cells.notna() & (cells.astype(str).str.strip() != "")
    return values, np.asarray((np.isnan(values) & filled) | (np.abs(values) > LARGEST), dtype=np.bool_)


def texts(cells: pd.Series) -> pd.Series:
    """Returns names or codes as text, empty ones as they are.

    1.0 becomes 1: a column of whole numbers is read as floats where one cell is empty.
    """
    return cells.map(as_text, na_action="ignore") if cells.dtype.kind in "fO" else cells.astype(str)


def as_text(cell: object) -> str:
    """Returns a name or code as text, without the ``.0`` of a whole number."""
    whole = isinstance(cell, float | np.floating) and float(cell).is_integer()
    return str(int(cell) if whole else cell).strip()  # type: ignore[call-overload]
