"""A small twin of MIMIC for tests, written once; tests that spoil files work on a copy."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from simulations.datasets.mimic.layout import FOLDER
from simulations.datasets.mimic.twin import Truth, write_twin

SEED, PATIENTS = 3, 240  # another seed than the table's


@cache
def small_twin() -> tuple[TemporaryDirectory[str], Truth]:
    """The folder that holds ``mimic``, kept until the process ends, and what it was drawn from."""
    home: TemporaryDirectory[str] = TemporaryDirectory()
    return home, write_twin(Path(home.name) / FOLDER, seed=SEED, patients=PATIENTS)


def rewrite(file: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Changes a CSV file, packed or not."""
    packed = file.suffix == ".gz"
    text = gzip.decompress(file.read_bytes()) if packed else file.read_bytes()
    changed = change(pd.read_csv(io.BytesIO(text), dtype=str, keep_default_na=False)).to_csv(index=False).encode()
    file.write_bytes(gzip.compress(changed) if packed else changed)


def cut(file: Path, share: float = 0.6) -> None:
    """Ends a file too early."""
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
