"""The stays of MIMIC as a benchmark needs them, and as sites: one per care unit."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from common.data.manifest import REFERENCE_FOLDER
from simulations.datasets import files
from simulations.datasets.files import TESTS, Data, differs, finish_sites, new_sites, place_file, with_split, write_site
from simulations.datasets.mimic import tables
from simulations.datasets.mimic.cxr import last_images
from simulations.datasets.mimic.extraction import (
    LABELS,
    MORTALITY,
    PARTS,
    PHENOTYPING,
    REPORTED,
    VARIABLES,
    read_series,
    read_stays,
)
from simulations.datasets.mimic.layout import FOLDER, HOW_TO_GET, origin
from simulations.datasets.mimic.notes import read_histories
from simulations.datasets.mimic.twin import FINAL_SEED, write_twin
from simulations.partition import assign_modalities

Cohort = Literal["mortality", "phenotyping", "admission"]
REFERENCE_SHARE, FULL_SHARE = 0.1, 1 / 3
PHENOTYPING_HOURS = 192
MEDFUSE = "MedFuse, perhaps of another version of MIMIC-IV,"
PAIRED = {"mortality": (4485, 488, 1242)}
"""Cohort -> stays with an X-ray that MedFuse has since 2 March 2023, for training, validation and test."""
ROLES = {"train": "train", "val": "train", "test": "test"}


@dataclass(frozen=True)
class MimicStays:
    """The stays of one cohort.

    Attributes:
        stays: One row per stay: visit, patient, unit (slug), part (train, val, test), labels (0/1), cxr (path of a JPEG or None),
            and in the admission cohort text (or None).
        labels: Output of the task -> column of ``stays``.
        long: ``series`` or ``table`` -> its values by visit.
        exclusions: What was left out -> how many.
        checksum: SHA-256 of what was read; of images their names and sizes.
        data: Whether the patients are real.
        version: What the data are called.
        warnings: What people should know of them.
    """

    stays: pd.DataFrame
    labels: Mapping[str, str]
    long: Mapping[str, pd.DataFrame]
    exclusions: Mapping[str, int]
    checksum: str
    data: Data
    version: str
    warnings: tuple[str, ...]

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, sorted."""
        return tuple(sorted(["cxr", *self.long, *(["text"] if "text" in self.stays else [])]))


def official_or_twin(beside: Path) -> tuple[Path, list[str]]:
    """Returns where MIMIC lies: below ``CONSILIUM_DATA``, or if it is not there, a generated twin.

    Args:
        beside: Folder in which the twin is written, once, with the seed of the benchmarks' tables.

    Returns:
        The folder that holds the folders of the data sets, and a sentence on the twin, if it is one.
    """
    return files.official_or_twin(FOLDER, beside, lambda root: write_twin(root, seed=FINAL_SEED), HOW_TO_GET)


