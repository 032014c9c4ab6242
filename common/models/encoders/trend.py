"""Encoders of time series on summaries that also know the trend and how often somebody looked.

That a value is measured often, or at all, says what the staff thought of the patient. Of laboratory values, charted a few times
in two days, the share of steps that hold one hardly differs between patients; the logarithm of their number does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.models.encoders.series import SUMMARIES, summaries
from common.models.encoders.table import Summarised, WideDeep, deviations
from common.models.registry import Size, encoder
from common.task import Modality

TRENDS = SUMMARIES - 1 + 4


def trends(x: Tensor) -> Tensor:
    """Returns the summaries' deviations, those of the change from first to second half, log counts and whether ever observed.

    Args:
        x: [B, 2, T, F].

    Returns:
        [B, 12 F]; log counts and flags are about centred. The change is 0 where a half lacks a value.
    """
    value, seen = x[:, 0], x[:, 1]
    values, masks = value.tensor_split(2, dim=1), seen.tensor_split(2, dim=1)
    halves = [(v * s).sum(1) / s.sum(1).clamp(min=1) for v, s in zip(values, masks, strict=True)]
    both = (masks[0].sum(1) > 0) & (masks[1].sum(1) > 0)
    change = torch.where(both, halves[1] - halves[0], 0.0)
    count = seen.sum(1)
    levels = summaries(x)[:, : (SUMMARIES - 1) * x.shape[3]]
    return torch.cat([levels, deviations(change), count.log1p() - 1, (count > 0).float() - 0.5], dim=1)


@encoder("series", "trend")
class TrendSeries(Summarised):
    """The summaries with trend themselves."""

    size: Size = "linear"
    summarise = staticmethod(trends)

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__()
        self.features = TRENDS * len(modality.features)


@encoder("series", "compact-trend")
class CompactTrendSeries(WideDeep):
    """A student's series encoder, on the summaries with trend."""

    size: Size = "small"
    summarise = staticmethod(trends)

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__(TRENDS * len(modality.features), width, width, dropout)
