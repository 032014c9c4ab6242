"""Genotypes of ADNI: the merged, pruned PLINK files of Flex-MoE's notebook, told as a few principal components.

``genomic/liftovered/ADNI_final.{bed,bim,fam}`` is what the notebook's ``plink --extract`` writes, and what its
``genomic_merged.h5ad`` repeats. Flex-MoE feeds every variant into one linear layer. A table of some hundred thousand columns is
too large for a federation's small teachers, so that here, which is **ours**, the modality is the first ``COMPONENTS`` principal
components, fitted on training subjects alone; others are projected onto them. A training subject is
projected onto components of other training subjects: on those that it helped to fit it lies too far out, the farther the more
variants there are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from common.errors import ConsiliumError
from simulations.datasets.adni.tables import HOW_TO_GET
from simulations.datasets.files import UNREADABLE

FILE = "genomic/liftovered/ADNI_final"
COMPONENTS = 32
FEATURES = tuple(f"pc{k}" for k in range(1, COMPONENTS + 1))
MAGIC = bytes([0x6C, 0x1B, 0x01])  # a bed file, one variant after the other
ALLELES = np.array([2, np.nan, 1, 0], dtype=np.float32)  # two bits: two of the first allele, not known, one, none
CHUNK = 4096  # variants that are decoded at once
FOLDS = 10  # of training subjects; those of one are projected onto the components of the others
Float = NDArray[np.float64]


def read_components(root: Path, training: set[str], subjects: set[str], counts: dict[str, int]) -> pd.DataFrame:
    """Reads genotypes and tells them as principal components.

    Args:
        root: Folder of the layout.
        training: Subjects on whom the components are fitted.
        subjects: Subjects who are wanted.
        counts: Where to add who and what was left out.

    Returns:
        Indexed by patient, columns ``FEATURES``; subjects without genotypes are absent, components beyond what they span NaN.

    Raises:
        ConsiliumError: If a file is missing, cut short or no PLINK file, or fewer than two training subjects are in it.
    """
    names = _columns(root, "fam", 1)
    variants = len(_columns(root, "bim", 1))
    file, width = root / f"{FILE}.bed", -(-len(names) // 4)
    if not file.is_file():
        raise ConsiliumError(f"The data are not complete: {file} is missing. {HOW_TO_GET}")
    with file.open("rb") as stream:
        magic = stream.read(len(MAGIC))
    if magic != MAGIC or file.stat().st_size != len(MAGIC) + variants * width:
        raise ConsiliumError(
            f"{file} does not hold {variants:,} variants of {len(names):,} subjects, as its .bim and .fam say: it is cut "
            f"short, or the three are of different runs. Make them again with plink --make-bed. {HOW_TO_GET}"
        )
    wanted = names.isin(subjects) & ~names.duplicated()
    counts["subjects of ADNI_final.fam without one diagnosis, or there twice"] = int((~wanted).sum())
    mine, rows = names[wanted], np.flatnonzero(wanted)
    train = mine.isin(training).to_numpy()
    if train.sum() < 2:
        raise ConsiliumError(f"{root / FILE}.fam names fewer than two training subjects. Its second column is PTID. {HOW_TO_GET}")
    packed = np.memmap(file, dtype=np.uint8, mode="r", offset=len(MAGIC), shape=(variants, width))
    alike, told = _likeness(packed, rows, train)
    counts["variants that do not vary among training subjects"] = variants - told
    return pd.DataFrame(_components(alike, train), index=pd.Index(mine, name="patient"), columns=list(FEATURES))


def _columns(root: Path, ending: str, at: int) -> pd.Series[str]:
    """Returns a column of ``.fam`` or ``.bim``: names of subjects or variants."""
    file = root / f"{FILE}.{ending}"
    if not file.is_file():
        raise ConsiliumError(f"The data are not complete: {file} is missing. {HOW_TO_GET}")
    try:
        return pd.read_csv(file, sep=r"\s+", header=None, usecols=[at], dtype=str)[at]
    except UNREADABLE as error:
        raise ConsiliumError(f"{file} cannot be read ({type(error).__name__}): it has six columns. {HOW_TO_GET}") from None


def _likeness(packed: NDArray[np.uint8], rows: NDArray[np.int64], train: NDArray[np.bool_]) -> tuple[Float, int]:
    """Returns how alike subjects are, [N, N], over variants standardised by training subjects, and how many variants tell."""
    alike, told = np.zeros((len(rows), len(rows))), 0
    for start in range(0, len(packed), CHUNK):
        bits = packed[start : start + CHUNK, :, None] >> np.array([0, 2, 4, 6], dtype=np.uint8) & 3
        copies = ALLELES[bits.reshape(len(bits), -1)[:, rows]]
        known = ~np.isnan(copies[:, train])
        number = known.sum(1).clip(min=1)
        mean = np.nansum(copies[:, train], axis=1) / number
        centred = np.nan_to_num(copies - mean[:, None])
        deviation = np.sqrt((centred[:, train] ** 2).sum(1) / number)
        varies = deviation > 1e-6
        scaled = centred[varies] / deviation[varies, None]
        alike += scaled.T @ scaled
        told += int(varies.sum())
    return alike / max(told, 1), told


def _components(alike: Float, train: NDArray[np.bool_]) -> Float:
    """Returns the scores of all subjects, [N, COMPONENTS], on the main axes of training subjects.

    A training subject is scored on the axes of the other folds' subjects. They may have another order and other signs than those
    of all; each takes the place of the one that it is most like. (Turning them onto those of all would fit the subject again.)
    """
    fitted = np.flatnonzero(train)
    axes = _axes(alike[np.ix_(fitted, fitted)])
    scores = np.full((len(alike), COMPONENTS), np.nan)
    scores[:, : axes.shape[1]] = alike[:, fitted] @ axes
    for fold in range(min(FOLDS, len(fitted))):
        held = np.arange(len(fitted)) % FOLDS == fold
        mine, rest = fitted[held], fitted[~held]
        theirs = _axes(alike[np.ix_(rest, rest)])
        common = theirs.T @ alike[np.ix_(rest, fitted)] @ axes  # cosines of two axes
        one, other = linear_sum_assignment(np.abs(common), maximize=True)
        scores[mine, : axes.shape[1]] = 0
        scores[np.ix_(mine, other)] = alike[np.ix_(mine, rest)] @ theirs[:, one] * np.sign(common[one, other])
    return scores


def _axes(alike: Float) -> Float:
    """Returns the main axes of subjects, [N, C]: scores are likenesses to these subjects times this; signs are fixed."""
    values, axes = np.linalg.eigh(alike)
    values, axes = values[::-1][:COMPONENTS], axes[:, ::-1][:, :COMPONENTS]
    real = values > 1e-9 * values[0]
    signs = np.sign(axes[np.abs(axes).argmax(0), np.arange(len(values))])
    return np.asarray(axes[:, real] * signs[real] / np.sqrt(values[real]))
