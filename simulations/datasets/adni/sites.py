"""The subjects of ADNI as a benchmark needs them, and as sites: one per cohort phase."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from sklearn.model_selection import train_test_split

from common.data.manifest import REFERENCE_FOLDER
from common.errors import ConsiliumError
from simulations.datasets import files
from simulations.datasets.adni import genotypes
from simulations.datasets.adni.tables import CODES, DIAGNOSES, FEATURES, FOLDER, HOW_TO_GET, read_subjects, read_values
from simulations.datasets.adni.twin import FINAL_SEED, write_twin
from simulations.datasets.files import Data, finish_sites, new_sites, with_split, write_site

SPLITS = "PTID_splits.json"
PARTS = {"training": "train", "validation": "validation", "testing": "test"}
"""Key of ``PTID_splits.json`` -> split."""
SHARES, SPLIT_SEED = {"validation": 0.15, "test": 0.15}, 0
REFERENCE_SHARE = 0.1
MODALITIES: Mapping[str, tuple[str, ...]] = {**FEATURES, "genomic": genotypes.FEATURES}
UNITS = {
    "VSBPSYS": "mm[Hg]", "VSBPDIA": "mm[Hg]", "VSPULSE": "/min", "VSRESP": "/min", "VSWEIGHT": "kg", "VSHEIGHT": "cm",
    "VSTEMP": "Cel", "PTEDUCAT": "a", "ABETA40": "pg/mL", "ABETA42": "pg/mL", "TAU": "pg/mL", "PTAU": "pg/mL",
}  # fmt: skip
"""Feature -> UCUM unit; regions are in mm3 (CV, SV) and mm (TA), told as plain numbers."""


@dataclass(frozen=True)
class AdniSubjects:
    """The subjects with one diagnosis.

    Attributes:
        rows: One row per subject: patient, visit, phase, diagnosis, split, and every feature of every modality.
        exclusions: What was left out -> how many.
        checksum: SHA-256 of what was read.
        data: Whether the patients are real.
        version: What the data are called.
        warnings: What people should know of them.
    """

    rows: pd.DataFrame
    exclusions: Mapping[str, int]
    checksum: str
    data: Data
    version: str
    warnings: tuple[str, ...]


def official_or_twin(beside: Path) -> tuple[Path, list[str]]:
    """Returns where ADNI lies; see :func:`simulations.datasets.files.official_or_twin`."""
    return files.official_or_twin(FOLDER, beside, lambda root: write_twin(root, seed=FINAL_SEED), HOW_TO_GET)


@functools.cache
def load(root: Path) -> AdniSubjects:
    """Reads the subjects; a second call with the same root answers from memory (do not change its frame).

    Args:
        root: Folder of the layout.

    Raises:
        ConsiliumError: If a file is missing or cannot be used, with file, line and remedy.
    """
    data, version = files.origin(root, "ADNI, tables and genotypes in Flex-MoE's layout", "ADNI")
    counts: dict[str, int] = {}
    warnings: list[str] = []
    subjects = read_subjects(root, counts)
    subjects = subjects.assign(split=_split(root, subjects, counts, warnings))
    subjects = subjects[subjects["split"].notna()].reset_index(drop=True)
    values = read_values(root, subjects, counts, warnings)
    training = set(subjects.loc[subjects["split"] == "train", "patient"])
    components = genotypes.read_components(root, training, set(subjects["patient"]), counts)
    held = pd.concat([values, components.reindex(subjects["patient"])], axis=1)
    anything = held.notna().any(axis=1).to_numpy()
    counts["subjects without any modality"] = int((~anything).sum())
    categories = {c: held[c].map(dict(codes)) for c, codes in CODES.items()}
    rows = subjects.set_index("patient").join(held.assign(**categories))[anything].reset_index()
    rows.insert(1, "visit", rows["patient"])
    checksum = hashlib.sha256(pd.util.hash_pandas_object(rows, index=False).to_numpy().tobytes()).hexdigest()
    return AdniSubjects(rows.drop(columns="rid"), counts, checksum, data, version, tuple(warnings))


def _split(root: Path, subjects: pd.DataFrame, counts: dict[str, int], warnings: list[str]) -> pd.Series[str]:
    """Returns who trains, validates and tests: as ``PTID_splits.json`` says; Flex-MoE did not publish it, so drawn without it."""
    file = root / SPLITS
    if not file.is_file():
        warnings.append(f"{SPLITS} is not there (Flex-MoE did not publish it): subjects are split 70/15/15 by a fixed seed.")
        return _drawn(subjects)
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        listed = [(str(patient), part) for key, part in PARTS.items() for patient in dict.fromkeys(told[key])]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConsiliumError(
            f"{file} cannot be read ({type(error).__name__}): it holds a list of PTID under each of {', '.join(PARTS)}."
        ) from None
    places = dict(listed)
    if len(places) < len(listed):
        raise ConsiliumError(
            f"{file}: {len(listed) - len(places):,} subject(s) are in two of {', '.join(PARTS)}: they would test what they "
            "trained. Leave each in one."
        )
    split = subjects["patient"].map(places)
    counts[f"subjects of {SPLITS} without one diagnosis"] = len(set(places) - set(subjects["patient"]))
    counts[f"subjects with one diagnosis whom {SPLITS} leaves out"] = int(split.isna().sum())
    absent = [key for key, part in PARTS.items() if part not in set(split)]
    if absent:
        raise ConsiliumError(f"{file}: nobody under {', '.join(absent)} is a subject with one diagnosis in DXSUM. {HOW_TO_GET}")
    return split


def _drawn(subjects: pd.DataFrame) -> pd.Series[str]:
    """Returns a split balanced by diagnosis, the same in every run."""
    split = pd.Series("train", index=subjects.index)
    for part, share in SHARES.items():
        left = split.index[split == "train"]
        number = round(share * len(subjects))
        _, drawn = train_test_split(left, test_size=number, random_state=SPLIT_SEED, stratify=subjects.loc[left, "diagnosis"])
        split[drawn] = part
    return split


def write_sites(subjects: AdniSubjects, folder: Path, *, seed: int, reference: float = REFERENCE_SHARE) -> dict[str, Any]:
    """Writes the cohort phases as sites that train, validate and test, and ``reference``.

    A subject is where it was enrolled, with all that is known of it. A seeded share of the training subjects, balanced by
    diagnosis, is the labelled reference set.

    Args:
        subjects: What :func:`load` returned.
        folder: New or empty folder; it appears complete or not at all.
        seed: Seed of the reference set.
        reference: Share of the training subjects that make the reference set; with 0 there is none.

    Returns:
        ``data``, ``data_version``, ``data_checksum``, ``exclusions``, ``warnings`` and ``n`` per role.

    Raises:
        ConsiliumError: If the folder is not empty.
    """
    partial = new_sites(folder)
    rows = subjects.rows.assign(site=subjects.rows["phase"])
    if reference:
        train = rows.index[rows["split"] == "train"]
        _, drawn = train_test_split(train, test_size=reference, random_state=seed, stratify=rows.loc[train, "diagnosis"])
        rows.loc[drawn, "site"] = REFERENCE_FOLDER
    for site, mine in rows.groupby("site"):
        manifest: dict[str, Any] = {
            "labels": {"class": "diagnosis"},
            "data": subjects.data,
            "modalities": {name: _source(names) for name, names in MODALITIES.items() if mine[[*names]].notna().any(axis=None)},
        }
        manifest |= {} if site == REFERENCE_FOLDER else {"split": "split"}
        write_site(partial / str(site), mine.drop(columns=["site", "phase"]), manifest, {})
    finish_sites(partial)
    role = rows["split"].mask(rows["site"] == REFERENCE_FOLDER, "reference")
    return {
        "data": subjects.data,
        "data_version": subjects.version,
        "data_checksum": with_split(subjects.checksum, rows[["visit", "site", "split"]]),
        "exclusions": dict(subjects.exclusions),
        "warnings": list(subjects.warnings),
        "n": {str(name): _counts(mine) for name, mine in rows.groupby(role)},
    }


def _source(names: tuple[str, ...]) -> dict[str, Any]:
    """Returns a modality as it stands in a manifest: columns of the patient table."""
    variables = {name: {"column": name, "unit": UNITS.get(name, "")} for name in names}
    codes = {name: {"column": name, "codes": {c: c for c in CODES[name].values()}} for name in names if name in CODES}
    return {"kind": "table", "variables": variables | codes}


def _counts(rows: pd.DataFrame) -> dict[str, int]:
    kinds = {kind: int((rows["diagnosis"] == kind).sum()) for kind in DIAGNOSES.values()}
    held = {f"with {name}": int(rows[[*names]].notna().any(axis=1).sum()) for name, names in sorted(MODALITIES.items())}
    return {"subjects": len(rows), **kinds, **held, "sites": int(rows["site"].nunique())}
