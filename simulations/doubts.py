"""What a user should know of a table before sites are made of it: doubtful classes, copied rows, patients at several sites."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from itertools import combinations

import pandas as pd

from common.data.ingest.frames import HEADER, numbers, texts
from common.data.manifest import Limits
from common.task import Task

FEWEST = Limits().min_count
LETTERS, LONG = 2, 5
"""Of :func:`_misspelt`: most letters by which two words differ, and letters that both have."""
OPPOSITES = (("hyper", "hypo"), ("", "a"), ("", "an"), ("", "ab"), ("", "un"), ("", "in"), ("", "im"), ("", "non"))
"""Beginnings by which a word becomes its opposite: hypertension, hypotension; normal, abnormal."""


def doubts(frame: pd.DataFrame, task: Task, labels: Iterable[str], patient: str | None, by: str | None) -> list[str]:
    """Returns what is told of a table: how many rows each class has, and a warning for whatever looks like a mistake.

    Args:
        frame: The whole table, whose columns fit the task.
        task: What is predicted from what.
        labels: Columns with what is predicted.
        patient: Column that names the patient, if one does.
        by: Column that names the site, if one does.
    """
    counted, warned = [], []
    for column in labels if task.type != "regression" else ():
        classes = _classes(frame, column, task)
        rows = classes.value_counts().reindex(task.outputs if task.type == "multiclass" else ("0", "1"), fill_value=0)
        counted.append(f"Rows per class of '{column}': {', '.join(f'{name} {number:,}' for name, number in rows.items())}.")
        warned += [
            f"class '{name}' of '{column}' has {number:,} row(s){_first(classes == name)}, fewer than {FEWEST}: too few to learn "
            "from. If it is misspelt, correct it; if not, add such rows, or leave them out."
            for name, number in rows.items()
            if number < FEWEST
        ]
        warned += _alike({str(n): number for n, number in rows.items() if number}, classes, column)
    for name, modality in task.modalities.items():
        if not frame[list(modality.features)].notna().any(axis=None):
            warned.append(
                f"modality '{name}' has no value in any row, so nobody can learn from it. Check the export, or take it "
                "out of the task."
            )
    mixed = frame.columns[frame.dtypes.map(pd.api.types.is_object_dtype)]  # may hold lists, which cannot be compared as they are
    copies = frame.astype(dict.fromkeys(mixed, "str")).duplicated()
    if copies.any():
        why = "they count twice" if patient else "a copy may train while the other one tests"
        remedy = "Remove them" if patient else "Remove them, or name the patients' column with --patient"
        warned.append(f"{int(copies.sum()):,} row(s) are exact copies of another{_first(copies)}: {why}. {remedy}.")
    if patient and by:
        warned += _scattered(frame, patient, by)
    return counted + [f"Warning: {warning}" for warning in warned]


def _classes(frame: pd.DataFrame, column: str, task: Task) -> pd.Series:
    """Returns the class of every row as text; where it is one outcome, there or not, 0 or 1."""
    if task.type == "multiclass":
        return texts(frame[column])
    return texts(pd.Series(numbers(frame, column)[0]))


def _first(wanted: pd.Series) -> str:
    """Returns the first row of those wanted, as a spreadsheet counts; nothing if there is none."""
    return f", first row {int(wanted.to_numpy().argmax()) + HEADER + 1}" if wanted.any() else ""


def _alike(rows: Mapping[str, int], classes: pd.Series, column: str) -> list[str]:
    """Returns a warning for every two classes that may be one, spelt in two ways."""
    found = []
    for pair in combinations(rows, 2):
        rare, common = sorted(pair, key=lambda name: rows[name])
        if _misspelt(rare, common):
            how = "case" if rare.casefold() == common.casefold() else "a letter or two"
            found.append(
                f"classes '{rare}' ({rows[rare]:,} row(s){_first(classes == rare)}) and '{common}' ({rows[common]:,} row(s)) of "
                f"'{column}' differ only by {how}. If they are one class, spell them alike in the table."
            )
    return found


def _misspelt(one: str, other: str) -> bool:
    """Returns whether two names differ by case alone, or a long word of theirs by a letter or two.

    'type A' and 'type B' do not, nor do 'HER2+' and 'HER2-', or 'typical' and 'atypical'.
    """
    mine, theirs = (re.split(r"[\s_]+", name.casefold()) for name in (one, other))
    if len(mine) != len(theirs):
        return False
    differing = [(a, b) for a, b in zip(mine, theirs, strict=True) if a != b]
    if any(_opposite(*pair) or _opposite(*reversed(pair)) for pair in differing):
        return False
    letters = sum(max(to - at, end - start) for a, b in differing for _, at, to, start, end in _changes(a, b))
    return letters <= LETTERS and all(min(len(a), len(b)) >= LONG and (a + b).isalpha() for a, b in differing)


def _opposite(one: str, other: str) -> bool:
    return any(one.startswith(a) and other == b + one.removeprefix(a) for a, b in OPPOSITES)


def _changes(one: str, other: str) -> list[tuple[str, int, int, int, int]]:
    return [change for change in SequenceMatcher(None, one, other).get_opcodes() if change[0] != "equal"]


def _scattered(frame: pd.DataFrame, patient: str, by: str) -> list[str]:
    """Returns a warning if patients have rows under several names of sites."""
    names, sites = texts(frame[patient]), texts(frame[by])
    moved = sites.ne(sites.groupby(names).transform("first")) & names.notna() & sites.notna()
    if not moved.any():
        return []
    return [
        f"{names[moved].nunique():,} patient(s) have rows under several values of '{by}'{_first(moved)}; they are kept together "
        "at one site, that of their first row. If each site numbers its own patients, put the site's name before the number."
    ]
