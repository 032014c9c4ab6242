"""Death in hospital, real ICU patients of real hospitals: the eICU demo, first 24 h, hospital-grouped folds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from simulations.ablations import JOINT, OF_PARTS, PLAIN_SERIES, POOLED, STANDARD, references, teachers
from simulations.benchmarks.base import METHODS, Benchmark, Published, Split
from simulations.datasets import eicu
from simulations.datasets.files import data_folder

LATE_FUSION = "late fusion of three logistic regressions"
APACHE = "APACHE IVa, the score in clinical use"
CENTRAL = ("model.dropout=0.1", "distill.epochs=5")
TUNED = {
    "central": CENTRAL,
    "central-full": CENTRAL,
    "fedavg": ("model.dropout=0.1", "refine.rounds=15", "refine.epochs=1", "refine.training.lr=0.004"),
    "local": ("model.dropout=0.1",),
}
"""Chosen for each on inner folds: docs/looks.md."""

NETWORKS = ("small", "base")

NEEDS = (eicu.FOLDER, eicu.HOW_TO_GET)


def prepare(folder: Path, split: Split, label: Literal["death", "los"] = "death") -> dict[str, Any]:
    """Writes one fold as hospitals, with the label asked for; see :data:`simulations.benchmarks.base.Prepare`."""
    stays = eicu.load(data_folder(*NEEDS))
    said = eicu.write_sites(
        stays,
        folder,
        fold=split.fold,
        seed=split.seed,
        cohort="all" if split.variant == "all-stays" else "main",
        sites="hospital" if split.variant == "hospital-sites" else "network",
        masked=split.masked,
        reference=eicu.REFERENCE_SHARE if split.reference is None else split.reference,
        label=label,
    )
    return {key: said[key] for key in ("n", "exclusions", "data_checksum")}


def _measured(method: str, value: float, pattern: str, **more: Any) -> Published:
    source = "pooled, other folds"
    return Published(method, "auroc", value, "measured", source, pattern=pattern, **more)


BENCHMARK = Benchmark(
    name="eicu-mortality",
    title="Death in hospital from the first 24 h of an ICU stay: hourly series, APACHE table, diagnoses and history",
    experiment="eicu-mortality",
    data="real",
    data_version="eICU Collaborative Research Database Demo v2.0 + YAIB demo cohorts",
    task_type="binary",
    modalities=("series", "table", "text"),
    prepare=prepare,
    needs=NEEDS,
    methods=METHODS,
    folds=5,
    variants=(None, "all-stays", "hospital-sites"),
    overrides=TUNED,
    published=(
        _measured("logistic regression", 0.723, "series", n=1571),
        _measured("logistic regression", 0.777, "table", n=1571),
        _measured("logistic regression", 0.708, "text", n=1571),
        _measured(LATE_FUSION, 0.806, "all", n=1571),
        Published(APACHE, "auroc", 0.834, "measured", "stays that have one", n=1191),
        _measured(LATE_FUSION, 0.847, "all", n=2241, variant="all-stays"),
        Published(APACHE, "auroc", 0.862, "measured", "stays that have one", n=1641, variant="all-stays"),
    ),
    ablations=(
        PLAIN_SERIES,
        teachers("small", "small networks instead of linear ones", series=["small"], table=["small"], text=["small"]),
        teachers("two", "linear and small", series=["trend", "small"], table=["linear", "small"], text=["linear", "small"]),
        teachers(
            "three",
            "linear, small and base",
            series=["trend", *NETWORKS],
            table=["linear", *NETWORKS],
            text=["linear", *NETWORKS],
        ),
        JOINT,
        *POOLED,
        *OF_PARTS,
        *STANDARD,
        *references(0, 0.05, 0.1),
    ),
)
