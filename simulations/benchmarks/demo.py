"""The demonstration consortium as a benchmark: six generated hospitals, four modalities."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.config import load_config
from common.data.manifest import REFERENCE_FOLDER
from simulations.ablations import STANDARD, references, teachers
from simulations.benchmarks.base import METHODS, Benchmark, Split
from simulations.consortium import DEMO, RECORD, write_demo


def prepare(folder: Path, split: Split) -> dict[str, Any]:
    """Writes the hospitals, the same ones for every seed; see :data:`simulations.benchmarks.base.Prepare`.

    A reference set of another size is drawn anew; the hospitals stay as they are.
    """
    if folder.exists() and not any(folder.iterdir()):
        shutil.rmtree(folder)
    write_demo(folder, patients={REFERENCE_FOLDER: _reference_of(split.reference)} if split.reference else None)
    record = (folder / RECORD).read_bytes()
    counts = json.loads(record)["folders"]
    reference = {"reference": _sum([counts.pop(REFERENCE_FOLDER)])}
    if split.reference == 0:
        shutil.rmtree(folder / REFERENCE_FOLDER)
        reference = {}
    return {
        "n": {**reference, "hospitals": _sum(list(counts.values())) | {"sites": len(counts)}},
        "exclusions": {},
        "data_checksum": hashlib.sha256(record).hexdigest(),
    }


def _reference_of(share: float) -> int:
    """Returns how many patients are a share of all who train: them, and the hospitals' own that do not test."""
    train = (1 - load_config("demo").split.test) * sum(h.patients for h in DEMO if h.slug != REFERENCE_FOLDER)
    return round(train * share / (1 - share))


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
    ablations=(
        teachers("small", "one, the smaller", image=["small"], series=["linear"], text=["linear"], table=["linear"]),
        teachers("large", "one, the larger", image=["base"], series=["small"], text=["base"], table=["small"]),
        *STANDARD,
        *references(0, 0.05, 0.1, 0.2),
    ),
)
