"""Encoders of two-dimensional images: inputs [B, 1, H, W], standardised grey values."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from common.models.registry import Encoder, encoder
from common.task import Modality


@encoder("image", "linear")
class LinearImage(Encoder):
    """An 8 x 8 thumbnail: with a linear head, a logistic regression on it."""

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__()
        self.features = 64
        self.thumbnail = nn.AdaptiveAvgPool2d(8)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, H, W] -> [B, 64]."""
        thumbnail: Tensor = self.thumbnail(x)
        return thumbnail.flatten(1)


class ConvImage(Encoder):
    """Three strided convolutions with GroupNorm, then a linear map of the 4 x 4 feature map."""

    channels: int

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__()
        self.features = width
        steps = [1, self.channels, 2 * self.channels, 2 * self.channels]
        layers: list[nn.Module] = []
        for before, after in pairwise(steps):
            layers += [nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1), nn.GroupNorm(4, after), nn.GELU()]
        self.convolutions = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(dropout))
        self.out = nn.Linear(16 * steps[-1], width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, H, W] -> [B, width]."""
        out: Tensor = self.out(self.convolutions(x))
        return out


@encoder("image", "compact")
class CompactImage(ConvImage):
    """The student's image encoder."""

    channels = 4


@encoder("image", "small")
class SmallImage(ConvImage):
    """A teacher with 8 to 16 channels."""

    channels = 8


@encoder("image", "base")
class BaseImage(ConvImage):
    """A teacher with 24 to 48 channels."""

    channels = 24
