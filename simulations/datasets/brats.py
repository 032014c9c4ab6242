"""BraTS: four MR modalities and tumour masks of several institutions, which become the sites.

Reads a folder of the training data of BraTS 2018, 2019 or 2020 as the organisers publish it: one folder per case, somewhere
below, with ``<case>_flair``, ``_t1``, ``_t1ce``, ``_t2`` and ``_seg`` as ``.nii.gz`` (or ``.nii``, as on Kaggle). Values of a
mask: 1 necrotic and non-enhancing core, 2 oedema, 4 enhancing tumour. Cases that lack the mask alone, below a folder whose name
holds "Validation", are left out.

Sites and what they lack follow FedMEPD (MedIA 2025; the mapping of its inference script): the server's reference set is CBICA's,
with all modalities, and eight clients hold one to four. Where its split files, which are not repeated here, put cases of one
institution into two clients (``2013``), cases alternate here. ``train.csv`` and ``test.csv``, one case folder a line without a
header as MetaKD's lists are, fix who is tested; without them it is 40 % of every client's cases, drawn by seed. CBICA's cases
that are listed to be tested are no part of the reference set: a site of their own tests them.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.data.manifest import REFERENCE_FOLDER
from common.errors import ConsiliumError
from simulations.datasets.files import UNREADABLE, Data, finish_sites, new_sites, origin, place_file, with_split, write_site

MODALITIES = ("flair", "t1", "t1ce", "t2")
MASK = "seg"
PARTS = (*MODALITIES, MASK)
SUFFIXES = (".nii.gz", ".nii")
ALIASES = {("BraTS20_Training_355", MASK): "W39_1998.09.19_Segm"}
"""Case and part -> name of its file in Kaggle's copy of BraTS 2020, in which this one is not named like the others."""
VALIDATION = "validation"
SERVER, SERVER_TESTS = "CBICA", "cbica-tested"
CLIENTS: Mapping[str, tuple[str, ...]] = {
    "client-1": ("flair", "t1", "t1ce"),
    "client-2": ("flair", "t1", "t2"),
    "client-3": ("flair", "t1ce"),
    "client-4": ("t1", "t2"),
    "client-5": ("t1ce",),
    "client-6": ("t2",),
    "client-7": MODALITIES,
    "client-8": MODALITIES,
}
INSTITUTIONS: Mapping[str, tuple[str, ...]] = {
    "2013": ("client-1", "client-6"), "TCIA01": ("client-2",), "TCIA02": ("client-7",), "TCIA03": ("client-3",),
    "TCIA04": ("client-3",), "TCIA05": ("client-5",), "TCIA06": ("client-4",), "TCIA08": ("client-4",), "TCIA09": ("client-5",),
    "TCIA10": ("client-8",), "TCIA12": ("client-5",), "TCIA13": ("client-6",), SERVER: (REFERENCE_FOLDER,),
}  # fmt: skip
"""Institution, as the name of a case tells it -> the clients among which its cases alternate. Of others (BraTS 2019 and 2020 have
more, and 2020's names tell none) cases alternate among all clients: ours."""
TEST_SHARE, SPLIT_SEED = 0.4, 18
LISTS = ("train.csv", "test.csv")
UNKNOWN = "unknown"
UNLISTED = "cases in no list"


@dataclass(frozen=True)
class Cases:
    """The cases of one year.

    Attributes:
        frame: A row per case: patient, institution, split (``train`` or ``test``; None where drawn), and a path per modality and
            mask.
        data: Whether the patients are real.
        version: What the data are called.
        checksum: SHA-256 over names and sizes of all files: to read them all would take too long.
        exclusions: What was left out -> how many.
    """

    frame: pd.DataFrame
    data: Data
    version: str
    checksum: str
    exclusions: Mapping[str, int]


def load(root: Path, how_to_get: str) -> Cases:
    """Lists a year's training data.

    Args:
        root: Its folder.
        how_to_get: What errors tell of where the data come from.

    Raises:
        ConsiliumError: If there is no case, a case lacks a file, has an empty one or is there twice, or a list does not fit.
    """
    endings = tuple(f"_{part}{suffix}" for part in PARTS for suffix in SUFFIXES)
    folders = sorted({f.parent for f in root.rglob("*") if f.name.endswith(endings) and not f.name.startswith(".")})
    if not folders:
        raise ConsiliumError(f"{root} holds no case: no file ends with _{MODALITIES[0]}.nii.gz or .nii. {how_to_get}")
    found = {folder: {part: _files(folder, part) for part in PARTS} for folder in folders}
    maskless = {f for f in folders if _lacking(found[f]) == [MASK] and VALIDATION in str(f.relative_to(root)).lower()}
    whole = {folder: files for folder, files in found.items() if folder not in maskless}
    if not whole:
        raise ConsiliumError(f"{root} holds validation cases alone, which have no masks. {how_to_get}")
    _refuse_faults(root, folders, whole, how_to_get)
    names_of_2019 = _name_mapping(root)
    rows = [
        {"patient": f.name, "institution": _institution(names_of_2019.get(f.name, f.name)), **{p: files[p][0] for p in PARTS}}
        for f, files in whole.items()
    ]
    frame, unlisted = _by_lists(pd.DataFrame(rows), root, {f.name for f in maskless})
    left_out = {"validation cases without a mask": len(maskless), UNLISTED: unlisted}
    data, version = origin(root, f"the training data in {root.name}", "BraTS 2018")
    sizes = sorted(f"{files[p][0].name} {files[p][0].stat().st_size}" for files in whole.values() for p in PARTS)
    checksum = hashlib.sha256("\n".join(sizes).encode()).hexdigest()
    return Cases(frame.reset_index(drop=True), data, version, checksum, {reason: n for reason, n in left_out.items() if n})


