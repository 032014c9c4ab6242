"""Encoders of time series: inputs [B, 2, T, F], standardised values (0 where missing) and observation masks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.models.encoders.table import WideDeep, deviations
from common.models.registry import Encoder, encoder
from common.task import Modality

SUMMARIES = 9


def summaries(x: Tensor) -> Tensor:
    """Returns mean, minimum, maximum and last value of every variable, as deviations, and the share observed.

    Args:
        x: [B, 2, T, F].

    Returns:
        [B, 9 F]; 0 (the population mean) where a variable was never observed.
    """
    value, seen = x[:, 0], x[:, 1]
    count = seen.sum(1)
    never = count == 0
    mean = (value * seen).sum(1) / count.clamp(min=1)
    low = value.masked_fill(seen == 0, torch.inf).amin(1).masked_fill(never, 0.0)
    high = value.masked_fill(seen == 0, -torch.inf).amax(1).masked_fill(never, 0.0)
    steps = torch.arange(1, x.shape[2] + 1, device=x.device, dtype=x.dtype)[None, :, None]
    latest = (seen * steps).argmax(1, keepdim=True)
    last = value.gather(1, latest).squeeze(1).masked_fill(never, 0.0)
    return torch.cat([deviations(torch.cat([mean, low, high, last], dim=1)), count / x.shape[2]], dim=1)


@encoder("series", "linear")
class LinearSeries(Encoder):
    """The summaries themselves: with a linear head, a logistic regression on them."""

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__()
        self.features = SUMMARIES * len(modality.features)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 2, T, F] -> [B, 9 F]."""
        return summaries(x)


@encoder("series", "compact")
class CompactSeries(WideDeep):
    """The student's series encoder, on the summaries."""

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__(SUMMARIES * len(modality.features), width, width, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 2, T, F] -> [B, width]."""
        return super().forward(summaries(x))


@encoder("series", "small")
class SmallSeries(Encoder):
    """Conv1d over time beside the summaries."""

    channels = 32

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__()
        variables = len(modality.features)
        self.features = width
        self.wide = nn.Linear(SUMMARIES * variables, width)
        self.convolutions = nn.Sequential(
            nn.Conv1d(2 * variables, self.channels, kernel_size=3, padding=1),
            nn.GELU(),
            nn.Conv1d(self.channels, self.channels, kernel_size=3, padding=2, dilation=2),
            nn.GELU(),
        )
        self.deep = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * self.channels, width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 2, T, F] -> [B, width]."""
        maps = self.convolutions(x.transpose(2, 3).flatten(1, 2))
        wide: Tensor = self.wide(summaries(x))
        deep: Tensor = self.deep(torch.cat([maps.mean(2), maps.amax(2)], dim=1))
        return wide + deep


@encoder("series", "base")
class BaseSeries(SmallSeries):
    """A wider :class:`SmallSeries`."""

    channels = 96
