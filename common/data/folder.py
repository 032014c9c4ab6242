"""Opening a patient folder: its table, its files, its labels, its split."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.config import SplitConfig
from common.data.cohort import SPLITS, Cohort, Finding, SharedFinding
from common.data.ingest import Frames, IngestError, VolumeStore, reader
from common.data.ingest.frames import HEADER, alike, inside, listed, numbers, only_file, read_frame, separated, texts
from common.data.manifest import Manifest, Source, check_against_task, spelled_out
from common.data.rows import LazyRows
from common.data.standardise import table_columns
from common.errors import ConsiliumError, TooManyFaults
from common.task import MASK, Modality, Task

MOST_ABSENT = 5  # columns that are named
SAME_PLACE_MM = 0.25
"""By which corners of two grids in one place may be apart: a quarter of the usual voxel.

NIfTI headers hold float32: over a whole head that moves a corner by 0.001 mm at most where they hold a matrix, and by 0.04 mm
where they hold a quaternion (by up to 0.4 mm only within 0.1 degrees of half a turn, itself exact). Files that say the same
place in the two ways are no fault.
"""


TORN = (
    "has another split than an earlier visit of the same patient. Split patients, never visits: write the same in all of a "
    "patient's rows."
)


def open_cohort(folder: Path, manifest: Manifest, task: Task, split: SplitConfig, seed: int) -> Cohort:
    """Opens a patient folder: reads every file that its patient table points at.

    Args:
        folder: Folder of the manifest.
        manifest: What the folder says it holds.
        task: What is asked for.
        split: Shares of patients per split (ignored for sites that only evaluate and for tables with a split column).
        seed: Of the split.

    Returns:
        The raw cohort; visits with a fault are left out and named in ``findings``, those without any modality in ``empty``.

    Raises:
        TooManyFaults: If more rows have a fault than the site's limit allows, or a visit stands in two.
        ConsiliumError: If the manifest does not fit the task, or the patient table cannot be used.
    """
    check_against_task(manifest, task)
    manifest = spelled_out(manifest, task)
    table = _patient_table(folder, manifest)
    findings = [
        Finding(manifest.patients, int(row) + 2, column, "the cell is empty; fill it in, or take the row out")
        for column in (manifest.patient, manifest.visit)
        for row in np.flatnonzero(table[column].isna())
    ]
    volumes = VolumeStore(folder)
    values = {m: _read(folder, manifest, m, task, table, findings, volumes) for m in task.modalities}
    if task.type == "segmentation":
        labels = _masks(manifest, task, table, values, findings, volumes)
    else:
        labels = _label_tensor(_labels(table, manifest, task, findings), task)
    volumes.tidy()
    bad = {f.visit - 2 for f in findings}
    if len(bad) > manifest.limits.bad_rows * len(table):
        raise TooManyFaults(
            f"Site '{manifest.site}' refuses: more than limits.bad_rows of its patient rows have a fault. Mend the files, or "
            "raise the limit in the manifest.",
            tuple(findings),
        )
    present = np.stack([[row in values[m] for m in task.modalities] for row in range(len(table))])
    sound = np.array([row not in bad for row in range(len(table))])
    held = present.any(1)
    patient, _ = pd.factorize(texts(table[manifest.patient]))
    cohort = Cohort(
        task=task,
        inputs={m: _stack(values[m], len(table), task.modalities[m]) for m in task.modalities},
        present=torch.from_numpy(present),
        labels=labels,
        labelled=bool(manifest.labels),
        patient=patient.astype(np.int64),
        row=np.arange(len(table)),
        split=np.full(len(table), "test", dtype="<U10"),
        findings=tuple(findings),
        empty=tuple((np.flatnonzero(sound & ~held) + 2).tolist()),
    ).select(sound & held)
    return replace(cohort, split=_split(cohort, table, manifest, split, seed))


def _patient_table(folder: Path, manifest: Manifest) -> pd.DataFrame:
    where = f"Site '{manifest.site}': patient table '{manifest.patients}'"
    try:
        table = read_frame(inside(folder, manifest.patients))
    except IngestError as error:
        raise ConsiliumError(f"{where}: {error}. Correct the file, or 'patients' in the manifest.") from None
    needed = [manifest.patient, manifest.visit, *manifest.labels.values(), *([manifest.split] if manifest.split else [])]
    for source in manifest.modalities.values():
        needed += [source.column] if source.column else [v.column for v in source.variables.values()]
    named = any(c in table for c in needed)  # else the first row may be a patient's cells, which nobody tells
    absent = [f"{c}{alike(c, table) if named else ''}" for c in dict.fromkeys(needed) if c not in table]
    if absent:
        more = f" and {len(absent) - MOST_ABSENT:,} more" if len(absent) > MOST_ABSENT else ""
        remedy = separated(table) or ". Correct the manifest, or the names in the table's first row."
        raise ConsiliumError(f"{where} lacks column(s) {', '.join(absent[:MOST_ABSENT])}{more}{remedy}")
    if table.empty:
        raise ConsiliumError(f"{where} has no rows. Write one per visit.")
    first: dict[str, int] = {}
    found = [(row, first.setdefault(visit, row)) for row, visit in enumerate(texts(table[manifest.visit])) if not pd.isna(visit)]
    twice = [(row, before) for row, before in found if row != before]
    if twice:
        raise TooManyFaults(
            f"{where} names a visit twice in column '{manifest.visit}'. Write one row per visit.",
            tuple(Finding(manifest.patients, r + 2, manifest.visit, f"the same visit as in row {b + 2}") for r, b in twice),
        )
    return table


def _labels(table: pd.DataFrame, manifest: Manifest, task: Task, findings: list[Finding]) -> NDArray[np.float64]:
    """Returns labels [N, C] or classes [N]; a row with an empty or invalid label gets a finding."""
    if not manifest.labels:
        return np.zeros(len(table) if task.type == "multiclass" else (len(table), len(task.outputs)))
    absent = [c for c in task.label_columns if c not in manifest.labels]
    if absent:
        raise ConsiliumError(
            f"Site '{manifest.site}': the manifest's 'labels' lack {', '.join(absent)}. Add them, or leave 'labels' out."
        )
    columns: list[NDArray[np.float64]] = []
    for name in task.label_columns:
        column = manifest.labels[name]
        if task.type == "multiclass":
            values = np.asarray(texts(table[column]).map({o: float(i) for i, o in enumerate(task.outputs)}), dtype=np.float64)
        else:
            values, bad = numbers(table, column)
            number = ~bad & ((values > -1) | (name not in task.log))
            valid = number if task.type == "regression" else np.isin(values, (0, 1))
            values = np.where(valid, values, np.nan)
        filled = (table[column].notna() & (table[column].astype(str).str.strip() != "")).to_numpy()
        for row in np.flatnonzero(np.isnan(values)):
            fault = _no_label(task, name) if filled[row] else "is empty; fill it in, or leave the row out"
            findings.append(Finding(manifest.patients, int(row) + 2, column, f"the label of '{name}' {fault}"))
        columns.append(values)
    return columns[0] if task.type == "multiclass" else np.stack(columns, axis=1)


def _no_label(task: Task, name: str) -> str:
    """Returns what is wrong with a label that is filled in, but is none."""
    if task.type == "multiclass":
        return f"is none of the classes {listed(task.outputs)}; spell it as one of them, or leave the row out"
    if task.type != "regression":
        return "is neither 0 nor 1; correct it, or leave the row out"
    least = " above -1, of which the task takes the logarithm" if name in task.log else ""
    return f"is no finite number{least}; write one with a decimal point, or leave the row out"


def _label_tensor(labels: NDArray[np.float64], task: Task) -> Tensor:
    """Returns labels as they stand in a cohort; what is unknown, in rows that are left out, is 0."""
    return torch.from_numpy(np.nan_to_num(labels, nan=0.0)).to(torch.int64 if task.type == "multiclass" else torch.float32)


def _masks(
    manifest: Manifest,
    task: Task,
    table: pd.DataFrame,
    values: dict[str, dict[int, NDArray[np.generic]]],
    findings: list[Finding],
    volumes: VolumeStore,
) -> Tensor:
    """Returns regions [N, C, D, H, W], lazy; a row whose mask is absent, invalid or not where its scans lie gets a finding."""
    modality = next(iter(task.modalities.values()))
    regions: dict[int, NDArray[np.generic]] = {}
    cells = table[manifest.labels[MASK]] if manifest.labels else pd.Series([None] * len(table))
    for row, cell in enumerate(cells):
        scans = {m: str(table[manifest.modalities[m].column][row]) for m, held in values.items() if row in held}
        at = manifest.visit
        try:
            places = {name: volumes.scan(file, modality).place for name, file in scans.items()}
            if not all(_same_place(place, next(iter(places.values()))) for place in places.values()):
                raise IngestError(f"the scans {', '.join(places)} of this row differ in size or place; register them to one grid")
            if not manifest.labels:
                continue
            at = manifest.labels[MASK]
            if pd.isna(cell) or not str(cell).strip():
                raise IngestError("the mask is absent; name its file, or leave the row out")
            mask = volumes.regions(str(cell), task)
            if places and not _same_place(mask.place, next(iter(places.values()))):
                raise IngestError(
                    "the mask lies elsewhere than the scans of its row, or differs in size; export it on their grid"
                )
        except IngestError as error:
            findings.append(Finding(manifest.patients, row + 2, at, str(error)))
            continue
        regions[row] = mask.voxels
    return _lazy(regions, len(table), (len(task.outputs), *modality.voxels), 0, torch.uint8)


def _lazy(values: dict[int, NDArray[np.generic]], rows: int, shape: tuple[int, ...], fill: float, dtype: torch.dtype) -> LazyRows:
    """Returns a tensor [N, ...] that is not made before somebody looks at it; rows without a value are filled."""

    def row(at: int) -> Tensor:
        return torch.from_numpy(values[at]).to(dtype) if at in values else torch.full(shape, fill, dtype=dtype)

    return LazyRows([partial(row, at) for at in range(rows)], shape, dtype)


def _same_place(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Returns whether two grids (:func:`common.data.ingest.volume.place_of`) have one size and their corners one place."""
    size = one[0, :3]
    corners = np.array([(*corner, 1.0) for corner in itertools.product(*((0.0, edge - 1) for edge in size))])
    apart = np.linalg.norm(corners @ (one[1:] - other[1:]).T, axis=1)
    return bool(np.array_equal(size, other[0, :3]) and apart.max() <= SAME_PLACE_MM)


