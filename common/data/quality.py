"""What a hospital should know of its files though no row is at fault: what tells nothing or is doubtful, shared patients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.config import SplitConfig
from common.data.cohort import Cohort, Finding
from common.data.ingest.frames import HEADER, only_file, read_frame, texts
from common.data.manifest import REFERENCE_FOLDER, Manifest, Source, spelled_out
from common.data.standardise import moments
from common.task import MASK, Modality

EMPTY = "no visit has a value, so nothing is learned from it. Check the export, or take the variable out of the manifest"
ABSENT = (
    "no visit that is used has a value of '{}', so nothing is learned from it. Check the export, or take the modality out of the "
    "manifest"
)
NOWHERE = (
    "no site has enough training visits with '{}' (federation.min_patients; limits.min_count in a manifest): a run of these "
    "sites ends at once. Check the exports, add a site that holds it, or take it out of the task"
)
CONSTANT = "every value is the same, so nothing is learned from it. Check the export, or take the variable out of the manifest"
SENTINELS = (-9, -99, -999, -9999, -99999, -999999, 999, 9999, 99999, 999999)
SENTINEL = "holds {} more than once, far from all other values: a code for a missing value? Leave such cells empty"
ONE_LABEL = (
    "every visit has the same label: nothing can be learned of it here, and no AUROC be told. Check the export; if the site is "
    "like that, leave it as it is"
)
BLANK = "the mask marks no region at all. If there is something to mark, export the mask again; else leave it as it is"
UNVALIDATED = (
    "no visit validates, so the site has no say in which round is best: it has too few patients. Add some, or let the site only "
    "test ('role: evaluate')"
)
IN_TASK = "task file"
"""Where a variable stands that the manifest does not name (``variables: same``)."""
QUARTILES = (0.25, 0.5, 0.75)
FAR, ENOUGH = 3.0, 10
"""Of :func:`unit_warnings`: interquartile ranges between two medians, and values that both need."""
BEYOND = 5.0
"""Interquartile ranges of the other values between them and what may be a code for a missing one."""
FEWEST = 2
"""Visits that must hold a modality before its columns are judged."""


def content_warnings(folder: Path, manifest: Manifest, cohort: Cohort) -> tuple[Finding, ...]:
    """Returns what tells nothing or is doubtful in a hospital's files: columns, labels, and masks that mark nothing.

    Args as for :func:`column_warnings`.
    """
    return (*column_warnings(folder, manifest, cohort), *label_warnings(manifest, cohort), *mask_warnings(manifest, cohort))


def column_warnings(folder: Path, manifest: Manifest, cohort: Cohort) -> tuple[Finding, ...]:
    """Returns the columns of tables and series that are empty, or equal in all visits, or hold codes for missing values.

    No visit is left out for that.

    Args:
        folder: Folder of the manifest.
        manifest: What the folder says it holds.
        cohort: Its patients, raw.
    """
    found: list[Finding] = []
    for name, source in spelled_out(manifest, cohort.task).modalities.items():
        held = cohort.holding(name)
        if source.variables and len(held) >= FEWEST:
            problems = _doubtful(cohort.task.modalities[name], held, name)
            file = _file(folder, manifest, source) if problems else ""
            if manifest.modalities[name] != source:
                problems = {f: p.replace("manifest", IN_TASK) for f, p in problems.items()}
            found += [Finding(file, HEADER, v.column, problems[f]) for f, v in source.variables.items() if f in problems]
    return tuple(found)


def modality_warnings(manifest: Manifest, cohort: Cohort) -> tuple[Finding, ...]:
    """Returns the modalities that a manifest names, and of which no visit has anything.

    Args:
        manifest: What the folder says it holds.
        cohort: Its patients, all of them.
    """
    held = dict(zip(cohort.task.modalities, cohort.present.any(0).tolist(), strict=True))
    absent = [name for name in manifest.modalities if len(cohort) and not held[name]]
    return tuple(Finding(manifest.patients, HEADER, manifest.modalities[n].column or "", ABSENT.format(n)) for n in absent)


def unheld(training: Mapping[str, Cohort], least: Mapping[str, int]) -> list[str]:
    """Returns the modalities that no site has training visits enough of, as enrolling would find.

    Args:
        training: Site that trains -> its patients.
        least: Site -> training visits with a modality from which on it trains on it.
    """
    enough: set[str] = set()
    modalities: list[str] = []
    for site, cohort in training.items():
        modalities = list(cohort.task.modalities)
        held = cohort.present.numpy()[cohort.split == "train"].sum(0)
        enough |= {name for name, visits in zip(modalities, held, strict=True) if visits >= least[site]}
    return [name for name in modalities if name not in enough]


def unheld_warnings(sites: Mapping[Path, Manifest], cohorts: Mapping[Path, Cohort], min_patients: int) -> tuple[Finding, ...]:
    """Returns the modalities of the task that no site trains on.

    Args:
        sites: Folder -> its manifest.
        cohorts: Folder -> its patients.
        min_patients: Of the configuration (``federation.min_patients``).
    """
    named = {str(f): f for f in cohorts if sites[f].role == "train" and f.name != REFERENCE_FOLDER}
    least = {name: max(sites[f].limits.min_count, min_patients) for name, f in named.items()}
    absent = unheld({name: cohorts[f] for name, f in named.items()}, least)
    return tuple(Finding(IN_TASK, HEADER, name, NOWHERE.format(name)) for name in absent)


def _doubtful(modality: Modality, held: Cohort, name: str) -> dict[str, str]:
    """Returns feature -> what is wrong with it."""
    told, values, at = moments(modality, held.inputs[name]), _numbers(held, name), 0
    problems: dict[str, str] = {}
    for feature, wanted in modality.features.items():
        columns = slice(at, at := at + (len(wanted.codes) or 1))
        if not told.count[columns].any():
            problems[feature] = EMPTY
        elif not told.varies[columns].any():
            problems[feature] = CONSTANT
        elif codes := _sentinels(values[feature]):
            problems[feature] = SENTINEL.format(", ".join(map(str, codes)))
    return problems


def _sentinels(values: NDArray[np.float64]) -> list[int]:
    """Returns the codes for missing values that stand among numbers more than once, where no other number is near."""
    is_code = np.isin(values, SENTINELS)
    others = values[~is_code]
    if not is_code.any() or len(others) < ENOUGH:
        return []
    least, low, high, most = np.quantile(others, (0, 0.25, 0.75, 1))
    room = BEYOND * ((high - low) or (most - least))
    beyond = [code for code in SENTINELS if code > most + room or code < least - room or code < 0 <= least]
    return [code for code in beyond if (values == code).sum() > 1]


def _file(folder: Path, manifest: Manifest, source: Source) -> str:
    """Returns the file that holds a modality's columns; the patient table where every visit has a file of its own."""
    if source.column is None:
        return manifest.patients
    return only_file(read_frame(folder / manifest.patients)[source.column]) or manifest.patients


