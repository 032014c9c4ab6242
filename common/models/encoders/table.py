"""Encoders of tables: inputs [B, 2, D], standardised values (0 where missing) and missing flags."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from common.data.standardise import table_columns
from common.models.attention import AttentionBlock, mean_token
from common.models.registry import Encoder, Reading, Size, all_seen, encoder
from common.task import Modality


def deviations(values: Tensor) -> Tensor:
    """Returns how far, and in which direction, standardised values lie from their mean; heavy tails are squashed.

    A linear map of both can say what clinicians know of most measurements: too low and too high are both bad.

    Args:
        values: [B, D], 0 where missing.

    Returns:
        [B, 2 D]; 0 where missing.
    """
    squashed = values.tanh()
    return torch.cat([squashed, (squashed.abs() - 0.5) * (values != 0)], dim=1)


def table_features(x: Tensor) -> Tensor:
    """Returns deviations and missing flags, [B, 2, D] -> [B, 3 D]."""
    return torch.cat([deviations(x[:, 0]), x[:, 1]], dim=1)


class Summarised(Encoder):
    """An encoder of a row of numbers that a function without parameters makes of a visit; by itself it is that row.

    With a linear head that is a logistic regression on it. Subclasses set ``summarise``, from model-ready inputs to [B, inputs].
    """

    summarise: Callable[[Tensor], Tensor]

    def prepared(self, x: Tensor) -> Tensor:
        """Model-ready inputs, or [B, inputs] -> [B, inputs]."""
        return x if x.ndim == 2 else self.summarise(x)

    def forward(self, x: Tensor) -> Tensor:
        """Model-ready inputs, or [B, inputs] -> [B, features]."""
        return self.prepared(x)


@encoder("table", "linear")
class LinearTable(Summarised):
    """Deviations and missing flags themselves."""

    size: Size = "linear"
    summarise = staticmethod(table_features)

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__()
        self.features = 3 * table_columns(modality)


class WideDeep(Summarised):
    """A linear map plus a small multi-layer perceptron: can equal a linear teacher, and can bend where data ask for it."""

    def __init__(self, inputs: int, width: int, hidden: int, dropout: float) -> None:
        """Args: inputs and hidden are numbers of features."""
        super().__init__()
        self.features = width
        self.wide = nn.Linear(inputs, width)
        self.deep = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width))
        nn.init.zeros_(self.wide.weight)  # a column that training never moves must not speak at the test

    def forward(self, x: Tensor) -> Tensor:
        """Model-ready inputs, or [B, inputs] -> [B, width]."""
        x = self.prepared(x)
        wide: Tensor = self.wide(x)
        deep: Tensor = self.deep(x)
        return wide + deep


@encoder("table", "compact")
class CompactTable(WideDeep):
    """The student's table encoder."""

    size: Size = "small"
    summarise = staticmethod(table_features)
    hidden = 1

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__(3 * table_columns(modality), width, self.hidden * width, dropout)


@encoder("table", "small")
class SmallTable(CompactTable):
    """A teacher with 32 hidden units at width 16."""

    hidden = 2


@encoder("table", "base")
class BaseTable(CompactTable):
    """A teacher with 128 hidden units at width 16."""

    size: Size = "base"
    hidden = 8


@encoder("table", "attention")
class AttentionTable(Encoder):
    """A small Transformer encoder with a token per column (FT-Transformer's feature tokens; Gorishniy et al., 2021).

    A column's token is linear in its deviations and its missing flag, so that a missing value has a token of its own.
    """

    size: Size = "small"

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__()
        self.features, self.token_width = width, 2 * width
        self.columns = table_columns(modality)
        # One layer for all columns would not know which it reads: grouped, every column has its own.
        self.tokens = nn.Conv1d(3 * self.columns, self.columns * self.token_width, kernel_size=1, groups=self.columns)
        self.block = AttentionBlock(self.token_width, dropout)
        self.out = nn.Sequential(nn.LayerNorm(self.token_width), nn.Dropout(dropout), nn.Linear(self.token_width, width))

    def read(self, x: Tensor) -> Reading:
        """[B, 2, D] -> [B, width] and a token per column."""
        said = table_features(x).view(len(x), 3, self.columns).transpose(1, 2).flatten(1)
        every = x.new_ones(len(x), self.columns)
        tokens = self.block(self.tokens(said[:, :, None]).view(len(x), self.columns, self.token_width), every)
        return Reading(self.out(mean_token(tokens, every)), tokens, all_seen(tokens))
