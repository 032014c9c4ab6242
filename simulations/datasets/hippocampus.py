"""Hippocampus of the Medical Segmentation Decathlon (Task04): one MR modality, two regions, dealt to four sites.

Reads ``Task04_Hippocampus.tar`` as it is published (Antonelli et al., Nat Commun 2022; CC BY-SA 4.0): ``imagesTr`` and
``labelsTr`` with files of the same names. Its ``imagesTs`` have no labels and are not read. A fifth of the cases, drawn by a seed
of this module, is tested; the seed of a run deals the others. The four sites are made up: the data do not tell any.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from common.errors import ConsiliumError
from simulations.datasets.files import finish_sites, new_sites, verified, with_split, write_site

FOLDER = "msd_task04_hippocampus"
ARCHIVE = "Task04_Hippocampus.tar"
HOW_TO_GET = (
    f"Download {ARCHIVE} of the Medical Segmentation Decathlon (http://medicaldecathlon.com, CC BY-SA 4.0) into a folder "
    f"'{FOLDER}', and set CONSILIUM_DATA to the folder that holds '{FOLDER}'."
)
PAIRS = 260
SITES = 4
TEST_SHARE, SPLIT_SEED = 0.2, 20
SUFFIX = ".nii.gz"


@dataclass(frozen=True)
class Cases:
    """The labelled cases.

    Attributes:
        archive: The file.
        images: Case -> name of its scan in the archive.
        masks: Case -> name of its mask.
        exclusions: What was left out -> how many.
        checksum: SHA-256 over the checksum of the archive.
    """

    archive: Path
    images: Mapping[str, str]
    masks: Mapping[str, str]
    exclusions: Mapping[str, int]
    checksum: str


def load(root: Path) -> Cases:
    """Lists the archive.

    Raises:
        ConsiliumError: If it is missing, damaged or half-downloaded, or does not hold the official one's pairs of scan and mask.
    """
    checksum = verified(root, [ARCHIVE], HOW_TO_GET)
    try:
        with tarfile.open(root / ARCHIVE) as archive:
            names = [m.name for m in archive.getmembers() if m.isfile()]
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ConsiliumError(f"{root / ARCHIVE} is no complete archive ({type(error).__name__}). {HOW_TO_GET}") from None
    images, masks = (_cases(names, place) for place in ("imagesTr", "labelsTr"))
    both = sorted(set(images) & set(masks))
    if not both:
        raise ConsiliumError(f"{root / ARCHIVE} holds no case with a file in both imagesTr and labelsTr. {HOW_TO_GET}")
    if len(both) != PAIRS:
        raise ConsiliumError(f"{root / ARCHIVE} holds {len(both)} labelled cases, the official archive has {PAIRS}. {HOW_TO_GET}")
    exclusions = {"scans without a mask": len(images) - len(both), "masks without a scan": len(masks) - len(both)}
    left_out = {reason: n for reason, n in exclusions.items() if n}
    return Cases(root / ARCHIVE, {c: images[c] for c in both}, {c: masks[c] for c in both}, left_out, checksum)


def _cases(names: list[str], place: str) -> dict[str, str]:
    """Returns case -> name; files that a Mac has put beside the real ones begin with a dot."""
    paths = [PurePosixPath(name) for name in names]
    kept = [p for p in paths if p.parent.name == place and p.name.endswith(SUFFIX) and not p.name.startswith(".")]
    return {p.name.removesuffix(SUFFIX): str(p) for p in kept}


def deal(cases: list[str], seed: int) -> pd.DataFrame:
    """Returns the site and the split of every case; the same cases are tested whatever the seed."""
    test = set(np.random.default_rng(SPLIT_SEED).permutation(cases)[: round(TEST_SHARE * len(cases))])
    order = np.random.default_rng([SPLIT_SEED, seed]).permutation(cases)
    frame = pd.DataFrame({"patient": order, "split": ["test" if c in test else "train" for c in order]})
    frame = frame.sort_values("split", kind="stable").reset_index(drop=True)
    return frame.assign(site=[f"site-{at % SITES + 1}" for at in range(len(frame))])


def write_sites(cases: Cases, folder: Path, *, seed: int) -> dict[str, Any]:
    """Writes four sites that train and test.

    Args:
        cases: What :func:`load` returned.
        folder: New or empty folder; it appears complete or not at all.
        seed: Of who goes where.

    Returns:
        ``data_checksum``, ``exclusions`` and ``n`` per role (scans, sites).

    Raises:
        ConsiliumError: If the folder is not empty.
    """
    partial = new_sites(folder)
    placed = deal(sorted(cases.images), seed)
    manifest = {"labels": {"mask": "mask"}, "split": "split", "modalities": {"mr": {"kind": "volume", "column": "mr"}}}
    for site, rows in placed.groupby("site"):
        files = {"mr": [f"mr/{c}{SUFFIX}" for c in rows["patient"]], "mask": [f"mask/{c}{SUFFIX}" for c in rows["patient"]]}
        write_site(partial / str(site), rows.drop(columns="site").assign(visit=rows["patient"], **files), manifest, {})
    homes = dict(zip(placed["patient"], placed["site"], strict=True))
    with tarfile.open(cases.archive) as archive:
        for kind, names in (("mr", cases.images), ("mask", cases.masks)):
            for case, name in names.items():
                content = archive.extractfile(name)
                file = partial / homes[case] / kind / f"{case}{SUFFIX}"
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(content.read() if content else b"")
    finish_sites(partial)
    n = {str(split): {"scans": len(rows), "sites": int(rows["site"].nunique())} for split, rows in placed.groupby("split")}
    return {"data_checksum": with_split(cases.checksum, placed), "exclusions": dict(cases.exclusions), "n": n}
