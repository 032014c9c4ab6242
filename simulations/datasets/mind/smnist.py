"""S-MNIST: written digits (MNIST) with spoken ones (Google Speech Commands) as cepstral coefficients, Zenodo record 4452953.

That MIND means this record is inferred: MILES, by the same authors, names a set S-MNIST. A spoken digit is 39 frames of 50 ms,
one every 25 ms, of 12 coefficients and an energy. It enters as a ``series``: the kind ``audio`` reads waves and makes its own
coefficients, and there are no waves here. A step of one "hour" stands for a frame.

Fewer digits were spoken than written, and the record repeats some. Samples with one recording are one patient here, so that no
recording is at two sites, or in training and validation.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.errors import ConsiliumError
from simulations.datasets.files import differs, origin, verified, write_png
from simulations.datasets.mind.sites import Samples, Stored

FOLDER = "smnist"
TITLE = "Written and spoken digits database, Zenodo 4452953"
PARTS = ("train", "test")
WRITTEN, SPOKEN, LABELS = "data_wr_{}.npy", "data_sp_{}.npy", "labels_{}.npy"
FILES = tuple(name.format(part) for part in PARTS for name in (WRITTEN, SPOKEN, LABELS))
EDGE, STEPS = 28, 39
FEATURES = tuple(f"c{k:02d}" for k in range(13))
REPORTED, REPORTED_SPOKEN = (60_000, 10_000), (34_801, 4_107)
HOW_TO_GET = (
    f"A folder '{FOLDER}' below CONSILIUM_DATA holds the six files of https://zenodo.org/record/4452953: {', '.join(FILES)}. "
    "Without the folder a generated twin takes their place."
)


@functools.cache
def load(root: Path) -> Samples:
    """Reads the six arrays; a second call answers from memory (do not change its frame).

    A training sample whose recording is tested too is left out and counted.

    Args:
        root: Folder of the set.

    Raises:
        ConsiliumError: If a file is missing, damaged or of another shape, or a label is no digit.
    """
    data, version = origin(root, TITLE, TITLE)
    checksum = verified(root, FILES, HOW_TO_GET)
    images, speech, rows = [], [], []
    for part in PARTS:
        written, spoken, digits = (root / name.format(part) for name in (WRITTEN, SPOKEN, LABELS))
        images.append(_pixels(_array(written, EDGE**2), written))
        speech.append(_array(spoken, STEPS * len(FEATURES)).astype(np.float32))
        label = _digits(digits)
        for file, held in ((written, images[-1]), (spoken, speech[-1])):
            if len(held) != len(label):
                raise ConsiliumError(
                    f"{file} has {len(held):,} samples and {digits} {len(label):,}. Get both again. {HOW_TO_GET}"
                )
        names = [hashlib.sha256(row.tobytes()).hexdigest()[:16] for row in speech[-1]]
        rows.append(pd.DataFrame({"patient": names, "part": part, "label": label.astype(str)}))
    frame = pd.concat(rows, ignore_index=True)
    frame.insert(0, "visit", [f"{part}-{n:05d}" for part, few in zip(PARTS, rows, strict=True) for n in range(len(few))])
    frame["image"] = frame["speech"] = np.arange(len(frame))
    _refuse_several_digits(frame, root)
    told = [
        differs("Samples (train / test)", map(len, rows), REPORTED, "the record"),
        differs("Recordings that differ (train / test)", (r["patient"].nunique() for r in rows), REPORTED_SPOKEN, "the record"),
    ]
    tested = (frame["part"] == "train") & frame["patient"].isin(frame.loc[frame["part"] == "test", "patient"])
    exclusions = {
        "training samples whose recording is tested too (left out)": int(tested.sum()),
        "samples that repeat another one's recording (kept, one patient)": int(frame.loc[~tested, "patient"].duplicated().sum()),
    }
    warnings = tuple(t for t in told if t) if data == "real" else ()
    stored = _stored(np.concatenate(images), np.concatenate(speech))
    return Samples(frame[~tested].reset_index(drop=True), stored, exclusions, checksum, data, version, warnings)


def _array(file: Path, width: int | None) -> NDArray[Any]:
    """Returns an array [N, width], or [N], of finite numbers."""
    try:
        found = np.load(file)  # which refuses arrays of objects
    except (OSError, EOFError, ValueError) as error:
        raise ConsiliumError(
            f"{file} is no array, or is cut short ({type(error).__name__}). Get it again. {HOW_TO_GET}"
        ) from None
    expected = "(N,)" if width is None else f"(N, {width})"
    fits = found.shape == (*found.shape[:1], *(() if width is None else (width,))) and found.ndim > 0
    if found.dtype.kind not in "uif" or not fits:
        raise ConsiliumError(f"{file} is no array of numbers of shape {expected}. Get it again. {HOW_TO_GET}")
    if not len(found) or not np.isfinite(found).all():
        raise ConsiliumError(f"{file} is empty or holds values that are no numbers. Get it again. {HOW_TO_GET}")
    return np.asarray(found)


def _pixels(found: NDArray[Any], file: Path) -> NDArray[np.uint8]:
    """Returns images [N, 28, 28]; grey values from 0 to 1 are put on the scale to 255."""
    low, high = float(found.min()), float(found.max())
    if low < 0 or high > 255:
        raise ConsiliumError(f"{file} holds grey values outside 0 and 255. Get it again. {HOW_TO_GET}")
    return np.asarray(np.rint(found * (255 if high <= 1 else 1)), dtype=np.uint8).reshape(-1, EDGE, EDGE)


def _digits(file: Path) -> NDArray[np.int64]:
    found = _array(file, None)
    bad = np.flatnonzero(~np.isin(found, range(10)))
    if len(bad):
        raise ConsiliumError(f"{file}, entry {bad[0]}: the label is no digit ({len(bad):,} entries). Get it again. {HOW_TO_GET}")
    return found.astype(np.int64)


def _refuse_several_digits(frame: pd.DataFrame, root: Path) -> None:
    """Refuses one recording under several digits: the files are then not in one order."""
    several = frame.groupby("patient")["label"].transform("nunique") > 1
    if several.any():
        part = frame.loc[several, "part"].iloc[0]
        raise ConsiliumError(
            f"{root / SPOKEN.format(part)}: {int(several.sum()):,} samples repeat a recording under another digit, the first is "
            f"sample {frame.loc[several, 'visit'].iloc[0].split('-')[1]}. The six files are not in one order (whoever shuffles "
            f"one must shuffle all): get all of them again. {HOW_TO_GET}"
        )


def _stored(images: NDArray[np.uint8], speech: NDArray[np.float32]) -> dict[str, Stored]:
    def long(numbers: NDArray[np.int64], visits: NDArray[Any]) -> pd.DataFrame:
        frames = pd.DataFrame(speech[numbers].reshape(-1, len(FEATURES)), columns=list(FEATURES))
        frames.insert(0, "frame", np.tile(np.arange(STEPS), len(numbers)))
        frames.insert(0, "visit", np.repeat(visits, STEPS))
        return frames

    source = {"kind": "series", "key": "visit", "time": "frame", "variables": "same"}
    return {
        "image": Stored({"kind": "image"}, ".png", lambda number, file: write_png(images[int(number)], file)),
        "speech": Stored(source, long=long),
    }
