"""Decoders of volumes: from the maps of an encoder's levels to logits at full resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks.convolutions import Convolution, ResidualUnit
from torch import Tensor, nn
from torch.nn import functional

from common.models.encoders.volume import LEAKY

LIGHT = 4


class Decoder(nn.Module):
    """From the maps of every level to logits [B, C, D, H, W]."""

    def __init__(self, channels: Sequence[int], outputs: int, dropout: float) -> None:
        """Args: channels of the encoder's levels, fine to coarse; number of logits; share of features dropped."""
        super().__init__()
        fine, middle, coarse = channels
        kept = dropout or None
        self.middle = ResidualUnit(3, coarse + middle, middle, act=LEAKY, norm="instance", dropout=kept)
        self.up = Convolution(3, middle, fine, strides=2, is_transposed=True, act=LEAKY, norm="instance", dropout=kept)
        self.fine = ResidualUnit(3, 2 * fine, fine, act=LEAKY, norm="instance", dropout=kept)
        self.out = nn.ConvTranspose3d(fine, outputs, kernel_size=2, stride=2)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Returns logits at full resolution."""
        fine, middle, coarse = maps
        middle = self.middle(torch.cat([coarse, middle], 1))
        logits: Tensor = self.out(self.fine(torch.cat([self.up(middle), fine], 1)))
        return logits


class LightDecoder(nn.Module):
    """A unimodal head: every level squeezed to a few channels, brought to the finest map's size, and added up."""

    def __init__(self, channels: Sequence[int], outputs: int) -> None:
        """Args as for :class:`Decoder`."""
        super().__init__()
        self.squeeze = nn.ModuleList(nn.Conv3d(c, LIGHT, kernel_size=1) for c in channels)
        self.mix = nn.Conv3d(LIGHT, LIGHT, kernel_size=3, padding=1)
        self.out = nn.ConvTranspose3d(LIGHT, outputs, kernel_size=2, stride=2)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Returns logits at full resolution."""
        size = maps[0].shape[2:]
        squeezed = [layer(m) for layer, m in zip(self.squeeze, maps, strict=True)]
        added = torch.stack([functional.interpolate(s, size=size, mode="nearest") for s in squeezed]).sum(0)
        logits: Tensor = self.out(functional.leaky_relu(self.mix(functional.leaky_relu(added))))
        return logits