def _files(folder: Path, part: str) -> list[Path]:
    """Returns the files with content that hold a part of a case: one, if all is well."""
    names = [f"{folder.name}_{part}", *(alias for place, alias in ALIASES.items() if place == (folder.name, part))]
    files = [folder / f"{name}{suffix}" for name in names for suffix in SUFFIXES]
    return [f for f in files if f.is_file() and f.stat().st_size]


def _lacking(files: Mapping[str, list[Path]]) -> list[str]:
    return [part for part in PARTS if not files[part]]


def _refuse_faults(root: Path, folders: Sequence[Path], found: Mapping[Path, Mapping[str, list[Path]]], how_to_get: str) -> None:
    """Refuses cases that are not whole, or there twice; it tells their place among all folders, never their names.

    Raises:
        ConsiliumError: If there are such cases.
    """

    def told(bad: Sequence[Path]) -> str:
        first = folders.index(bad[0]) + 1
        return f"{len(bad)} of {len(folders)} case(s) below {root} (the first is number {first}, sorted by path)"

    lacking = {folder: parts for folder, files in found.items() if (parts := _lacking(files))}
    if any(parts != [MASK] for parts in lacking.values()):
        counts = Counter(part for parts in lacking.values() for part in parts)
        raise ConsiliumError(
            f"The data are not complete: {told(list(lacking))} lack a file with any content: "
            f"{', '.join(f'_{part} in {n}' for part, n in counts.items())}. Download these again. {how_to_get}"
        )
    if lacking:
        raise ConsiliumError(
            f"{told(list(lacking))} lack the mask alone, _{MASK}. Of training cases download it again. Validation cases have "
            f"none: they are left out if they lie below a folder whose name holds 'Validation'. {how_to_get}"
        )
    doubled = [folder for folder, files in found.items() if any(len(files[part]) > 1 for part in PARTS)]
    if doubled:
        raise ConsiliumError(f"{told(doubled)} hold a scan or the mask in two files, .nii.gz and .nii. Remove one of both.")
    names = [folder.name for folder in found]
    again = [folder for at, folder in enumerate(found) if folder.name in names[:at]]
    if again:
        raise ConsiliumError(f"{told(again)} lie in an earlier folder of the same name too. Remove one of both.")


def _institution(name: str) -> str:
    """Returns what a case's name tells: ``Brats18_TCIA01_131_1`` -> ``TCIA01``."""
    told = re.match(r"BraTS\d\d_([A-Za-z0-9]+)_", name, re.IGNORECASE)
    return told.group(1) if told and told.group(1) != "Training" else UNKNOWN


def _name_mapping(root: Path) -> dict[str, str]:
    """Returns case of 2020 -> its name of 2019, if the organisers' table is there."""
    files = sorted(root.rglob("name_mapping.csv"))
    if not files:
        return {}
    try:
        table = pd.read_csv(files[0], dtype=str, encoding="utf-8-sig")
    except UNREADABLE as error:
        raise _unreadable(files[0], error) from None
    columns = ("BraTS_2020_subject_ID", "BraTS_2019_subject_ID")
    if not set(columns) <= set(table):
        raise ConsiliumError(f"{files[0]} lacks column(s) {', '.join(set(columns) - set(table))}. Take the organisers' file.")
    known = table.dropna(subset=list(columns))
    return dict(zip(known[columns[0]], known[columns[1]], strict=True))


def _by_lists(frame: pd.DataFrame, root: Path, without: Collection[str]) -> tuple[pd.DataFrame, int]:
    """Returns the cases with the split that the lists say, if there are any, and how many are in none of them.

    Args:
        frame: The cases.
        root: Folder of the lists.
        without: Cases that were left out because they have no mask.
    """
    absent = [name for name in LISTS if not (root / name).is_file()]
    if len(absent) == len(LISTS):
        return frame.assign(split=None), 0
    if absent:
        raise ConsiliumError(f"{root}: both lists are needed, {absent[0]} is missing. Add it, or remove the other one.")
    place: dict[str, str] = {}
    known = set(frame["patient"])
    for file in (root / name for name in LISTS):
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except UNREADABLE as error:
            raise _unreadable(file, error) from None
        for number, line in enumerate(lines, 1):
            case = line.strip().rstrip("/").split("/")[-1]
            if not case:
                continue
            if place.get(case, file.stem) != file.stem:
                raise ConsiliumError(f"{file}, line {number}: this case is in both lists. A patient trains or tests, not both.")
            if case not in known:
                why = "this case has no mask" if case in without else f"no case below {root} has this name"
                raise ConsiliumError(f"{file}, line {number}: {why}. List cases of the training data alone.")
            place[case] = file.stem
    listed = frame["patient"].isin(place)
    return frame[listed].assign(split=frame["patient"].map(place)), int((~listed).sum())


