"""What a hospital should know of its files though no row is at fault: variables that tell nothing, patients of another site."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.data.cohort import Cohort, Finding
from common.data.ingest.frames import read_frame, texts
from common.data.manifest import Manifest, Source, spelled_out
from common.data.standardise import moments
from common.task import Modality

HEADER = 1
"""Row of a finding about a whole column."""

EMPTY = "no visit has a value, so nothing is learned from it. Check the export, or take the variable out of the manifest"
CONSTANT = "every value is the same, so nothing is learned from it. Check the export, or take the variable out of the manifest"
IN_TASK = "task file"
"""Where a variable stands that the manifest does not name (``variables: same``)."""
FAR, ENOUGH = 5.0, 10
"""Of :func:`unit_warnings`."""
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
            if manifest.modalities[name] != source:
                problems = {f: p.replace("manifest", IN_TASK) for f, p in problems.items()}
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


def unit_warnings(sites: Mapping[Path, Manifest], cohorts: Mapping[Path, Cohort]) -> tuple[Finding, ...]:
    """Returns the numbers whose median at one site lies more than ``FAR`` interquartile ranges from the other sites' median.

    The range is that of the other sites' values together; both sides need ``ENOUGH`` values. A column in another unit than its
    manifest says looks so, and nothing else would tell. Medians are named: only whoever holds all the folders can call this.

    Args:
        sites: Folder -> its manifest.
        cohorts: Folder -> its patients, raw.
    """
    found: list[Finding] = []
    modalities = next(iter(cohorts.values())).task.modalities if len(cohorts) > 1 else {}
    for name, modality in modalities.items():
        values = {folder: _numbers(cohort, name) for folder, cohort in cohorts.items()}
        for feature in (f for f, wanted in modality.features.items() if not wanted.codes):
            for folder, mine in values.items():
                others = np.concatenate([v[feature] for f, v in values.items() if f != folder])
                if min(len(mine[feature]), len(others)) < ENOUGH:
                    continue
                low, usual, high = np.quantile(others, (0.25, 0.5, 0.75))
                median = float(np.median(mine[feature]))
                if low < high and abs(median - usual) > FAR * (high - low):
                    source = sites[folder].modalities[name].spelled_out(modality)
                    file = f"{folder.name}/{_file(folder, sites[folder], source)}"
                    problem = (
                        f"the median, {median:.4g}, lies far from the other sites', {usual:.4g}: another unit? Convert "
                        "the column to the task's unit, here or there"
                    )
                    found.append(Finding(file, HEADER, source.variables[feature].column, problem))
    return tuple(found)


def _numbers(cohort: Cohort, name: str) -> dict[str, NDArray[np.float64]]:
    """Returns feature -> its values at a site, of a table or series; categories are left out."""
    modality, found, at = cohort.task.modalities[name], dict[str, NDArray[np.float64]](), 0
    held = cohort.holding(name).inputs[name]
    for feature, wanted in modality.features.items():
        values = held[..., at].double().flatten().numpy()
        found[feature] = values[~np.isnan(values)] if not wanted.codes else values[:0]
        at += len(wanted.codes) or 1
    return found


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
