"""Fusions: from the unimodal features and logits of the modalities present to the fused logits.

Every fusion is called as ``fusion(features, logits, present, weights, prior)`` with features [B, M, d], logits [B, M, C], present
bool [B, M], weights [C or 1, M] (rows sum to one) and prior [C], and returns fused logits [B, C]. Entries of absent modalities
are zero and must not matter. Logits and prior of exclusive classes come centred (:func:`centred`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.models.registry import Fusion, fusion
from common.task import TaskType


def renormalised(weights: Tensor, present: Tensor) -> Tensor:
    """Returns weights [B, M] of a sample's present modalities that sum to one.

    Args:
        weights: [M], positive.
        present: bool [B, M].
    """
    held = weights * present
    return held / held.sum(1, keepdim=True).clamp(min=1e-12)


@fusion("joint")
class Joint(Fusion):
    """Concatenation and a multi-layer perceptron (MIND's joint fusion).

    The slot of a missing modality holds the weighted mean of the present features (MetaKD: the plain mean).
    """

    def __init__(self, modalities: int, width: int, outputs: int, dropout: float) -> None:
        """Args: numbers of modalities, features per modality and outputs; share of features dropped."""
        super().__init__()
        self.head = nn.Sequential(
            nn.Linear(modalities * width, 2 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * width, outputs)
        )

    def forward(self, features: Tensor, logits: Tensor, present: Tensor, weights: Tensor, prior: Tensor) -> Tensor:
        """Returns fused logits; shapes in the module's docstring."""
        mean = (renormalised(weights.mean(0), present)[:, :, None] * features).sum(1, keepdim=True)
        filled = torch.where(present[:, :, None], features, mean)
        fused: Tensor = self.head(filled.flatten(1))
        return fused


@fusion("weighted")
class Weighted(Fusion):
    """A head on the weighted sum of the present features."""

    def __init__(self, modalities: int, width: int, outputs: int, dropout: float) -> None:
        """Args as for :class:`Joint`."""
        super().__init__()
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, outputs))

    def forward(self, features: Tensor, logits: Tensor, present: Tensor, weights: Tensor, prior: Tensor) -> Tensor:
        """Returns fused logits; shapes in the module's docstring."""
        fused: Tensor = self.head((renormalised(weights.mean(0), present)[:, :, None] * features).sum(1))
        return fused


@fusion("late")
class Late(Fusion):
    """b + s sum_m w_m (h_m - prior) over the present modalities: evidence adds up; only s and b are added."""

    def __init__(self, modalities: int, width: int, outputs: int, dropout: float) -> None:
        """Args as for :class:`Joint`; the scale starts at M, where equal weights add the logits up."""
        super().__init__()
        self.scale = nn.Parameter(torch.full((outputs,), float(modalities)))
        self.bias = nn.Parameter(torch.zeros(outputs))

    @torch.no_grad()
    def start_at(self, scale: Tensor, bias: Tensor) -> None:
        """Starts from the consilium's s and b."""
        self.scale.copy_(scale)
        self.bias.copy_(bias)

    def forward(self, features: Tensor, logits: Tensor, present: Tensor, weights: Tensor, prior: Tensor) -> Tensor:
        """Returns fused logits; shapes in the module's docstring."""
        return prior + self.bias + self.scale * weighted_evidence(logits, present, weights, prior)


def weighted_evidence(logits: Tensor, present: Tensor, weights: Tensor, prior: Tensor) -> Tensor:
    """Returns sum_m w_m (z_m - prior) over the present modalities, [B, C].

    The weights are not renormalised: with a scale fitted for all modalities a lone one would be scaled up.

    Args:
        logits: [B, M, C].
        present: bool [B, M].
        weights: [C or 1, M].
        prior: [C].
    """
    evidence = torch.where(present[:, :, None], logits - prior, 0.0)
    return torch.einsum("bmc,cm->bc", evidence, weights.expand(logits.shape[2], -1))


def probabilities(kind: TaskType, logits: Tensor) -> Tensor:
    """Returns the probabilities of logits [..., C]: of exclusive classes, or of every output by itself (no regression)."""
    return logits.softmax(-1) if kind == "multiclass" else logits.sigmoid()


def centred(kind: TaskType, logits: Tensor) -> Tensor:
    """Returns logits [..., C] whose mean over exclusive classes is zero; those of other tasks as they are.

    Softmax logits are defined up to a constant only: with a weight, scale or bias per class that constant would matter.
    """
    return logits - logits.mean(-1, keepdim=True) if kind == "multiclass" else logits