def _unreadable(file: Path, error: Exception) -> ConsiliumError:
    """Returns the error for a file that is no text; what the parser says may quote it, and is left out."""
    return ConsiliumError(f"{file} cannot be read ({type(error).__name__}): it is no CSV file in UTF-8. Get it again.")


def deal(frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Returns the cases with their ``site`` and ``split``; those of the reference set are never tested.

    Cases of its institution that a list says are tested are a site of their own.
    """
    sites: list[str] = []
    turns: dict[tuple[str, ...], int] = {}
    for institution in frame["institution"]:
        clients = INSTITUTIONS.get(institution, tuple(CLIENTS))
        sites.append(clients[turns.get(clients, 0) % len(clients)])
        turns[clients] = turns.get(clients, 0) + 1
    placed = frame.assign(site=sites)
    if placed["split"].isna().all():
        rng = np.random.default_rng([SPLIT_SEED, seed])
        drawn = placed.groupby("site")["patient"].transform(lambda p: rng.permutation(len(p)) < round(TEST_SHARE * len(p)))
        placed["split"] = np.where(drawn.astype(bool) & (placed["site"] != REFERENCE_FOLDER), "test", "train")
    placed.loc[(placed["site"] == REFERENCE_FOLDER) & (placed["split"] == "test"), "site"] = SERVER_TESTS
    return placed


def write_sites(cases: Cases, folder: Path, *, seed: int, masked: bool = True) -> dict[str, Any]:
    """Writes the clients and the reference set; scans are links to the official files.

    Args:
        cases: What :func:`load` returned.
        folder: New or empty folder; it appears complete or not at all.
        seed: Of who is tested, if no lists say it.
        masked: Whether training cases of a client lack the modalities that it does not hold; test cases lack none.

    Returns:
        ``data_checksum``, ``exclusions``, ``warnings`` and ``n`` per role (cases, sites).

    Raises:
        ConsiliumError: If the folder is not empty, or nobody is left to train or to test.
    """
    placed = deal(cases.frame, seed)
    partial = new_sites(folder)
    manifest = {
        "labels": {"mask": MASK}, "data": cases.data,
        **({"limits": {"min_count": 1}} if cases.data == "generated" else {}),  # two to four cases a client, of nobody
        "modalities": {m: {"kind": "volume", "column": m} for m in MODALITIES},
    }  # fmt: skip
    for site, rows in placed.groupby("site"):
        held = CLIENTS.get(str(site), MODALITIES)
        files: dict[str, Any] = {part: [f"scans/{file.name}" for file in rows[part]] for part in PARTS}
        lacking = (rows["split"] == "train").to_numpy() & masked
        for modality in (m for m in MODALITIES if m not in held):
            files[modality] = [None if lacks else name for name, lacks in zip(files[modality], lacking, strict=True)]
        patients = rows[["patient", "split"]].assign(visit=rows["patient"], **files)
        by_column = {} if site == REFERENCE_FOLDER else {"split": "split"}  # the server splits its own patients
        role = {"role": "evaluate"} if site == SERVER_TESTS else {}
        write_site(partial / str(site), patients, manifest | by_column | role, {})
        for part in PARTS:
            for file in rows[part]:
                place_file(file, partial / str(site) / "scans" / file.name)
    roles = placed["split"].where(placed["site"] != REFERENCE_FOLDER, "reference")
    n = {str(role): {"cases": len(rows), "sites": int(rows["site"].nunique())} for role, rows in placed.groupby(roles)}
    if not {"train", "test"} <= set(n):
        raise ConsiliumError(
            f"Of {len(placed)} cases none is left to {'train' if 'train' not in n else 'test'}. Check the lists."
        )
    finish_sites(partial)
    columns = placed[["patient", "institution", "site", "split"]]
    return {
        "data_checksum": with_split(cases.checksum, columns),
        "exclusions": dict(cases.exclusions),
        "warnings": _departures(placed),
        "n": n,
        "data": cases.data,
        "data_version": cases.version,
    }


def _departures(placed: pd.DataFrame) -> list[str]:
    """Returns where the cases cannot follow the protocol, a sentence each."""
    found = []
    others = int((~placed["institution"].isin(list(INSTITUTIONS))).sum())
    if others:
        silent = int((placed["institution"] == UNKNOWN).sum())
        found.append(
            f"{others} of {len(placed)} cases are of no institution that the protocol knows and alternate among all clients; "
            f"{silent} of them tell none, which for BraTS 2020 the organisers' name_mapping.csv does."
        )
    if not (placed["site"] == REFERENCE_FOLDER).any():
        found.append(f"There is no reference set: none of {len(placed)} cases is {SERVER}'s to train on.")
    return found
