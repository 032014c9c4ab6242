"""Small twins of MIND's multi-class sets for tests, written once; tests that spoil files work on a copy."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import pandas as pd

from simulations.datasets.mind import cremad, luma, smnist, twins

SEED = 3  # another seed than the tables'
SETS: dict[str, ModuleType] = {"cremad": cremad, "smnist": smnist, "luma": luma}
WRITERS: dict[str, Callable[..., pd.DataFrame]] = {
    "cremad": twins.write_cremad,
    "smnist": twins.write_smnist,
    "luma": twins.write_luma,
}
SIZES = {"cremad": {"actors": 24, "sentences": 2}, "smnist": {"train": 400, "test": 100}, "luma": {"train": 8, "test": 2}}


@cache
def small_twins() -> TemporaryDirectory[str]:
    """A folder for CONSILIUM_DATA, kept until the process ends."""
    return TemporaryDirectory()


@cache
def small_twin(name: str) -> tuple[Path, pd.DataFrame]:
    """The folder of a twin below :func:`small_twins`, and what it was drawn from."""
    root = Path(small_twins().name) / name
    return root, WRITERS[name](root, seed=SEED, **SIZES[name])