def _read(
    folder: Path,
    manifest: Manifest,
    name: str,
    task: Task,
    table: pd.DataFrame,
    findings: list[Finding],
    volumes: VolumeStore,
) -> dict[int, NDArray[np.generic]]:
    """Returns row -> raw array of the visits that hold a modality."""
    source = manifest.modalities.get(name)
    if source is None:
        return {}
    if source.column is None:
        source = replace(source, key=manifest.visit)
    read = reader(folder, source, task.modalities[name], Frames(), volumes)
    visits = texts(table[manifest.visit])
    cells = table[source.column] if source.column else _inline_cells(table, manifest, source)
    shared = only_file(cells) if source.column and source.key else None
    values: dict[int, NDArray[np.generic]] = {}
    for row, (cell, visit) in enumerate(zip(cells, visits, strict=True)):
        if pd.isna(cell) or not str(cell).strip():
            continue
        try:
            value = read(str(cell), str(visit))
        except IngestError as error:
            findings.append(_finding(error, manifest, name, row + 2, shared))
        else:
            if value is not None:
                values[row] = value
    return values


def _finding(error: IngestError, manifest: Manifest, name: str, row: int, shared: str | None) -> Finding:
    """Returns the finding of a fault in reading a modality.

    Args:
        error: The fault.
        manifest: Of the site.
        name: The modality.
        row: Of the patient table.
        shared: The file that all visits share, if they do. The name of a file of the visit's own is a cell: it is not told.
    """
    column, problem = manifest.modalities[name].column, str(error)
    if column is None:
        return Finding(manifest.patients, row, error.column or manifest.visit, problem)
    if error.row is None or (error.row == HEADER and not shared):
        return Finding(manifest.patients, row, column, problem)
    if not shared:
        return Finding(manifest.patients, row, column, f"in row {error.row} of the file, {problem}")
    if error.row == HEADER:
        problem += (
            f". Correct the file, or modalities.{name} in the manifest, where it is column '{column}' of {manifest.patients}"
        )
    return SharedFinding(shared, error.row, error.column or column, problem, row)


