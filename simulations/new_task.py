"""A task out of the columns of one table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.data.ingest.frames import HEADER, listed, numbers, texts
from common.errors import ConsiliumError, nearest
from common.task import no_name

MOST_CLASSES = 50
MOST_CODES = 30
MOSTLY = 0.8
Names = Sequence[str]


def infer_task(frame: pd.DataFrame, table: Path, labels: Names, modalities: Names, special: Names) -> dict[str, Any]:
    """Returns a task, as its file holds it, of the columns that the modalities name.

    A column of numbers is a number, any other a category with the codes that occur.

    Args:
        frame: The whole table.
        table: Its file, after which the task is named.
        labels: Columns with what is predicted.
        modalities: ``name=column,column,prefix*`` each.
        special: Columns that name patients or sites.

    Raises:
        ConsiliumError: If labels or modalities are not named or cannot be called so, a pattern fits no column, a column is
            neither number nor category, or the label tells no classes apart.
    """
    if not labels or not modalities:
        raise ConsiliumError("A new task needs --label COLUMN and at least one --modality NAME=COLUMN,COLUMN,PREFIX*.")
    taken = {*labels, *special}
    columns: dict[str, list[str]] = {}
    for spec in modalities:
        modality, wanted = parse(spec, "--modality", "NAME=COLUMN,COLUMN,PREFIX*")
        if fault := no_name(modality):
            raise ConsiliumError(f"--modality {modality}: {fault}. Call it otherwise.")
        columns[modality] = []
        for pattern in wanted:
            fitting = [c for c in map(str, frame) if c == pattern or (fnmatchcase(c, pattern) and c not in taken)]
            if not fitting:
                raise ConsiliumError(f"--modality {modality}: no column fits '{pattern}'{_meant(pattern, frame)}")
            if pattern in taken:
                raise ConsiliumError(f"--modality {modality}: '{pattern}' is a label, or names patients or sites. Leave it out.")
            columns[modality] += (c for c in fitting if c not in columns[modality])
    _refuse_strays(frame, table, dict.fromkeys(c for names in columns.values() for c in names))
    found: dict[str, Any] = {}
    for modality, names in columns.items():
        features = {c: _feature(frame, table, c) for c in names}
        found[modality] = {"kind": "table", "features": features if any(features.values()) else names}
    kind, outputs = _outputs(frame, table, labels)
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", table.stem)
    return {"name": plain, "type": kind, "outputs": outputs, "modalities": found}


def _meant(pattern: str, frame: pd.DataFrame) -> str:
    """Returns which pattern would fit if only the letters' case is wrong, else which column is nearest."""
    prefix = re.split(r"[*?\[]", pattern)[0]
    for column in map(str, frame):
        other = column[: len(prefix)] + pattern[len(prefix) :]
        if prefix != pattern and other.lower() == pattern.lower() and fnmatchcase(column, other):
            return f"; did you mean '{other}'?"
    return nearest(pattern, map(str, frame))


def _refuse_strays(frame: pd.DataFrame, table: Path, columns: Iterable[str]) -> None:
    """Raises ConsiliumError if columns hold numbers, and something else in a few cells; all of them are named."""
    found = []
    for column in columns:
        values, bad = numbers(frame, column)
        few = bad.sum() < (1 - MOSTLY) * int(frame[column].notna().sum())
        if bad.any() and few and len(np.unique(values[~np.isnan(values)])) > 2:
            found.append(f"'{column}' in {int(bad.sum())} row(s), first row {int(bad.argmax()) + HEADER + 1}")
    if found:
        raise ConsiliumError(
            f"{table}: {len(found)} column(s) hold numbers, but something else in a few cells: {listed(found)}. A decimal comma, "
            "or a sign as in <0.3? Write numbers; leave the cell empty where a value is missing."
        )


def _feature(frame: pd.DataFrame, table: Path, column: str) -> dict[str, Any]:
    """Returns what the task says of a column: nothing of a number, the codes of a category."""
    if not numbers(frame, column)[1].any():
        return {}
    codes = sorted(texts(frame[column].dropna()).unique())
    if len(codes) > MOST_CODES:
        raise ConsiliumError(
            f"{table}: column '{column}' holds {len(codes)} different texts: neither numbers (decimal commas?) nor a category of "
            f"at most {MOST_CODES}. Correct it, or leave it out of --modality."
        )
    return {"codes": codes}


def _outputs(frame: pd.DataFrame, table: Path, labels: Names) -> tuple[str, list[str]]:
    """Returns type and outputs of the task that label columns stand for; whole numbers are classes while they are few."""
    yes_no = [c for c in labels if _is_yes_no(frame, c)]
    if len(yes_no) == len(labels):
        return ("binary" if len(labels) == 1 else "multilabel"), list(labels)
    if len(labels) > 1:
        other = next(c for c in labels if c not in yes_no)
        raise ConsiliumError(f"Several labels must each be 0 or 1, but column '{other}' holds other values. Name one label only.")
    classes = frame[labels[0]].dropna()
    values, bad = numbers(frame, labels[0])
    known = values[~np.isnan(values)]
    if not bad.any() and (len(np.unique(known)) > MOST_CLASSES or (known % 1).any()):
        return "regression", [labels[0]]
    names = [str(t) for t in texts(pd.Series(np.sort(classes.unique()))).tolist()]
    if len(set(names)) > MOST_CLASSES:
        raise ConsiliumError(
            f"Label '{labels[0]}' has {len(set(names))} classes, more than {MOST_CLASSES}. Name a column with classes or numbers."
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        spaced = classes[texts(classes).isin(twice) & (classes.astype(str) != texts(classes))]
        raise ConsiliumError(
            f"{table}: classes in column '{labels[0]}' differ only by spaces before or behind them: {listed(twice)}; first row "
            f"{spaced.index[0] + HEADER + 1}. Take the spaces away there."
        )
    if len(names) == 1:
        raise ConsiliumError(
            f"{table}: column '{labels[0]}' holds one class alone, '{names[0]}': nothing is to be told apart. Name another label."
        )
    return "multiclass", names


def _is_yes_no(frame: pd.DataFrame, column: str) -> bool:
    values, bad = numbers(frame, column)
    return not bad.any() and bool(np.isin(values[~np.isnan(values)], (0, 1)).all())


def parse(spec: str, option: str, form: str) -> tuple[str, list[str]]:
    """Returns the name and the words of ``name=word,word``."""
    name, equals, words = spec.partition("=")
    found = [w.strip() for w in words.split(",") if w.strip()]
    if not (name.strip() and equals and found):
        raise ConsiliumError(f"{option} '{spec}' is not of the form {form}.")
    return name.strip(), found