@functools.cache
def load(root: Path, cohort: Cohort) -> MimicStays:
    """Reads a cohort; a second call with the same arguments answers from memory (do not change its frames).

    Args:
        root: Folder that holds the folders of the data sets.
        cohort: ``mortality``: stays of 48 h at least, their series and X-rays of the first 48 h, death in hospital.
            ``phenotyping``: all listed stays, the series of their first 192 h (MedFuse: the whole stay), the last X-ray, 25
            conditions. ``admission``: the mortality stays with history of present illness and table instead of the series.

    Raises:
        ConsiliumError: If a file is missing or cannot be used, with file, row and remedy.
    """
    data, version = origin(root)
    task = PHENOTYPING if cohort == "phenotyping" else MORTALITY
    counts: dict[str, int] = {}
    warnings: list[str] = []
    stays = read_stays(root, task, counts)
    hours = PHENOTYPING_HOURS if cohort == "phenotyping" else tables.HOURS
    listed = tuple(int((stays["part"] == part).sum()) for part in PARTS)
    images = last_images(root, stays, None if cohort == "phenotyping" else hours, counts)
    stays["cxr"] = stays["visit"].map(images)
    if cohort == "admission":
        text, dead = read_histories(root, stays, counts)
        stays = stays.assign(text=stays["visit"].map(text))[~dead.to_numpy()].reset_index(drop=True)
        table, other = tables.read_tables(root, stays, counts)
        long = {"table": table}
        warnings += [f"{other:,} stays have another outcome in hospital_expire_flag than in the lists."] if other else []
    else:
        long = {"series": read_series(root, task, stays, hours, counts)}
    paired = tuple(int((stays["cxr"].notna() & (stays["part"] == part)).sum()) for part in PARTS)
    counted = {"listed": (listed, REPORTED.get(task)), "with an X-ray": (paired, PAIRED.get(cohort))} if data == "real" else {}
    warnings += [differs(f"Stays {what} ({' / '.join(PARTS)})", n, told, MEDFUSE) for what, (n, told) in counted.items() if told]
    names = {"death": "y_true"} if task == MORTALITY else {name: name for name in LABELS[task]}
    stays = stays.assign(unit=stays["unit"].map(slug))[["visit", "patient", "unit", "part", *names.values(), *_cells(stays)]]
    told = tuple(w for w in warnings if w)
    return MimicStays(stays, names, long, counts, _checksum(stays, long), data, version, told)


def slug(unit: str) -> str:
    """Returns the name of a site for a care unit: its abbreviation, where MIMIC-IV has one in brackets."""
    short = re.search(r"\(([^)]+)\)", unit)
    return re.sub(r"[^a-z0-9]+", "-", (short[1] if short else unit).lower()).strip("-")


def _cells(stays: pd.DataFrame) -> list[str]:
    return [name for name in ("cxr", "text") if name in stays]


def _checksum(stays: pd.DataFrame, long: Mapping[str, pd.DataFrame]) -> str:
    whole = hashlib.sha256()
    images = [f"{Path(p).name} {Path(p).stat().st_size}" if pd.notna(p) else "" for p in stays["cxr"]]
    for frame in (stays.assign(cxr=images), *long.values()):
        whole.update(pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes())
    return whole.hexdigest()


def write_sites(
    stays: MimicStays,
    folder: Path,
    *,
    seed: int,
    paired: bool = True,
    masked: bool = True,
    reference: float = REFERENCE_SHARE,
) -> dict[str, Any]:
    """Writes the care units as sites, and ``reference``.

    The lists' training stays train and its validation stays validate, at the unit where they lay. A seeded share of the training
    subjects, with all their stays, is the labelled reference set. The lists' test stays test, with all that they have, under
    names that begin with ``test-``. A third of the units, rounded up, hold all modalities, the others one or two.

    Args:
        stays: What :func:`load` returned.
        folder: New or empty folder; it appears complete or not at all.
        seed: Seed of the reference set and of who holds what.
        paired: Only stays with an X-ray; without, every stay.
        masked: Whether units lack modalities; without, the same stays are at the same units with everything.
        reference: Share of the training subjects that make the reference set; with 0 there is none.

    Returns:
        ``data``, ``data_version``, ``data_checksum``, ``exclusions``, ``warnings`` and ``n`` per role.

    Raises:
        ConsiliumError: If the folder is not empty.
    """
    partial = new_sites(folder)
    frame = stays.stays
    exclusions = dict(stays.exclusions)
    if paired:
        exclusions["stays without an X-ray"] = int(frame["cxr"].isna().sum())
        frame = frame[frame["cxr"].notna()]
    frame = _placed(frame.reset_index(drop=True), list(stays.labels.values()), seed, reference)
    for name, long in stays.long.items():
        frame[name] = frame["visit"].isin(long["visit"]).map({True: f"{name}.parquet", False: None})
    held = {site: stays.modalities for site in frame["site"]}
    if masked:
        units = frame.loc[frame["role"] == "train", "site"]
        held |= assign_modalities(units, stays.modalities, full_share=FULL_SHARE, seed=seed)
    for site, rows in frame.groupby("site"):
        _write(partial / str(site), rows, stays, held[str(site)])
    finish_sites(partial)
    return {
        "data": stays.data,
        "data_version": stays.version,
        "data_checksum": with_split(stays.checksum, frame[["visit", "site", "split"]]),
        "exclusions": exclusions,
        "warnings": list(stays.warnings),
        "n": {str(role): _counts(rows, stays) for role, rows in frame.groupby("role")},
    }


