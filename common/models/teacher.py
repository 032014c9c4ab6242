"""Unimodal teachers."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from common.models.registry import MapEncoder, build_encoder
from common.task import Modality


class Teacher(nn.Module):
    """T_{m,a}: an encoder and a linear head for one modality."""

    def __init__(
        self,
        modality: Modality,
        architecture: str,
        outputs: int,
        *,
        width: int,
        dropout: float,
        prior: Tensor | None = None,
        patch: tuple[int, int, int] | None = None,
    ) -> None:
        """Builds the network; initialised from torch's global generator.

        Args:
            modality: What it reads.
            architecture: Name of its encoder.
            outputs: Number of logits, C.
            width: Features of the encoder, unless the architecture fixes them.
            dropout: Share of features dropped while training.
            prior: Logits [C] that it starts from; 0 by default. With rare outcomes a start at one half spends the first rounds on
                whatever feature is never centred.
            patch: Part of a volume that a step of training sees; None is all of it.
        """
        super().__init__()
        self.patch = patch
        self.encoder = build_encoder(modality, architecture, width, dropout)
        self.head = self._head(outputs, dropout)
        if prior is not None:
            start_at(self.head, prior)
        if isinstance(self.head, nn.Linear) and not any(True for _ in self.encoder.parameters()):
            nn.init.zeros_(self.head.weight)  # a linear model is convex: from zero, every site starts alike

    def _head(self, outputs: int, dropout: float) -> nn.Module:
        if not isinstance(self.encoder, MapEncoder):
            return nn.Linear(self.encoder.features, outputs)
        from common.models.decoders import Decoder  # here: MONAI takes seconds

        return Decoder(self.encoder.channels, outputs, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits [B, C], of a volume [B, C, D, H, W], of model-ready inputs of the modality."""
        logits: Tensor = self.head(self.encoder.maps(x) if isinstance(self.encoder, MapEncoder) else self.encoder(x))
        return logits


def start_at(head: nn.Module, prior: Tensor) -> None:
    """Sets the bias of a linear layer of logits, or of a decoder's last layer, to the prior."""
    with torch.no_grad():
        layer = head if isinstance(head, nn.Linear) else head.get_submodule("out")
        cast("Tensor", layer.bias).copy_(prior)
