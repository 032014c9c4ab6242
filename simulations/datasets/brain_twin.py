"""A generated twin of BraTS 2018: the organisers' layout, small volumes, a known signal. No real patients.

A head is an ellipsoid with smooth tissue. A tumour is a necrotic core in an enhancing rim, and oedema around some of it: another
ellipsoid with a place, size and tilt of its own, so that nobody guesses it from the rim. What a modality shows of it is known
(:data:`SHOWN`): FLAIR the whole tumour, T1ce the enhancing rim and nothing of the oedema, T1 a little of the core, T2 the whole
tumour, less clearly than FLAIR. So the whole tumour is FLAIR's to find, core and rim T1ce's, and who has a single modality misses
what it does not show. Contrasts differ between cases; bright spots that are no tumour are in all modalities alike.

Seed ``FINAL_SEED`` is for the final table alone; development and tests use others.
"""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from simulations.datasets.brats import MASK, MODALITIES
from simulations.datasets.files import new_twin

VERSION, FINAL_SEED = 2, 2027
EDGE = 48
CASES = {
    "CBICA": 6, "2013": 6, "TCIA01": 4, "TCIA02": 4, "TCIA03": 4, "TCIA05": 4, "TCIA06": 4, "TCIA10": 4, "TCIA13": 4,
}  # fmt: skip
"""Institution -> cases: 24 of the 40 train, in the reference set and at the clients, and 16 are tested."""
CORE, OEDEMA, RIM = 1, 2, 4
SHOWN = {"flair": (0.9, 1.3, 1.1), "t1": (-0.8, -0.2, 0.0), "t1ce": (-0.3, 0.0, 2.6), "t2": (1.0, 0.7, 0.6)}
"""Contrast of core, oedema and rim to healthy tissue, in standard deviations of its grey values."""
NOISE, SPOTS = 0.6, 3
OFF = 0.25  # how far the oedema's centre may lie from the core's along an axis; half an edge is 1
GRADES = ("HGG", "LGG")


def write_twin(root: Path, *, seed: int, edge: int = EDGE, cases: dict[str, int] | None = None) -> None:
    """Writes the twin.

    Args:
        root: New folder, to be used like that of BraTS 2018; it appears complete or not at all.
        seed: Of everything.
        edge: Edge of the cubes, in voxels of 1 mm.
        cases: Institution -> cases; ``CASES`` by default.
    """
    with new_twin(root, version=VERSION, seed=seed) as partial:
        for institution, number in (cases or CASES).items():
            for at in range(number):
                rng = np.random.default_rng([seed, *institution.encode(), at])
                case = f"Brats18_{institution}_{at + 1}_1"
                folder = partial / "MICCAI_BraTS_2018_Data_Training" / GRADES[at % 4 == 3] / case
                folder.mkdir(parents=True)
                scans, mask = generate_case(rng, edge)
                for name, values in {**scans, MASK: mask}.items():
                    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / f"{case}_{name}.nii.gz")  # type: ignore[no-untyped-call]


def generate_case(rng: np.random.Generator, edge: int = EDGE) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int16]]:
    """Returns the scans by modality and the mask of one made-up patient, all [edge, edge, edge]."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, edge)] * 3, indexing="ij"), -1)
    head = _ellipsoid(grid, np.zeros(3), np.array([0.86, 0.95, 0.82]), np.eye(3)) < 1
    centre = rng.uniform(-0.38, 0.38, 3)
    from_centre = _tilted(rng, grid, centre, 0.18, 0.34) + 0.2 * _smooth(rng, edge, 3)
    in_oedema = _tilted(rng, grid, centre + rng.uniform(-OFF, OFF, 3), 0.26, 0.46) + 0.2 * _smooth(rng, edge, 3)
    mask = np.zeros(head.shape, dtype=np.int16)
    mask[(in_oedema < 1) & head] = OEDEMA
    mask[(from_centre < 1) & head] = RIM
    mask[(from_centre < rng.uniform(0.5, 0.75)) & head] = CORE
    tissue = 0.5 * _smooth(rng, edge, 4)
    spots = np.zeros(head.shape)
    for _ in range(SPOTS):
        spots += 1.2 * (_ellipsoid(grid, rng.uniform(-0.6, 0.6, 3), rng.uniform(0.08, 0.16, 3), np.eye(3)) < 1)
    scans = {}
    for name in MODALITIES:
        strength = rng.uniform(0.7, 1.2)
        signal = sum(c * (mask == value) for c, value in zip(SHOWN[name], (CORE, OEDEMA, RIM), strict=True))
        values = tissue * rng.uniform(0.5, 1.0) + spots + strength * signal + NOISE * rng.normal(size=head.shape)
        values = gaussian_filter(values, 0.6) * 100 + rng.uniform(400, 900)
        scans[name] = np.where(head, np.maximum(values, 1), 0).astype(np.float32)
    return scans, mask


def _ellipsoid(
    grid: NDArray[np.float64], centre: NDArray[np.float64], axes: NDArray[np.float64], tilt: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns the distance from the centre in which the surface has 1."""
    return np.asarray(np.linalg.norm((grid - centre) @ tilt / axes, axis=-1))


def _tilted(
    rng: np.random.Generator, grid: NDArray[np.float64], centre: NDArray[np.float64], least: float, most: float
) -> NDArray[np.float64]:
    """Returns the distance in an ellipsoid of some size and tilt."""
    return _ellipsoid(grid, centre, rng.uniform(least, most, 3), np.linalg.qr(rng.normal(size=(3, 3)))[0])


def _smooth(rng: np.random.Generator, edge: int, reach: float) -> NDArray[np.float64]:
    """Returns a smooth random field with mean 0 and deviation 1."""
    field = gaussian_filter(rng.normal(size=(edge,) * 3), reach)
    return np.asarray((field - field.mean()) / field.std())