def split_warnings(manifest: Manifest, cohort: Cohort, split: SplitConfig) -> tuple[Finding, ...]:
    """Returns whether a site that trains is too small for the seeded split to leave a visit to validate on.

    Args:
        manifest: What the folder says it holds.
        cohort: Its patients, split as in a run.
        split: The shares.
    """
    wanted = manifest.role == "train" and manifest.split is None and split.validation > 0
    silent = wanted and not len(cohort.part("validation"))
    return (Finding(manifest.patients, HEADER, manifest.patient, UNVALIDATED),) if silent else ()


def label_warnings(manifest: Manifest, cohort: Cohort) -> tuple[Finding, ...]:
    """Returns the columns of labels that are the same in all visits, classes or numbers.

    Args:
        manifest: What the folder says it holds.
        cohort: Its patients, raw.
    """
    if cohort.task.type == "segmentation" or not cohort.labelled or len(cohort) < FEWEST:
        return ()
    same = (cohort.labels == cohort.labels[0]).reshape(len(cohort), -1).all(0).tolist()  # a column per output, or one of classes
    columns = [manifest.labels[name] for name in cohort.task.label_columns]
    return tuple(Finding(manifest.patients, HEADER, c, ONE_LABEL) for c, is_same in zip(columns, same, strict=True) if is_same)


def mask_warnings(manifest: Manifest, cohort: Cohort) -> tuple[Finding, ...]:
    """Returns the visits whose mask marks no region at all; every mask is looked at.

    Args:
        manifest: What the folder says it holds.
        cohort: Its patients, raw.
    """
    if cohort.task.type != "segmentation" or not cohort.labelled:
        return ()
    blank = [row for row, regions in zip(cohort.row.tolist(), cohort.labels, strict=True) if not regions.any()]
    return tuple(Finding(manifest.patients, row + HEADER + 1, manifest.labels[MASK], BLANK) for row in blank)


def unit_warnings(sites: Mapping[Path, Manifest], cohorts: Mapping[Path, Cohort]) -> tuple[Finding, ...]:
    """Returns the numbers whose median at one site lies far from those of most other sites, compared pair by pair.

    Two medians are far from each other if more than ``FAR`` times the smaller interquartile range of the two sites lies between
    them: the larger unit has the larger range, so the rule does not ask which side is wrong. Both sites need ``ENOUGH`` values.
    A column in another unit than its manifest says looks so, and nothing else would tell. Medians are named: only whoever holds
    all the folders can call this.

    Args:
        sites: Folder -> its manifest.
        cohorts: Folder -> its patients, raw.
    """
    found: list[Finding] = []
    modalities = next(iter(cohorts.values())).task.modalities if len(cohorts) > 1 else {}
    for name, modality in modalities.items():
        values = {folder: _numbers(cohort, name) for folder, cohort in cohorts.items()}
        for feature in modality.features:
            told = {f: np.quantile(v[feature], QUARTILES) for f, v in values.items() if len(v[feature]) >= ENOUGH}
            for folder, (low, median, high) in told.items():
                far = [m for lo, m, hi in told.values() if abs(median - m) > FAR * min(high - low, hi - lo) > 0]
                if 2 * len(far) > len(told) - 1:
                    source = sites[folder].modalities[name].spelled_out(modality)
                    file = f"{folder.name}/{_file(folder, sites[folder], source)}"
                    problem = (
                        f"the median, {median:.4g}, lies far from the other sites', {np.median(far):.4g}: another unit? Convert "
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
