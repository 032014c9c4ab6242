"""MIMIC-CXR-JPG: which chest X-ray belongs to a stay.

MedFuse's rule, as corrected on 2 March 2023 (before, X-rays taken after 48 h were in the mortality task): taken during the stay,
in the mortality task within its first 48 h; view AP; the last of them. Images of one time go by their dicom_id. CheXpert labels
and the official split are not read: the lists of the extraction split by subject.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from common.errors import ConsiliumError
from simulations.datasets.mimic.layout import CXR, HOW_TO_GET, read, refuse, tell

METADATA = "mimic-cxr-2.0.0-metadata.csv"


def last_images(root: Path, stays: pd.DataFrame, hours: int | None, counts: dict[str, int]) -> pd.Series[str]:
    """Returns the last AP image of every stay that has one.

    Args:
        root: Folder that holds ``mimic-cxr-jpg``.
        stays: visit, patient, intime, outtime.
        hours: From ``intime``, inclusive; None is the whole stay.
        counts: Where to add how many images of these subjects were left out, and why.

    Returns:
        Visit -> path of its JPEG.

    Raises:
        ConsiliumError: If the metadata cannot be used, or an image that belongs to a stay is missing.
    """
    columns = ["dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime"]
    dated = [c for c in columns if c != "ViewPosition"]  # some images do not tell it
    images, file = read(root / CXR, METADATA, columns, filled=dated, dtype={"dicom_id": str})
    refuse(images["dicom_id"].duplicated(), file, "a dicom_id is there twice")
    clock = pd.to_numeric(images["StudyTime"], errors="coerce")
    refuse(clock.isna(), file, "'StudyTime' is no number HHMMSS")
    text = images["StudyDate"].astype(str) + clock.astype("int64").astype(str).str.zfill(6)
    taken = pd.to_datetime(text, format="%Y%m%d%H%M%S", errors="coerce")
    refuse(taken.isna(), file, "'StudyDate' and 'StudyTime' are no time")
    images = images.assign(taken=taken, line=images.index + 2, patient=images["subject_id"].astype(str))
    known = images[images["patient"].isin(stays["patient"])]
    pairs = known.merge(stays[["visit", "patient", "intime", "outtime"]], on="patient")
    end = pairs["outtime"] if hours is None else pairs["intime"] + pd.Timedelta(hours=hours)
    during = pairs[(pairs["taken"] >= pairs["intime"]) & (pairs["taken"] <= end)]
    front = during[during["ViewPosition"] == "AP"]
    last = front.sort_values(["taken", "dicom_id"]).groupby("visit").tail(1).sort_values("visit")
    tell(
        counts,
        {
            f"X-rays outside {'the stay' if hours is None else f'the first {hours} h of the stay'}": len(known)
            - during["dicom_id"].nunique(),
            "X-rays that are not AP": during["dicom_id"].nunique() - front["dicom_id"].nunique(),
            "X-rays before the last one of a stay": front["dicom_id"].nunique() - last["dicom_id"].nunique(),
        },
    )
    return pd.Series(_files(root / CXR, last, file), index=last["visit"].to_numpy(), dtype=object)


def _files(folder: Path, images: pd.DataFrame, metadata: Path) -> list[str]:
    """Returns the JPEG of every image: of ``resized/``, MedFuse's smaller copies, else of ``files/`` as they were published."""
    resized = folder / "resized"
    if resized.is_dir():
        small = {path.stem: str(path) for path in resized.rglob("*.jpg")}
        found = [small.get(dicom, "") for dicom in images["dicom_id"]]
    else:
        places = (
            folder / "files" / f"p{patient[:2]}" / f"p{patient}" / f"s{study}" / f"{dicom}.jpg"
            for patient, study, dicom in zip(images["patient"], images["study_id"], images["dicom_id"], strict=True)
        )
        found = [str(path) if path.is_file() else "" for path in places]
    lines = [line for line, path in zip(images["line"], found, strict=True) if not path]
    if lines:
        place = resized if resized.is_dir() else folder / "files"
        raise ConsiliumError(
            f"{len(lines):,} of {len(found):,} X-rays that belong to a stay are not in {place}, the first that of {metadata}, "
            f"line {lines[0]}. Download them, or run MedFuse's resize.py to its end. {HOW_TO_GET}"
        )
    return found
