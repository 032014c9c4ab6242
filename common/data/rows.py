"""Rows that stay in their files: tensors of whole scans would fill the memory many times over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

Row = Callable[[], Tensor]
"""Reads a row [...]."""
READ_ONLY = "rows that stay in their files cannot be written into: make a tensor of them with read(), or another with mapped()"


class LazyRows(Tensor):
    """A tensor [N, ...] whose rows are read when they are asked for, every time anew.

    Indices and iteration read the rows that they name, :func:`taken` and :func:`joined` none; all other operations of torch read
    all of them first. So code that knows nothing of it reads it as any tensor. Nothing can be written into it: operations that
    would raise a RuntimeError. All others, views too, return plain tensors of what was read; to write into these changes no row.
    """

    rows: tuple[Row, ...]

    @staticmethod
    def __new__(cls, rows: Sequence[Row], shape: Sequence[int], dtype: torch.dtype) -> LazyRows:
        """Makes it of N rows of one shape and type; nothing is read."""
        made: LazyRows = Tensor._make_wrapper_subclass(cls, (len(rows), *shape), dtype=dtype)
        made.rows = tuple(rows)
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # results are plain tensors

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Reads all rows for an operation that asks for no rows in particular.

        Raises:
            RuntimeError: If it would write into the rows.
        """
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for at, argument in enumerate(func._schema.arguments):
                given = args[at] if at < len(args) else kwargs.get(argument.name)
                if argument.is_write and any(isinstance(part, LazyRows) for part in tree_leaves(given)):
                    raise RuntimeError(READ_ONLY)
        args, kwargs = tree_map_only(LazyRows, LazyRows.read, (args, kwargs))
        return func(*args, **kwargs)

    def read(self) -> Tensor:
        """Returns all rows as a plain tensor."""
        whole = torch.empty(self.shape, dtype=self.dtype)
        for at, row in enumerate(self.rows):
            whole[at] = row()
        return whole

    def at(self, index: Any) -> LazyRows:
        """Returns the rows at indices, at a boolean mask or of a slice; nothing is read."""
        chosen = torch.arange(len(self.rows))[index].tolist()
        return LazyRows([self.rows[i] for i in chosen], self.shape[1:], self.dtype)

    def mapped(self, step: Callable[[Tensor], Tensor]) -> LazyRows:
        """Returns what a step, from [N, ...] to float32 of the same shape, makes of the rows; it is taken as they are read."""
        return LazyRows([partial(_stepped, row, step) for row in self.rows], self.shape[1:], torch.float32)

    def __getitem__(self, key: Any) -> Tensor:
        if isinstance(key, int):
            return self.rows[key]()
        if isinstance(key, slice) or (isinstance(key, Tensor) and key.ndim == 1):
            return self.at(key).read()
        return self.read()[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        raise RuntimeError(READ_ONLY)  # torch would write into what it read

    def __iter__(self) -> Iterator[Tensor]:
        return (row() for row in self.rows)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"LazyRows(shape={tuple(self.shape)}, dtype={self.dtype})"


def _stepped(row: Row, step: Callable[[Tensor], Tensor]) -> Tensor:
    return step(row()[None])[0]


def taken(rows: Tensor, index: Tensor) -> Tensor:
    """Returns the rows at indices; of lazy ones none is read."""
    return rows.at(index) if isinstance(rows, LazyRows) else rows[index]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Returns the rows of all parts; if they are lazy none is read."""
    lazy = [part for part in parts if isinstance(part, LazyRows)]
    if len(lazy) < len(parts):
        return torch.cat(list(parts))
    return LazyRows([row for part in lazy for row in part.rows], lazy[0].shape[1:], lazy[0].dtype)
