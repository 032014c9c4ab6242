"""Encoders of images for a few dozen patients: inputs [B, 1, H, W], standardised grey values.

From so few, networks learn little of fine detail; what a blurred image shows, linear models learn well.
"""

from __future__ import annotations

from torch import Tensor, nn

from common.models.encoders.image import ConvImage, LinearImage
from common.models.registry import Reading, Size, encoder
from common.task import Modality

PIXELS = 16


@encoder("image", "thumbnail")
class Thumbnail(LinearImage):
    """A 16 x 16 thumbnail: with a linear head, a logistic regression on it."""

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__(modality, width, dropout)
        self.features = PIXELS**2
        self.thumbnail = nn.AdaptiveAvgPool2d(PIXELS)


@encoder("image", "compact-thumbnail")
class CompactThumbnail(ConvImage):
    """A linear map of the thumbnail plus a small convolutional network: can equal a linear teacher, and can bend."""

    size: Size = "small"
    channels = 4

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__(modality, width, dropout)
        self.thumbnail = Thumbnail(modality, width, dropout)
        self.wide = nn.Linear(self.thumbnail.features, width)
        nn.init.zeros_(self.wide.weight)  # a pixel that training never moves must not speak at the test

    def read(self, x: Tensor) -> Reading:
        """[B, 1, H, W] -> [B, width] and 16 tokens, the places of the map."""
        deep = super().read(x)
        wide: Tensor = self.wide(self.thumbnail(x))
        return Reading(wide + deep.feature, deep.tokens, deep.seen)
