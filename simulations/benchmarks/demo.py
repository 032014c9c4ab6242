"""The demonstration consortium as a benchmark: six generated hospitals, four modalities."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.data.manifest import REFERENCE_FOLDER
from simulations.benchmarks.base import Benchmark
from simulations.benchmarks.eicu_mortality import METHODS
from simulations.consortium import RECORD, write_demo


def prepare(folder: Path, seed: int, fold: int, variant: str | None, masked: bool) -> dict[str, Any]:
    """Writes the hospitals, the same ones for every seed; see :data:`simulations.benchmarks.base.Prepare`."""
    if folder.exists() and not any(folder.iterdir()):
        shutil.rmtree(folder)
    write_demo(folder)
    record = (folder / RECORD).read_bytes()
    counts = json.loads(record)["folders"]
    return {
        "n": {
            "reference": _sum([counts.pop(REFERENCE_FOLDER)]),
            "hospitals": _sum(list(counts.values())) | {"sites": len(counts)},
        },
        "exclusions": {},
        "data_checksum": hashlib.sha256(record).hexdigest(),
    }


def _sum(folders: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Returns how many visits, patients and visits with the event some folders hold."""
    return {what: sum(counts[what] for counts in folders) for what in ("visits", "patients", "events")}


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