def _placed(frame: pd.DataFrame, labels: list[str], seed: int, reference: float) -> pd.DataFrame:
    """Adds ``role``, ``site`` and ``split``."""
    role = frame["part"].map(ROLES)
    if reference:
        worst = frame[frame["part"] == "train"].groupby("patient")[labels].max().max(axis=1)
        strata = worst if worst.value_counts().min() > 1 else None
        _, drawn = train_test_split(worst.index.to_numpy(), test_size=reference, random_state=seed, stratify=strata)
        role = role.mask((frame["part"] == "train") & frame["patient"].isin(drawn), "reference")
    site = frame["unit"].where(role != "test", TESTS + frame["unit"]).where(role != "reference", REFERENCE_FOLDER)
    split = np.where(frame["part"] == "val", "validation", "train")
    return frame.assign(role=role, site=site, split=split)


def _write(folder: Path, rows: pd.DataFrame, stays: MimicStays, held: tuple[str, ...]) -> None:
    """Writes one site: patient table, manifest, values and images."""
    trains = bool((rows["role"] == "train").all())
    cells = rows[["patient", "visit", *stays.labels.values(), *(["split"] if trains else []), *held]]
    images = rows["cxr"].dropna() if "cxr" in held else rows["cxr"].iloc[:0]
    if "cxr" in held:
        names = {path: f"{visit}.jpg" for visit, path in zip(rows.loc[images.index, "visit"], images, strict=True)}
        cells = cells.assign(cxr=rows["cxr"].map(names))
    manifest = {
        "labels": dict(stays.labels),
        "role": "evaluate" if (rows["role"] == "test").all() else "train",
        "data": stays.data,
        "modalities": {name: source for name, source in _sources().items() if name in held},
    }
    long = {n: frame[frame["visit"].isin(rows["visit"])] for n, frame in stays.long.items() if n in held}
    write_site(folder, cells, manifest | ({"split": "split"} if trains else {}), {f"{n}.parquet": f for n, f in long.items()})
    for visit, path in zip(rows.loc[images.index, "visit"], images, strict=True):
        place_file(path, folder / f"{visit}.jpg")


def _sources() -> dict[str, dict[str, Any]]:
    """Returns the modalities as they stand in a manifest."""
    variables = {name: {"column": name, "unit": unit} for name, (unit, *_) in VARIABLES.items()}
    return {
        "cxr": {"kind": "image", "column": "cxr"},
        "series": {"kind": "series", "column": "series", "key": "visit", "time": "hour", "variables": variables},
        "table": {"kind": "table", "column": "table", "key": "visit", "variables": tables.sources()},
        "text": {"kind": "text", "column": "text", "inline": True},
    }


def _counts(rows: pd.DataFrame, stays: MimicStays) -> dict[str, int]:
    held = {f"with {name}": int(rows[name].notna().sum()) for name in stays.modalities}
    deaths = {"deaths": int(rows["y_true"].sum())} if "y_true" in rows else {}
    people = {"stays": len(rows), "patients": int(rows["patient"].nunique())}
    validation = {"for validation": int((rows["split"] == "validation").sum())} if (rows["role"] == "train").all() else {}
    return people | deaths | validation | held | {"sites": int(rows["site"].nunique())}
