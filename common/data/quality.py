"""What a hospital should know of its files though no row is at fault: variables that tell nothing, patients of another site."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from common.data.cohort import Cohort, Finding
from common.data.ingest.frames import read_frame, texts
from common.data.manifest import Manifest, Source, spelled_out
from common.data.standardise import moments
from common.task import Modality

HEADER = 1
"""Row of a finding about a whole column."""

EMPTY = "no visit has a value, so nothing is learned from it. Check the export, or take the variable out of the manifest"
CONSTANT = "every value is the same, so nothing is learned from it. Check the export, or take the variable out of the manifest"
FEWEST = 2
"""Visits that must hold a modality before its columns are judged."""


def column_warnings(folder: Path, manifest: Manifest, cohort: Cohort) -> tuple[Finding, ...]:
    """Returns the columns of tables and series in which all visits are empty or equal; no visit is left out for that.

    Args:
        folder: Folder of the manifest.
        manifest: What the folder says it holds.
        cohort: Its patients, raw.
    """
    found: list[Finding] = []
    for name, source in spelled_out(manifest, cohort.task).modalities.items():
        held = cohort.holding(name)
        if source.variables and len(held) >= FEWEST:
            problems = _silent(cohort.task.modalities[name], held, name)
            file = _file(folder, manifest, source) if problems else ""
            found += [Finding(file, HEADER, v.column, problems[f]) for f, v in source.variables.items() if f in problems]
    return tuple(found)


def _silent(modality: Modality, held: Cohort, name: str) -> dict[str, str]:
    """Returns feature -> what is wrong with it."""
    told, problems, at = moments(modality, held.inputs[name]), {}, 0
    for feature, wanted in modality.features.items():
        columns = slice(at, at := at + (len(wanted.codes) or 1))
        if not told.count[columns].any():
            problems[feature] = EMPTY
        elif (told.variance[columns] <= np.finfo(np.float32).eps ** 2 * told.mean[columns] ** 2).all():
            problems[feature] = CONSTANT
    return problems


def _file(folder: Path, manifest: Manifest, source: Source) -> str:
    """Returns the file that holds a modality's columns; the patient table where every visit has a file of its own."""
    if source.column is None:
        return manifest.patients
    cells = read_frame(folder / manifest.patients)[source.column].dropna().astype(str).unique()
    return str(cells[0]) if len(cells) == 1 else manifest.patients


def shared_patients(sites: Mapping[Path, Manifest]) -> tuple[Finding, ...]:
    """Returns the patients that stand in the tables of two sites of this machine, one finding per pair of sites.

    A run cannot find them, because no site tells who its patients are: only whoever holds several folders can. Such a patient may
    train at one site and be tested at the other.

    Args:
        sites: Folder -> its manifest, whose patient table can be read.
    """
    names: dict[Path, pd.Series] = {}
    found: list[Finding] = []
    for folder, manifest in sites.items():
        mine = texts(read_frame(folder / manifest.patients)[manifest.patient])
        for other, theirs in names.items():
            both = mine.isin(set(theirs.dropna())) & mine.notna()
            if both.any():
                problem = (
                    f"{mine[both].nunique()} patient(s), here the first, are also at site '{sites[other].site}'. If they are the "
                    "same people, leave them at one site; if each site numbers its own, put the site's name before the number"
                )
                row = int(np.flatnonzero(both)[0]) + HEADER + 1
                found.append(Finding(f"{folder.name}/{manifest.patients}", row, manifest.patient, problem))
        names[folder] = mine
    return tuple(found)
