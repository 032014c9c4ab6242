"""The demonstration consortium as a benchmark: six generated hospitals, four modalities."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from simulations.benchmarks.base import Benchmark
from simulations.benchmarks.eicu_mortality import METHODS
from simulations.consortium import write_demo


def prepare(folder: Path, seed: int, fold: int, variant: str | None, masked: bool) -> dict[str, Any]:
    """Writes the hospitals, the same ones for every seed; see :data:`simulations.benchmarks.base.Prepare`."""
    if folder.exists() and not any(folder.iterdir()):
        shutil.rmtree(folder)
    write_demo(folder)
    record = (folder / "consortium.json").read_bytes()
    return {"n": {"hospitals": json.loads(record)}, "exclusions": {}, "data_checksum": hashlib.sha256(record).hexdigest()}


BENCHMARK = Benchmark(
    name="demo",
    title="Deterioration within 48 h, generated hospitals: chest image, labs, notes, admission table",
    experiment="demo",
    data="generated",
    data_version="demonstration consortium",
    task_type="binary",
    modalities=("admission", "cxr", "labs", "notes"),
    prepare=prepare,
    methods=tuple(m for m in METHODS if m != "central-full"),
)
