"""How well the regions of a scan are found: Dice, the 95th percentile of the Hausdorff distance, and the normalised surface Dice.

MONAI computes them. A region that is empty in the reference is counted, never dropped: found empty too it is right (Dice and
surface Dice 1, distance 0), else wrong (0, 0, and the diagonal of the grid as distance, as BraTS counts it).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from common.evaluation.metrics import REGION_METRICS
from common.task import Modality, Task

TOLERANCE_MM = 1.0
"""Of the surface Dice; the Medical Segmentation Decathlon's for the hippocampus."""


def region_scores(found: Tensor, regions: Tensor, modality: Modality) -> NDArray[np.float64]:
    """Returns how well the regions of one scan are found.

    Args:
        found: bool [C, D, H, W].
        regions: The reference, bool [C, D, H, W].
        modality: Its spacing, by default 1 mm, gives distances in mm.

    Returns:
        ``REGION_METRICS`` of every region, float64 [C, 3].
    """
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance  # here: it takes seconds
    from monai.metrics.meandice import compute_dice
    from monai.metrics.surface_dice import compute_surface_dice

    spacing = modality.spacing_mm or (1.0, 1.0, 1.0)
    diagonal = math.dist((0, 0, 0), [edge * mm for edge, mm in zip(modality.voxels, spacing, strict=True)])
    scores = np.zeros((len(found), len(REGION_METRICS)))
    for c in range(len(found)):
        if not found[c].any() or not regions[c].any():
            right = bool(found[c].any()) == bool(regions[c].any())
            scores[c] = (1, 0, 1) if right else (0, diagonal, 0)
            continue
        one, other = found[c][None, None].float(), regions[c][None, None].float()
        scores[c] = (
            float(compute_dice(one, other)),
            float(compute_hausdorff_distance(one, other, include_background=True, percentile=95, spacing=spacing)),
            float(compute_surface_dice(one, other, [TOLERANCE_MM], include_background=True, spacing=spacing)),
        )
    return scores


def prediction_columns(task: Task) -> tuple[str, ...]:
    """Returns the names under ``output`` of a table of predictions: the outputs, of a segmentation ``region:metric``."""
    if task.type != "segmentation":
        return task.outputs
    return tuple(f"{region}:{metric}" for region in task.outputs for metric in REGION_METRICS)
