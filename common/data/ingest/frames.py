"""CSV and Parquet files: read once, cut into visits."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.errors import MOST_NAMED

HEADER = 1
"""Row of what is wrong with a whole file or column."""

NO_NUMBER = (
    "holds text or infinity where a number is expected: a date, a decimal comma, a sign as in <0.3? Write a number; leave the "
    "cell empty where it is missing"
)
MISSING = ("", "NA", "N/A", "n/a", "<NA>", "NaN", "nan", "NULL", "null")
"""Cells of a CSV file that are empty: what spreadsheets, R, SQL and pandas write. ``None`` is none, it may be a category."""
SEMICOLONS = "separated by semicolons: write it with commas, and numbers with decimal points (1.5, not 1,5)"
LARGEST = float(np.finfo(np.float32).max)
Parsed = tuple[NDArray[np.float64], NDArray[np.bool_]]


class IngestError(Exception):
    """A file or cell that cannot be used; the text names columns and causes, never values.

    Attributes:
        column: Column at fault, if it is known.
        row: Row of the file as a spreadsheet shows it, ``HEADER`` if all of it is at fault; None where it is no row of a table.
    """

    column: str | None = None
    row: int | None = None

    @classmethod
    def at(cls, row: int, column: str | None, problem: str) -> IngestError:
        """Returns the error of a place in a table."""
        error = cls(problem)
        error.row, error.column = row, column
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
        remedy = "name a file below the manifest's folder, or say 'inline: true' in the manifest if cells hold the text itself"
        raise IngestError(f"the cell holds no path; {remedy}") from None
    if not path.is_relative_to(folder.resolve()):
        raise IngestError.at(HEADER, None, "the path leaves the manifest's folder; put the file below it")
    if not exists:
        raise IngestError.at(HEADER, None, "the file does not exist; put it there, or mend the path")
    return path


def read_frame(path: Path) -> pd.DataFrame:
    """Returns a CSV or Parquet file as strings and numbers.

    Raises:
        IngestError: If it cannot be read as what its suffix says.
    """
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path).reset_index(drop=True)  # as it was left by whoever sorted or filtered the rows
        frame = pd.read_csv(path, keep_default_na=False, na_values=list(MISSING))
    except UnicodeDecodeError:
        remedy = "save the file in that encoding ('CSV UTF-8' in a spreadsheet), or as Parquet"
        raise IngestError.at(HEADER, None, f"{_first_undecodable(path)} is not in encoding 'utf-8'; {remedy}") from None
    except pd.errors.EmptyDataError:
        raise IngestError.at(HEADER, None, "the file is empty; export it again") from None
    except Exception as error:  # pandas and pyarrow raise many kinds, whose texts may quote cells
        _refuse_semicolons(path)
        cause = _uneven(error) or f" ({type(error).__name__}); export it again"
        raise IngestError.at(HEADER, None, f"the file cannot be read as {path.suffix[1:] or 'CSV'}{cause}") from None
    if not isinstance(frame.index, pd.RangeIndex):  # pandas names rows by what it has no header for
        _refuse_semicolons(path)
        remedy = "take away the comma at the end of the rows, or give every column a name"
        raise IngestError.at(HEADER, None, f"its rows have more cells than the header has names; {remedy}")
    return frame


def _refuse_semicolons(path: Path) -> None:
    """Raises IngestError if semicolons separate the names of a CSV file: its decimal commas then look like ends of cells."""
    header = ""
    with suppress(OSError):  # whoever asks says that it cannot be read
        if path.suffix == ".csv":
            with path.open(encoding="utf-8", errors="replace") as file:
                header = file.readline()
    if header.count(";") > header.count(","):
        raise IngestError.at(HEADER, None, f"the file is {SEMICOLONS}") from None


def _first_undecodable(path: Path) -> str:
    """Returns which row of a CSV file holds the first byte that is no UTF-8."""
    content = path.read_bytes() if path.suffix == ".csv" else b""  # others may be packed
    try:
        content.decode()
    except UnicodeDecodeError as error:
        before = content.count(b"\n", 0, error.start)
        return f"row {before + 1} of the file"
    return "the file"


def _uneven(error: Exception) -> str:
    """Returns which row of a CSV file pandas could not cut into cells; empty if its error says none."""
    if cells := re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", str(error)):
        wanted, row, found = cells.groups()
        return f": row {row} has {found} cells, {wanted} are expected; write decimal points, and quotes around a text with commas"
    if quote := re.search(r"EOF inside string starting at row (\d+)", str(error)):
        return f": a quote that opens in row {int(quote[1]) + 1} is never closed; close it, or take it out"
    return ""


def separated(frame: pd.DataFrame) -> str:
    """Returns what to do where columns are missing because semicolons stand between them; empty where that is not so."""
    return f". It is {SEMICOLONS}." if any(";" in str(c) for c in frame) else ""


def alike(column: str, frame: pd.DataFrame) -> str:
    """Returns which column of a file is probably meant by a name that it lacks; empty where none is near."""
    names = {str(c).strip().casefold(): str(c) for c in frame}
    close = difflib.get_close_matches(column.strip().casefold(), names, n=1, cutoff=0.8)
    return f" (did you mean '{names[close[0]]}'?)" if close else ""


def lacks(frame: pd.DataFrame, column: str, what: str = "column") -> IngestError:
    """Returns the error of a file that lacks a column."""
    return IngestError.at(HEADER, column, f"the file has no {what} '{column}'{separated(frame) or alike(column, frame)}")


def listed(names: Iterable[str]) -> str:
    """Returns names of the task or the manifest as a text; of very many the first."""
    known = list(names)
    return ", ".join(known[:MOST_NAMED]) + (f" and {len(known) - MOST_NAMED:,} more" if len(known) > MOST_NAMED else "")


def only_file(cells: pd.Series) -> str | None:
    """Returns the file that several cells of the patient table name, if it is the same in all: then no patient is named by it."""
    filled = cells.dropna().astype(str)
    return str(filled.iloc[0]) if len(filled) > 1 and filled.nunique() == 1 else None


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

    def place(self, number: int = 0) -> int:
        """Returns where one of the rows stands in the file, as a spreadsheet shows it."""
        return int(self._at[number]) + HEADER + 1

    def cells(self, column: str) -> list[object]:
        """Returns a column as it stands.

        Raises:
            IngestError: If the column is absent.
        """
        if column not in self._frame:
            raise lacks(self._frame, column)
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
            raise IngestError.at(self.place(int(bad[self._at].argmax())), column, f"column '{column}' {NO_NUMBER}")
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
            raise lacks(frame, key, "key column")
        if (path, key) not in self._visits:
            found = frame.groupby(texts(frame[key]), sort=False).indices
            self._visits[path, key] = {str(v): np.asarray(at, dtype=np.int64) for v, at in found.items()}
        if visit not in self._visits[path, key]:
            raise IngestError("the file has no row for this visit; add it, or leave the cell empty")
        return Rows(frame, parsed, self._visits[path, key][visit])


def numbers(frame: pd.DataFrame, column: str) -> Parsed:
    """Returns a column as float64 [N], NaN where empty; and bool [N], where it holds anything else than a finite float32 number.

    Raises:
        IngestError: If the column is absent.
    """
    if column not in frame:
        raise lacks(frame, column)
    cells = frame[column]
    if pd.api.types.is_numeric_dtype(cells):  # most are, and there may be thousands of them
        values = cells.to_numpy(np.float64, na_value=np.nan)
        return values, np.abs(values) > LARGEST
    if cells.dtype.kind in "mM":  # dates and durations of a Parquet file would become nanoseconds
        return np.full(len(cells), np.nan), cells.notna().to_numpy()
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
