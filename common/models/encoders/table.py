"""Encoders of tables: inputs [B, 2, D], standardised values (0 where missing) and missing flags."""

from __future__ import annotations

from torch import Tensor, nn

from common.data.standardise import table_columns
from common.models.registry import Encoder, encoder
from common.task import Modality


@encoder("table", "linear")
class LinearTable(Encoder):
    """The columns themselves: with a linear head, a logistic regression with missing indicators."""

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__()
        self.features = 2 * table_columns(modality)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 2, D] -> [B, 2D]."""
        return x.flatten(1)


class WideDeep(Encoder):
    """A linear map plus a small multi-layer perceptron: can equal a linear teacher, and can bend where data ask for it."""

    def __init__(self, inputs: int, width: int, hidden: int, dropout: float) -> None:
        """Args: inputs and hidden are numbers of features."""
        super().__init__()
        self.features = width
        self.wide = nn.Linear(inputs, width)
        self.deep = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs] -> [B, width]."""
        wide: Tensor = self.wide(x)
        return wide + self.deep(x)


@encoder("table", "compact")
class CompactTable(WideDeep):
    """The student's table encoder."""

    hidden = 1

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`."""
        super().__init__(2 * table_columns(modality), width, self.hidden * width, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 2, D] -> [B, width]."""
        return super().forward(x.flatten(1))


@encoder("table", "small")
class SmallTable(CompactTable):
    """A teacher with 32 hidden units at width 16."""

    hidden = 2


@encoder("table", "base")
class BaseTable(CompactTable):
    """A teacher with 128 hidden units at width 16."""

    hidden = 8
