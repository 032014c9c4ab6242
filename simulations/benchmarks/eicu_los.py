"""Remaining days in the unit, real ICU patients of real hospitals: the eICU demo, first 24 h, hospital-grouped folds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simulations.ablations import STANDARD, references, teachers
from simulations.benchmarks import eicu_mortality
from simulations.benchmarks.base import METHODS, Benchmark, Split

CENTRAL = ("distill.epochs=1",)
TUNED = {
    "central": CENTRAL,
    "central-full": CENTRAL,
    "fedavg": ("refine.rounds=8", "refine.epochs=1", "refine.training.lr=0.005"),
    "local": ("distill.epochs=2",),
}
"""Chosen for each on inner folds: docs/looks.md."""


def prepare(folder: Path, split: Split) -> dict[str, Any]:
    """Writes one fold as hospitals; see :data:`simulations.benchmarks.base.Prepare`."""
    return eicu_mortality.prepare(folder, split, label="los") | {"units": {"los": "d"}}


BENCHMARK = Benchmark(
    name="eicu-los",
    title="Remaining days in the ICU after its first 24 h, from these: hourly series, APACHE table, diagnoses and history",
    experiment="eicu-los",
    data=eicu_mortality.BENCHMARK.data,
    data_version=eicu_mortality.BENCHMARK.data_version,
    task_type="regression",
    modalities=eicu_mortality.BENCHMARK.modalities,
    prepare=prepare,
    needs=eicu_mortality.NEEDS,
    methods=(*METHODS, "ridge", "median"),
    folds=5,
    variants=(None, "hospital-sites"),
    overrides=TUNED,
    metrics=("mae", "rmse", "r2"),
    ablations=(
        teachers("small", "small networks instead of linear ones", series=["small"], table=["small"], text=["small"]),
        teachers("two", "linear and small", series=["linear", "small"], table=["linear", "small"], text=["linear", "small"]),
        *STANDARD,
        *references(0, 0.05, 0.1),
    ),
)
