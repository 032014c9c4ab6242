"""A small Transformer encoder from linear layers.

PyTorch's own attention is not used: its fused kernels have no second derivative, which the hypergradients of the modality weights
need, and Opacus knows no gradient per sample of its packed projection.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LOWEST = -1e9  # finite: a softmax over masked tokens alone stays defined
HEADS = 2


class AttentionBlock(nn.Module):
    """Self-attention and a multi-layer perceptron, each behind a LayerNorm (pre-norm; Xiong et al. 2020)."""

    def __init__(self, width: int, dropout: float) -> None:
        """Args: features per token, a multiple of two; share of features dropped."""
        super().__init__()
        self.before = nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.mix = nn.Linear(width, width)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )

    def forward(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """Returns tokens [B, ..., L, d]; those where ``seen`` [B, ..., L] is 0 are not attended to."""
        normal = self.before(tokens)
        query, key, value = (
            layer(normal).unflatten(-1, (HEADS, -1)).transpose(-2, -3) for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        attention = scores.masked_fill(seen[..., None, None, :] == 0, LOWEST).softmax(-1)
        tokens = tokens + self.mix((attention @ value).transpose(-2, -3).flatten(-2))
        refined: Tensor = tokens + self.perceptron(tokens)
        return refined


class Positions(nn.Module):
    """Learned positions."""

    def __init__(self, length: int, width: int) -> None:
        """Args: most tokens; features per token."""
        super().__init__()
        self.table = nn.Embedding(length, width)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns tokens [B, L, d] with their positions."""
        places = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[:2])  # per patient, for DP-SGD
        placed: Tensor = tokens + self.table(places)
        return placed


def mean_token(tokens: Tensor, weights: Tensor) -> Tensor:
    """Returns the weighted mean of tokens, [B, L, d] and [B, L] -> [B, d]; 0 where no token weighs anything."""
    return (tokens * weights[:, :, None]).sum(1) / weights.sum(1, keepdim=True).clamp(min=1e-6)
