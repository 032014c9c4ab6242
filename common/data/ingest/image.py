"""Two-dimensional images: DICOM by pydicom, PNG and JPEG by Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.pixels.processing import apply_modality_lut

from common.data.ingest.frames import IngestError

RASTER = {".png", ".jpg", ".jpeg"}
UNREADABLE = "it is damaged, cut short or no image, or this user may not read it"
GREY = {"MONOCHROME1", "MONOCHROME2"}


def read_image(path: Path, pixels: int) -> NDArray[np.generic]:
    """Returns a grey image.

    Grey values are scaled to the 1st and 99th percentile, so that scanners of different bit depth agree; MONOCHROME1 (white
    is low) is inverted.

    Args:
        path: The file.
        pixels: Edge length to resample to.

    Returns:
        float32 [1, pixels, pixels] in [0, 1].

    Raises:
        IngestError: If the file is no readable single-frame grey image.
    """
    try:
        grey = _raster(path) if path.suffix.lower() in RASTER else _dicom(path)
    except IngestError:
        raise
    except Exception:  # pydicom's and Pillow's plug-ins raise many kinds, whose texts may quote headers
        remedy = "export it again as DICOM, PNG or JPEG, or leave the cell empty"
        raise IngestError(f"the image cannot be read: {UNREADABLE}; {remedy}") from None
    low, high = np.percentile(grey, [1, 99])
    if not high > low:  # NaN included, which a broken rescale slope leaves
        raise IngestError("the image is empty: all grey values are equal or no numbers; export it again, or leave the cell empty")
    scaled = np.clip((grey - low) / (high - low), 0, 1).astype(np.float32)
    resampled = Image.fromarray(scaled).resize((pixels, pixels), Image.Resampling.BOX)
    return np.asarray(resampled, dtype=np.float32)[None]


def _raster(path: Path) -> NDArray[np.float64]:
    with Image.open(path) as image:
        return np.asarray(image.convert("F"), dtype=np.float64)


def _dicom(path: Path) -> NDArray[np.float64]:
    dataset = pydicom.dcmread(path)
    pixels = dataset.pixel_array
    if pixels.ndim != 2 or dataset.PhotometricInterpretation not in GREY:
        raise IngestError("the image has colours or several frames, a single grey frame is expected; export one frame in grey")
    grey = np.asarray(apply_modality_lut(pixels, dataset), dtype=np.float64)
    return -grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey
