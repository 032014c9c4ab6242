"""Encoders of sound: inputs [B, 2, T, K], standardised cepstral coefficients (0 behind the end) and observation masks."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from common.models.encoders.image import ConvImage
from common.models.registry import Encoder, Reading, Size, encoder
from common.task import Modality

PARTS = 8
STRETCHED = 24


def stretched(x: Tensor, parts: int) -> Tensor:
    """Returns recordings of whatever length as equally many parts: what is said slowly looks like what is said fast.

    Args:
        x: [B, 2, T, K].
        parts: P.

    Returns:
        [B, P, K], means of the frames around the middle of every part, by triangular weights; 0 without any frame.
    """
    value = x[:, 0] * x[:, 1]
    seen = x[:, 1].amax(2)
    frames = seen.sum(1, keepdim=True).clamp(min=1)
    place = (seen.cumsum(1) - 0.5) * (parts / frames)  # of every frame, counted in parts
    middle = torch.arange(parts, device=x.device, dtype=x.dtype)[None, :, None] + 0.5
    reach = (parts / frames).clamp(min=1)[:, :, None]  # a recording with fewer frames than parts leaves none empty
    weight = (1 - (place[:, None] - middle).abs() / reach).clamp(min=0) * seen[:, None]
    return weight @ value / weight.sum(2, keepdim=True).clamp(min=1e-6)


@encoder("audio", "linear")
class LinearAudio(Encoder):
    """Eight parts of the recording and how long it is: with a linear head, a logistic regression on them."""

    size: Size = "linear"

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__()
        self.features = PARTS * modality.coefficients + 1

    def forward(self, x: Tensor) -> Tensor:
        """[B, 2, T, K] -> [B, 8 K + 1]."""
        length = x[:, 1].amax(2).mean(1, keepdim=True)
        return torch.cat([stretched(x, PARTS).flatten(1), length], dim=1)


class ConvAudio(ConvImage):
    """The networks of images over time and coefficients, on recordings stretched to one length.

    They see the order of what is heard, not its pace; ``smil`` sees both.
    """

    edge = 3

    def read(self, x: Tensor) -> Reading:
        """[B, 2, T, K] -> [B, width] and nine tokens, the places of the map."""
        return super().read(stretched(x, STRETCHED)[:, None])


@encoder("audio", "compact")
class CompactAudio(ConvAudio):
    """The student's sound encoder."""

    size: Size = "small"
    channels = 4


@encoder("audio", "small")
class SmallAudio(ConvAudio):
    """A teacher with 8 to 16 channels."""

    size: Size = "small"
    channels = 8


@encoder("audio", "base")
class BaseAudio(ConvAudio):
    """A teacher with 24 to 48 channels."""

    channels = 24


@encoder("audio", "smil")
class SmilAudio(Encoder):
    """SNetPluse of SMIL's released code in shape (Ma et al., AAAI 2021), with GroupNorm for BatchNorm.

    On its 20 frames of 20 coefficients, with 32 features and a head of ten classes, it has the same 67,254 parameters. The
    share of features dropped is the configuration's (SMIL: .25 and .4).
    """

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__()
        self.features = width
        layers: list[nn.Module] = []
        for before, after in pairwise([1, 32, 48, 20]):
            layers += [nn.Conv2d(before, after, kernel_size=2), nn.GroupNorm(4, after), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers, nn.MaxPool2d(kernel_size=2, stride=4), nn.Flatten())
        pooled = [(size - 5) // 4 + 1 for size in (modality.frames, modality.coefficients)]
        self.out = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(20 * pooled[0] * pooled[1], 160), nn.ReLU(), nn.Dropout(dropout), nn.Linear(160, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, 2, T, K] -> [B, width]."""
        out: Tensor = self.out(self.convolutions(x[:, :1] * x[:, 1:]))
        return out
