"""A task out of the columns of one table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pandas as pd

from common.data.ingest.frames import numbers, texts
from common.errors import ConsiliumError, nearest

MOST_CLASSES = 50
MOST_CODES = 30
MOSTLY = 0.8
Names = Sequence[str]


def infer_task(frame: pd.DataFrame, name: str, labels: Names, modalities: Names, special: Names) -> dict[str, Any]:
    """Returns a task, as its file holds it, of the columns that the modalities name.

    A column of numbers is a number, any other a category with the codes that occur.

    Args:
        frame: The whole table.
        name: Of the task.
        labels: Columns with what is predicted.
        modalities: ``name=column,column,prefix*`` each.
        special: Columns that name patients or sites.

    Raises:
        ConsiliumError: If labels or modalities are not named, a pattern fits no column, or a column is neither.
    """
    if not labels or not modalities:
        raise ConsiliumError("A new task needs --label COLUMN and at least one --modality NAME=COLUMN,COLUMN,PREFIX*.")
    taken = {*labels, *special}
    found: dict[str, Any] = {}
    for spec in modalities:
        modality, wanted = parse(spec, "--modality", "NAME=COLUMN,COLUMN,PREFIX*")
        features: dict[str, dict[str, Any]] = {}
        for pattern in wanted:
            fitting = [c for c in map(str, frame) if c == pattern or (fnmatchcase(c, pattern) and c not in taken)]
            if not fitting:
                raise ConsiliumError(f"--modality {modality}: no column fits '{pattern}'{nearest(pattern, map(str, frame))}")
            if pattern in taken:
                raise ConsiliumError(f"--modality {modality}: '{pattern}' is a label, or names patients or sites. Leave it out.")
            features |= {c: _feature(frame, c) for c in fitting}
        found[modality] = {"kind": "table", "features": features if any(features.values()) else list(features)}
    kind, outputs = _outputs(frame, labels)
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name)
    return {"name": plain, "type": kind, "outputs": outputs, "modalities": found}


def _feature(frame: pd.DataFrame, column: str) -> dict[str, Any]:
    """Returns what the task says of a column: nothing of a number, the codes of a category."""
    values, bad = numbers(frame, column)
    if not bad.any():
        return {}
    filled = int(frame[column].notna().sum())
    if bad.sum() < (1 - MOSTLY) * filled and len(np.unique(values[~np.isnan(values)])) > 2:
        raise ConsiliumError(
            f"Column '{column}' holds numbers, but something else in {int(bad.sum())} row(s), first row {int(bad.argmax()) + 2}. "
            "Correct them; leave the cell empty where a value is missing."
        )
    codes = sorted(texts(frame[column].dropna()).unique())
    if len(codes) > MOST_CODES:
        raise ConsiliumError(
            f"Column '{column}' holds {len(codes)} different texts: neither a number nor a category of at most {MOST_CODES}. "
            "Leave it out of --modality."
        )
    return {"codes": codes}


def _outputs(frame: pd.DataFrame, labels: Names) -> tuple[str, list[str]]:
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
    if len(names) > MOST_CLASSES:
        raise ConsiliumError(
            f"Label '{labels[0]}' has {len(names)} classes, more than {MOST_CLASSES}. Name a column with classes or numbers."
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
