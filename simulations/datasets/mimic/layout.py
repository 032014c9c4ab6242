"""Where the files of MIMIC lie, and how they are read: what is missing, cut short or empty is named with its file and row.

Messages name files, rows and columns, never a subject or a value: the data use agreement forbids it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd

from common.errors import ConsiliumError
from simulations.datasets import files
from simulations.datasets.files import UNREADABLE, Data

FOLDER = "mimic"
EXTRACTED, CXR, HOSPITAL, NOTES = "mimic-iv-extracted", "mimic-cxr-jpg", "mimic-iv", "mimic-iv-note"
HOW_TO_GET = (
    f"A folder '{FOLDER}' below CONSILIUM_DATA holds (or links to) '{EXTRACTED}', what MedFuse's mimic4extract makes of MIMIC-IV "
    f"(root/, in-hospital-mortality/, phenotyping/; https://github.com/nyuad-cai/MedFuse); '{CXR}', MIMIC-CXR-JPG 2.0.0 with its "
    f"metadata and resized/ or files/; for pb-mortality also '{HOSPITAL}' (hosp/) and '{NOTES}' (note/discharge.csv.gz). "
    "PhysioNet gives them to credentialed users. Without the folder a generated twin takes their place."
)


BELOW_HEADER = 2
refuse = partial(files.refuse, remedy="Get the file, or make the extraction, again.", first=BELOW_HEADER)
"""``refuse(bad, file, fault, first=2)``: see :func:`simulations.datasets.files.refuse`."""


def origin(root: Path) -> tuple[Data, str]:
    """Returns whether the patients of a root are real, and what to call them; see :func:`simulations.datasets.files.origin`."""
    return files.origin(root, "MIMIC-IV and MIMIC-CXR-JPG, MedFuse's extraction", "MIMIC")


def find(folder: Path, name: str) -> Path:
    """Returns a file, or the same one with ``.gz``.

    Raises:
        ConsiliumError: If there is neither.
    """
    for file in (folder / name, folder / f"{name}.gz"):
        if file.is_file():
            return file
    raise ConsiliumError(f"The data are not complete: {folder / name} (or {name.rsplit('/', 1)[-1]}.gz) is missing. {HOW_TO_GET}")


def read(
    folder: Path,
    name: str,
    columns: Iterable[str],
    *,
    filled: Collection[str] | None = None,
    first: int | None = BELOW_HEADER,
    **options: Any,
) -> tuple[pd.DataFrame, Path]:
    """Reads some columns of a CSV file.

    Args:
        folder: Its folder.
        name: Its path below the folder; the file may have ``.gz`` too.
        columns: Columns that are read.
        filled: Those of which no cell may be empty; all by default.
        first: Line of row 0; None if cells have several lines.
        **options: For ``pandas.read_csv``.

    Returns:
        The frame, one row per line of the file (row k is line k + 2, unless cells have several lines), and the file.

    Raises:
        ConsiliumError: If the file is missing, cut short or no CSV, lacks a column, or has an empty cell where none may be.
    """
    wanted, file = list(columns), find(folder, name)
    try:
        frame = pd.read_csv(file, usecols=lambda column: column in wanted, low_memory=False, **options)
    except UNREADABLE as error:
        raise unreadable(file, error) from None
    absent = [c for c in wanted if c not in frame]
    if absent:
        raise ConsiliumError(f"{file} lacks the column(s) {', '.join(absent)} of its documentation. {HOW_TO_GET}")
    for column in wanted if filled is None else filled:
        refuse(frame[column].isna(), file, f"'{column}' is empty; the file may be cut short", first=first)
    return frame[wanted], file


def unreadable(file: Path, error: Exception) -> ConsiliumError:
    """Returns the error for a file that is cut short or no CSV; what the parser says may quote cells and is left out."""
    return ConsiliumError(f"{file} cannot be read ({type(error).__name__}): it is cut short or no CSV file. Get it again.")


def times(frame: pd.DataFrame, column: str, file: Path, *, first: int | None = BELOW_HEADER) -> pd.Series[pd.Timestamp]:
    """Returns a column of times.

    Raises:
        ConsiliumError: If a cell is none; with its line, unless ``first`` (see :func:`refuse`) is None.
    """
    found = pd.to_datetime(frame[column], format="ISO8601", errors="coerce")
    refuse(found.isna(), file, f"'{column}' is no time", first=first)
    return found


def incomplete(file: Path, what: str) -> NoReturn:
    """Raises ``ConsiliumError``: files that belong together do not."""
    raise ConsiliumError(f"{file}: {what}. Files of two versions may be mixed: make the extraction again, from one. {HOW_TO_GET}")


def tell(counts: dict[str, int], found: Mapping[str, int]) -> None:
    """Adds what was left out to the counts of a data set."""
    counts.update({reason: int(number) for reason, number in found.items()})
