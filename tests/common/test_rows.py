"""Rows that are read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
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


@pytest.mark.parametrize(
    "write",
    [
        lambda rows: rows.add_(1),
        lambda rows: rows.__imul__(2),
        lambda rows: rows.__setitem__(0, 5),
        lambda rows: rows.__setitem__((slice(None), 0), WHOLE[:, 0]),
        lambda rows: rows.copy_(WHOLE),
        lambda rows: rows.index_fill_(0, torch.tensor([1]), 3.0),
        lambda rows: torch.add(WHOLE, WHOLE, out=rows),
        lambda rows: torch._foreach_add_([rows], 1.0),
        lambda rows: torch.nn.init.zeros_(rows),
    ],
)
def test_what_would_write_into_the_rows_is_refused(write: Callable[[LazyRows], object]) -> None:
    rows = Shelf().rows
    with pytest.raises(RuntimeError, match="cannot be written into: make a tensor of them with read"):
        write(rows)
    assert torch.equal(rows.read(), WHOLE)


def test_rows_are_written_into_a_plain_tensor_as_any_other() -> None:
    made, more = torch.zeros(6, 2, 2), WHOLE.clone()
    made[:] = Shelf().rows
    assert torch.equal(made, WHOLE)
    assert torch.equal(more.add_(Shelf().rows), 2 * WHOLE)
    assert torch.equal(torch.add(Shelf().rows, Shelf().rows, out=made), 2 * WHOLE)
