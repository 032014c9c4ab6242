"""Three-dimensional scans and their masks: NIfTI by nibabel, resampled by MONAI.

Arrays are brought into the same orientation (right, anterior, superior) and centred in the task's grid. Voxels outside the scan
are NaN, in a mask ``OUTSIDE``. Whether scans and mask of a row lie in the same place, :func:`place_of` tells.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.ingest.frames import IngestError
from common.task import Modality

OUTSIDE = -1
MILLIMETRE = 0.05  # by which a voxel of 1 mm may be off
FLAT = 1e-6  # standard deviation, as a share of the mean, that rounding alone gives
FAR, LOST = 10.0, 1e-3  # standard deviations: voxels beyond the one set aside, the others must differ by more than the other
AGAIN = "export it again as NIfTI (.nii or .nii.gz)"


def read_volume(path: Path, modality: Modality) -> NDArray[np.float32]:
    """Returns a scan, grey values standardised within it over the voxels that are not 0, the background.

    Args:
        path: The file.
        modality: Its grid and spacing.

    Returns:
        float32 [1, D, H, W], NaN outside the scan.

    Raises:
        IngestError: If the file is no readable scan, holds no numbers, a single grey value or voxels that dwarf all others, or
            does not fit into the grid.
    """
    values = _resampled(*_loaded(path, "scan"), modality, "bilinear")
    if not (np.abs(values) <= np.finfo(np.float32).max).all():
        raise IngestError(f"the scan holds voxels that are no numbers; {AGAIN}")
    inside = values != 0
    held = values[inside]  # float64: the squares of all finite float32 are finite
    mean, deviation = (held.mean(), held.std()) if held.size else (0.0, 0.0)
    if not deviation > FLAT * abs(mean):
        raise IngestError(f"the scan is empty: all its voxels are equal; {AGAIN}, or leave the cell empty")
    held = (held - mean) / deviation
    if not held[np.abs(held) <= FAR].std() > LOST:
        raise IngestError(f"a few voxels of the scan dwarf all others, which look equal beside them; {AGAIN}")
    scaled = np.zeros(values.shape, np.float32)
    scaled[inside] = held
    return _centred(scaled, modality.voxels, np.nan)[None]


def read_mask(path: Path, modality: Modality, known: set[int]) -> NDArray[np.int64]:
    """Returns a mask.

    Args:
        path: The file.
        modality: Grid and spacing of the scans that it belongs to.
        known: The values that it may hold, beside 0.

    Returns:
        int64 [D, H, W], ``OUTSIDE`` outside the scan.

    Raises:
        IngestError: If the file is no readable mask, or holds another value.
    """
    values = _resampled(*_loaded(path, "mask"), modality, "nearest")
    if not np.array_equal(values, np.round(values)):
        raise IngestError("the mask holds numbers that are not whole; export labels, not probabilities")
    labels = values.astype(np.int64)  # a narrower type would turn a great label into another one
    foreign = sorted(set(np.unique(labels).tolist()) - known - {0})
    if foreign:
        raise IngestError(
            f"the mask holds {', '.join(map(str, foreign[:5]))}, the task's regions know {', '.join(map(str, sorted(known)))}; "
            "correct the mask, or 'regions' in the task (BraTS writes 4 for enhancing tumour, other sets 3)"
        )
    return _centred(labels, modality.voxels, OUTSIDE)


def _loaded(path: Path, what: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the voxels [D, H, W] and the affine, in the closest canonical orientation."""
    import nibabel  # here: a site whose task has no volumes need not load it

    try:
        image: Any = nibabel.as_closest_canonical(nibabel.load(path))  # type: ignore[no-untyped-call]
        values, affine = image.get_fdata(), np.asarray(image.affine)
    except Exception as error:  # nibabel raises many kinds, whose texts may quote headers
        without = "the cell empty" if what == "scan" else "the row out"
        raise IngestError(f"the {what} cannot be read ({type(error).__name__}); {AGAIN}, or leave {without}") from None
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        raise IngestError(f"the {what} has {values.ndim} dimensions, three are expected; export one scan per file")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise IngestError(f"the {what} does not say how its voxels lie in space (its affine is broken); {AGAIN}")
    return values, affine


def place_of(path: Path) -> NDArray[np.float64]:
    """Returns where a scan or mask lies: its size and its affine, [5, 4], in the closest canonical orientation.

    Raises:
        IngestError: If the file is no readable scan.
    """
    values, affine = _loaded(path, "scan")
    return np.vstack([[*values.shape, 0], affine])


def _resampled(values: NDArray[np.float64], affine: NDArray[np.float64], modality: Modality, mode: str) -> NDArray[np.float64]:
    if modality.spacing_mm is None:
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        if not np.allclose(spacing, 1, atol=MILLIMETRE):
            told = " x ".join(f"{edge:.2g}" for edge in spacing)
            raise IngestError(f"its voxels are {told} mm, not 1 mm; set 'spacing_mm' in the task, to which scans are resampled")
        return values
    import torch  # here: these take seconds
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms.spatial.array import Spacing

    resample = Spacing(pixdim=modality.spacing_mm, mode=mode, padding_mode="border")
    return np.asarray(resample(MetaTensor(torch.from_numpy(values[None]), affine=torch.from_numpy(affine)))[0])


def _centred(values: NDArray[Any], grid: tuple[int, int, int], outside: float) -> NDArray[Any]:
    """Returns an array centred in the grid."""
    if any(have > room for have, room in zip(values.shape, grid, strict=True)):
        size, room = ("x".join(map(str, shape)) for shape in (values.shape, grid))
        raise IngestError(f"the volume of {size} voxels does not fit into the task's grid of {room}; set 'voxels' in the task")
    margin = [((room - have) // 2, room - have - (room - have) // 2) for have, room in zip(values.shape, grid, strict=True)]
    return np.pad(values, margin, constant_values=outside)
