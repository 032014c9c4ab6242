"""Encoders of time series: inputs [B, 2, T, F], standardised values (0 where missing) and observation masks.

``linear``, ``compact``, ``small`` and ``base`` rest on summaries over time; ``conv``, ``attention`` and ``gru`` read every step.
Where a site trains under DP-SGD, prefer ``conv`` or ``attention``: recurrent layers cost several times as much there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.models.attention import AttentionBlock, Positions, mean_token
from common.models.encoders.table import Summarised, WideDeep, deviations
from common.models.registry import Encoder, Reading, Size, all_seen, encoder
from common.task import Modality

SUMMARIES = 9
CHANNELS = 32


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
    latest = (seen * steps).amax(1, keepdim=True).long().sub(1).clamp(min=0)  # where argmax is slow
    last = value.gather(1, latest).squeeze(1).masked_fill(never, 0.0)
    return torch.cat([deviations(torch.cat([mean, low, high, last], dim=1)), count / x.shape[2]], dim=1)


@encoder("series", "linear")
class LinearSeries(Summarised):
    """The summaries themselves."""

    size: Size = "linear"
    summarise = staticmethod(summaries)

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__()
        self.features = SUMMARIES * len(modality.features)


@encoder("series", "compact")
class CompactSeries(WideDeep):
    """The student's series encoder, on the summaries."""

    size: Size = "small"
    summarise = staticmethod(summaries)

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__(SUMMARIES * len(modality.features), width, width, dropout)


def read_steps(steps: Tensor, feature: Tensor) -> Reading:
    """Returns a feature with the steps [B, T, C] it was made of as tokens."""
    return Reading(feature, steps, all_seen(steps))


@encoder("series", "small")
class SmallSeries(Encoder):
    """Conv1d over time beside the summaries."""

    size: Size = "small"
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
        self.token_width = self.channels

    def read(self, x: Tensor) -> Reading:
        """[B, 2, T, F] -> [B, width] and a token per step."""
        maps = self.convolutions(x.transpose(2, 3).flatten(1, 2))
        wide: Tensor = self.wide(summaries(x))
        deep: Tensor = self.deep(torch.cat([maps.mean(2), maps.amax(2)], dim=1))
        return read_steps(maps.transpose(1, 2), wide + deep)


@encoder("series", "base")
class BaseSeries(SmallSeries):
    """A wider :class:`SmallSeries`."""

    size: Size = "base"
    channels = 96


def steps_since(seen: Tensor) -> Tensor:
    """Returns the time since a variable was last observed, as a share of the series (as in GRU-D; Che et al. 2018).

    Args:
        seen: Observation masks [B, T, F].

    Returns:
        [B, T, F]; 0 where observed, counted from the start before the first observation.
    """
    length = seen.shape[1]
    step = torch.arange(1, length + 1, device=seen.device, dtype=seen.dtype)[None, :, None]
    latest = (step * seen).cummax(1).values
    return (step - latest) / length


def step_features(x: Tensor) -> Tensor:
    """Returns values, observation masks and time since the last observation of every step, [B, 2, T, F] -> [B, T, 3 F]."""
    value, seen = x[:, 0], x[:, 1]
    return torch.cat([value.tanh() * seen, seen, steps_since(seen)], dim=2)


@encoder("series", "conv")
class ConvSeries(Encoder):
    """Three Conv1d layers over the steps, of growing reach."""

    size: Size = "small"
    token_width = CHANNELS

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__()
        self.features = width
        layers: list[nn.Module] = []
        before = 3 * len(modality.features)
        for reach in (1, 2, 4):
            layers += [
                nn.Conv1d(before, CHANNELS, kernel_size=3, padding=reach, dilation=reach),
                nn.GroupNorm(4, CHANNELS),
                nn.GELU(),
            ]
            before = CHANNELS
        self.convolutions = nn.Sequential(*layers)
        self.out = nn.Sequential(nn.Dropout(dropout), nn.Linear(3 * CHANNELS, width))

    def read(self, x: Tensor) -> Reading:
        """[B, 2, T, F] -> [B, width] and a token per step."""
        maps = self.convolutions(step_features(x).transpose(1, 2))
        return read_steps(maps.transpose(1, 2), self.out(torch.cat([maps.mean(2), maps.amax(2), maps[:, :, -1]], dim=1)))


@encoder("series", "attention")
class AttentionSeries(Encoder):
    """A small Transformer encoder with one token per step."""

    size: Size = "small"
    token_width = CHANNELS

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__()
        self.features = width
        self.tokens = nn.Linear(3 * len(modality.features), CHANNELS)
        self.positions = Positions(modality.steps, CHANNELS)
        self.blocks = nn.ModuleList(AttentionBlock(CHANNELS, dropout) for _ in range(2))
        self.out = nn.Sequential(nn.LayerNorm(CHANNELS), nn.Dropout(dropout), nn.Linear(CHANNELS, width))

    def read(self, x: Tensor) -> Reading:
        """[B, 2, T, F] -> [B, width] and a token per step."""
        tokens = self.positions(self.tokens(step_features(x)))
        every = tokens.new_ones(tokens.shape[:2])
        for block in self.blocks:
            tokens = block(tokens, every)
        return read_steps(tokens, self.out(mean_token(tokens, every)))


@encoder("series", "gru")
class RecurrentSeries(Encoder):
    """A gated recurrent unit over the steps, Opacus' own: PyTorch's has no gradient per sample."""

    size: Size = "small"
    token_width = CHANNELS

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        from opacus.layers import DPGRU  # here: it takes seconds

        super().__init__()
        self.features = width
        self.recurrent = DPGRU(3 * len(modality.features), CHANNELS, batch_first=True)
        self.out = nn.Sequential(nn.Dropout(dropout), nn.Linear(CHANNELS, width))

    def read(self, x: Tensor) -> Reading:
        """[B, 2, T, F] -> [B, width] and a token per step."""
        states, _ = self.recurrent(step_features(x))
        return read_steps(states, self.out(states[:, -1]))
