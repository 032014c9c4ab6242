"""Unimodal teachers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.models.registry import build_encoder
from common.task import Modality


class Teacher(nn.Module):
    """T_{m,a}: an encoder and a linear head for one modality."""

    def __init__(
        self, modality: Modality, architecture: str, outputs: int, *, width: int, dropout: float, prior: Tensor | None = None
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
        """
        super().__init__()
        self.encoder = build_encoder(modality, architecture, width, dropout)
        self.head = nn.Linear(self.encoder.features, outputs)
        if prior is not None:
            start_at(self.head, prior)
        if not any(True for _ in self.encoder.parameters()):
            nn.init.zeros_(self.head.weight)  # a linear model is convex: from zero, every site starts alike

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits [B, C] of model-ready inputs of the modality."""
        logits: Tensor = self.head(self.encoder(x))
        return logits


def start_at(layer: nn.Linear, prior: Tensor) -> None:
    """Sets the bias of a layer of logits to the prior."""
    with torch.no_grad():
        layer.bias.copy_(prior)
