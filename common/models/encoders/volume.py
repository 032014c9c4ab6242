"""Encoders of volumes: inputs [B, 1, D, H, W], standardised grey values, edges multiples of four.

A volume's encoder gives a map per level of resolution instead of one vector; ``common.models.decoders.Decoder`` makes logits
of them. MONAI's residual units with InstanceNorm, which DP-SGD can train.
"""

from __future__ import annotations

from torch import Tensor, nn

from common.models.registry import MapEncoder, Size, encoder
from common.task import Modality

LEAKY = ("leakyrelu", {"inplace": False})


class VolumeEncoder(MapEncoder):
    """Maps at a half, a quarter and a quarter of the resolution, with 1, 2 and 4 times ``width`` channels.

    The first level halves: a compact network cannot afford convolutions at full resolution.
    """

    times = 1

    def __init__(self, modality: Modality, width: int, dropout: float, *, inputs: int = 1) -> None:
        """Args as in :func:`common.models.registry.build_encoder`; ``inputs`` channels at once."""
        from monai.networks.blocks.convolutions import ResidualUnit  # here: it takes seconds

        super().__init__()
        first = self.times * width
        self.channels = (first, 2 * first, 4 * first)
        self.features = self.channels[-1]
        self.levels = nn.ModuleList()
        before = inputs
        for channels, stride in zip(self.channels, (2, 2, 1), strict=True):
            self.levels.append(
                ResidualUnit(3, before, channels, strides=stride, act=LEAKY, norm="instance", dropout=dropout or None)
            )
            before = channels

    def maps(self, x: Tensor) -> list[Tensor]:
        """As in :class:`common.models.registry.MapEncoder`."""
        found = []
        for level in self.levels:
            x = level(x)
            found.append(x)
        return found


@encoder("volume", "compact")
class CompactVolume(VolumeEncoder):
    """The student's volume encoder; one for all modalities."""

    size: Size = "small"


@encoder("volume", "small")
class SmallVolume(VolumeEncoder):
    """A teacher as large as the student."""

    size: Size = "small"


@encoder("volume", "base")
class BaseVolume(VolumeEncoder):
    """A teacher with twice the channels."""

    times = 2
