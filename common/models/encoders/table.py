"""Encoders of tables: inputs [B, 2, D], standardised values (0 where missing) and missing flags."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.data.standardise import table_columns
from common.models.registry import Encoder, Size, encoder
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


@encoder("table", "linear")
class LinearTable(Encoder):
    """Deviations and missing flags themselves: with a linear head, a logistic regression on them."""

    size: Size = "linear"

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__()
        self.features = 3 * table_columns(modality)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 2, D] -> [B, 3 D]."""
        return table_features(x)


class WideDeep(Encoder):
    """A linear map plus a small multi-layer perceptron: can equal a linear teacher, and can bend where data ask for it."""

    def __init__(self, inputs: int, width: int, hidden: int, dropout: float) -> None:
        """Args: inputs and hidden are numbers of features."""
        super().__init__()
        self.features = width
        self.wide = nn.Linear(inputs, width)
        self.deep = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width))
        nn.init.zeros_(self.wide.weight)  # a column that training never moves must not speak at the test

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs] -> [B, width]."""
        wide: Tensor = self.wide(x)
        deep: Tensor = self.deep(x)
        return wide + deep


@encoder("table", "compact")
class CompactTable(WideDeep):
    """The student's table encoder."""

    size: Size = "small"
    hidden = 1

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__(3 * table_columns(modality), width, self.hidden * width, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 2, D] -> [B, width]."""
        return super().forward(table_features(x))


@encoder("table", "small")
class SmallTable(CompactTable):
    """A teacher with 32 hidden units at width 16."""

    hidden = 2


@encoder("table", "base")
class BaseTable(CompactTable):
    """A teacher with 128 hidden units at width 16."""

    size: Size = "base"
    hidden = 8