def _inline_cells(table: pd.DataFrame, manifest: Manifest, source: Source) -> pd.Series:
    """Returns the patient table's own name where any of a table's variables is filled in the row, else an empty cell."""
    columns = [v.column for v in source.variables.values()]
    return table[columns].notna().any(axis=1).map({True: manifest.patients, False: None})


def _stack(values: dict[int, NDArray[np.generic]], rows: int, modality: Modality) -> Tensor:
    """Returns the raw tensor [N, ...] of a modality, lazy for volumes; rows without it are NaN (0 for text)."""
    if modality.kind == "volume":
        return _lazy(values, rows, (1, *modality.voxels), np.nan, torch.float32)
    shape, fill = {
        "table": ((table_columns(modality),), np.nan),
        "series": ((modality.steps, len(modality.features)), np.nan),
        "audio": ((modality.frames, modality.coefficients), np.nan),
        "text": ((modality.tokens,), 0),
        "image": ((1, modality.pixels, modality.pixels), np.nan),
    }[modality.kind]
    stacked = np.full((rows, *shape), fill, dtype=np.int64 if modality.kind == "text" else np.float32)
    for row, value in values.items():
        stacked[row] = value
    return torch.from_numpy(stacked)


def _split(cohort: Cohort, table: pd.DataFrame, manifest: Manifest, split: SplitConfig, seed: int) -> NDArray[np.str_]:
    """Returns the split of every visit: patients, never visits, are split, seeded and balanced by their worst label.

    The labels of a regression, numbers, balance nothing, nor do masks.
    """
    if manifest.role == "evaluate":
        return np.full(len(cohort), "test", dtype="<U10")
    if manifest.split is not None:
        named = table[manifest.split].astype(str).to_numpy()[cohort.row]
        strange = ~np.isin(named, SPLITS)
        torn = named != pd.Series(named).groupby(cohort.patient).transform("first").to_numpy()
        for bad, fault in ((strange, f"may hold only {', '.join(SPLITS)}. Write one of them."), (torn, TORN)):
            if bad.any():
                row = cohort.row[bad][0] + HEADER + 1
                raise ConsiliumError(f"Site '{manifest.site}': {manifest.patients}, row {row}, column '{manifest.split}' {fault}")
        return named.astype("<U10")
    names = texts(table[manifest.patient]).to_numpy()[cohort.row]
    balances = cohort.task.type not in ("regression", "segmentation")
    labels = cohort.labels if balances else torch.zeros(len(cohort))
    event = (labels if labels.ndim == 1 else labels.amax(1)).numpy()
    worst = pd.Series(event).groupby(names).max()
    order = sorted(worst.index, key=lambda p: hashlib.sha256(f"{seed}/{manifest.site}/{p}".encode()).digest())
    shares = np.cumsum([split.test, split.validation, split.meta])
    place: dict[str, str] = {}
    for label in sorted(worst.unique()):
        stratum = [p for p in order if worst[p] == label]
        for rank, p in enumerate(stratum):
            at = int(np.searchsorted(shares, (rank + 0.5) / len(stratum), side="right"))
            place[p] = ("test", "validation", "meta", "train")[at]
    return np.array([place[p] for p in names], dtype="<U10")
