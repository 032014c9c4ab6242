"""Encoders of text: inputs [B, 2, L], hashed word ids (0 pads) and their inverse document frequencies."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.models.attention import AttentionBlock, Positions, mean_token
from common.models.registry import Encoder, Reading, Size, encoder
from common.task import Modality


def bag_of_words(x: Tensor, buckets: int) -> Tensor:
    """Returns tf-idf vectors of length one.

    Args:
        x: [B, 2, L].
        buckets: Number of hash buckets, V.

    Returns:
        [B, V].
    """
    ids, weights = x[:, 0].long(), x[:, 1]
    bag = torch.zeros(x.shape[0], buckets, device=x.device, dtype=x.dtype).scatter_add(1, ids, weights)
    return functional.normalize(bag, dim=1)


@encoder("text", "linear")
class LinearText(Encoder):
    """The tf-idf vector itself: with a linear head, the logistic regression of text classification."""

    size: Size = "linear"

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__()
        self.features = modality.buckets

    def forward(self, x: Tensor) -> Tensor:
        """[B, 2, L] -> [B, V]."""
        return bag_of_words(x, self.features)


@encoder("text", "compact", "small")
class BagEncoder(Encoder):
    """A linear map of the tf-idf vector."""

    size: Size = "small"

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__()
        self.features, self.buckets = width, modality.buckets
        self.dropout = nn.Dropout(dropout)
        self.words = nn.Linear(modality.buckets, width)
        nn.init.zeros_(self.words.weight)  # a word that training never met must not speak at the test

    def forward(self, x: Tensor) -> Tensor:
        """[B, 2, L] -> [B, width]."""
        words: Tensor = self.words(self.dropout(bag_of_words(x, self.buckets)))
        return words


@encoder("text", "base")
class ConvText(Encoder):
    """Word embeddings and a Conv1d over neighbouring words (negations, phrases), beside the bag of words.

    A word that nobody may name (idf 0) is as one that is not there: nobody has trained its embedding.
    """

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__()
        self.features, self.token_width, self.buckets = width, 2 * width, modality.buckets
        self.words = nn.Embedding(modality.buckets, 2 * width)
        self.phrases = nn.Conv1d(2 * width, 2 * width, kernel_size=3, padding=1)
        self.out = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * width, width))
        self.wide = nn.Linear(modality.buckets, width)
        nn.init.zeros_(self.wide.weight)

    def read(self, x: Tensor) -> Reading:
        """[B, 2, L] -> [B, width] and a token per word."""
        named = (x[:, 0] > 0) & (x[:, 1] > 0)
        seen = named[:, None].to(x.dtype)
        maps = functional.gelu(self.phrases(self.words(x[:, 0].long()).transpose(1, 2) * seen)) * seen
        wide: Tensor = self.wide(bag_of_words(x, self.buckets))
        deep: Tensor = self.out(maps.amax(2))
        return Reading(wide + deep, maps.transpose(1, 2), named)


@encoder("text", "attention")
class AttentionText(Encoder):
    """A small Transformer encoder over the words, beside the bag of words.

    A word enters scaled by its inverse document frequency and counts by it in the mean; one that nobody may name is not attended
    to.
    """

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__()
        self.features, self.buckets = width, modality.buckets
        self.token_width = inner = 2 * width
        self.words = nn.Embedding(modality.buckets, inner)
        self.positions = Positions(modality.tokens, inner)
        self.block = AttentionBlock(inner, dropout)
        self.out = nn.Sequential(nn.LayerNorm(inner), nn.Dropout(dropout), nn.Linear(inner, width))
        self.wide = nn.Linear(modality.buckets, width)
        nn.init.zeros_(self.wide.weight)

    def read(self, x: Tensor) -> Reading:
        """[B, 2, L] -> [B, width] and a token per word."""
        ids, weights = x[:, 0].long(), x[:, 1] * (x[:, 0] > 0)
        tokens = self.block(self.positions(self.words(ids) * weights[:, :, None]), weights)
        deep: Tensor = self.out(mean_token(tokens, weights))
        wide: Tensor = self.wide(bag_of_words(x, self.buckets))
        return Reading(wide + deep, tokens, weights > 0)
