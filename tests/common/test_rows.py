"""Rows that are read when they are asked for."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from common.data.rows import LazyRows, joined, taken

WHOLE = torch.arange(24.0).reshape(6, 2, 2)


class Shelf:
    """Lazy rows that note which of them were read."""

    def __init__(self) -> None:
        self.read: list[int] = []
        self.rows = LazyRows([partial(self.row, at) for at in range(6)], (2, 2), torch.float32)

    def row(self, at: int) -> Tensor:
        self.read.append(at)
        return WHOLE[at].clone()


@pytest.mark.parametrize(
    ("key", "read"),
    [
        (torch.tensor([4, 1, 4]), [4, 1, 4]),
        (torch.tensor([True, False, False, True, False, False]), [0, 3]),
        (slice(1, 3), [1, 2]),
        (-1, [5]),
        (torch.tensor([], dtype=torch.int64), []),
    ],
)
def test_an_index_reads_the_rows_that_it_names(key: Tensor | slice | int, read: list[int]) -> None:
    shelf = Shelf()
    found = shelf.rows[key]
    assert type(found) is Tensor and torch.equal(found, WHOLE[key])
    assert shelf.read == read


def test_to_choose_to_join_and_to_scale_reads_nothing() -> None:
    one, other = Shelf(), Shelf()
    some = taken(one.rows, torch.tensor([3, 0])), taken(other.rows, torch.tensor([False] * 5 + [True]))
    made = joined([rows.mapped(lambda x, by=by: x * by) for rows, by in zip(some, (2, 3), strict=True)])  # type: ignore[attr-defined, misc]
    assert isinstance(made, LazyRows) and made.shape == (3, 2, 2) and len(made) == 3 and "shape=(3, 2, 2)" in repr(made)
    assert not one.read and not other.read
    assert torch.equal(made[torch.tensor([2, 1])], torch.stack([WHOLE[5] * 3, WHOLE[0] * 2]))
    assert (one.read, other.read) == ([0], [5])


def test_plain_tensors_are_chosen_and_joined_as_ever() -> None:
    index = torch.tensor([2, 2])
    assert torch.equal(taken(WHOLE, index), WHOLE[index])
    assert type(joined([WHOLE, Shelf().rows])) is Tensor
    assert torch.equal(joined([WHOLE, Shelf().rows]), torch.cat([WHOLE, WHOLE]))


def test_other_operations_see_a_tensor_like_any_other() -> None:
    rows = Shelf().rows
    held = torch.tensor([True, False] * 3)[:, None, None]
    for found, expected in (
        (torch.where(held, rows, 0.0), torch.where(held, WHOLE, 0.0)),
        ((rows > 3).flatten(1).any(1), (WHOLE > 3).flatten(1).any(1)),
        (torch.cat([rows, rows], 1), torch.cat([WHOLE, WHOLE], 1)),
        (rows[:, 0, 1], WHOLE[:, 0, 1]),
        (torch.stack(list(rows)), WHOLE),
    ):
        assert type(found) is Tensor and torch.equal(found, expected)
