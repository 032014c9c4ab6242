"""Death in hospital from 48 h of intensive care: PhysioNet/CinC Challenge 2012, train set a, test set b, four kinds of unit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simulations.ablations import PLAIN_SERIES, STANDARD, references, teachers
from simulations.benchmarks.base import METHODS, Benchmark, Published, Split
from simulations.datasets import cinc2012
from simulations.datasets.files import data_folder

ONE_PLACE = ("model.dropout=0.3", "distill.epochs=5", "distill.training.lr=0.001")
TUNED = {
    "central": ONE_PLACE,
    "central-full": ONE_PLACE,
    "fedavg": ("model.dropout=0.3", "refine.rounds=15", "refine.epochs=1", "refine.training.lr=0.001"),
    "local": ONE_PLACE,
}
"""Chosen for each on inner folds of set a: docs/looks.md."""

NEEDS = (cinc2012.FOLDER, cinc2012.HOW_TO_GET)


def prepare(folder: Path, split: Split) -> dict[str, Any]:
    """Writes the four kinds of unit as sites; see :data:`simulations.benchmarks.base.Prepare`."""
    stays = cinc2012.load(data_folder(*NEEDS))
    reference = cinc2012.REFERENCE_SHARE if split.reference is None else split.reference
    return cinc2012.write_sites(stays, folder, seed=split.seed, masked=split.masked, reference=reference)


def _measured(method: str, auroc: float, auprc: float | None, source: str) -> tuple[Published, ...]:
    figures = {"auroc": auroc, "auprc": auprc}
    return tuple(Published(method, m, v, "measured", source, n=4000) for m, v in figures.items() if v is not None)


POOLED = "all of set a at one place, series and table; set b"
BENCHMARK = Benchmark(
    name="cinc2012-mortality",
    title="Death in hospital from the first 48 h in intensive care: charted series, admission table; units as sites",
    experiment="cinc2012-mortality",
    data="real",
    data_version="PhysioNet/Computing in Cardiology Challenge 2012 v1.0.0, sets a and b",
    task_type="binary",
    modalities=("series", "table"),
    prepare=prepare,
    needs=NEEDS,
    methods=METHODS,
    overrides=TUNED,
    published=(
        *_measured("logistic regression on summaries", 0.860, 0.550, POOLED),
        *_measured("gradient boosting on summaries", 0.864, 0.538, POOLED),
        *_measured("SAPS-I, a score in clinical use", 0.638, None, "the column of Outcomes-b.txt"),
    ),
    ablations=(
        PLAIN_SERIES,
        teachers("two", "linear and small", series=["trend", "small"], table=["linear", "small"]),
        *STANDARD,
        *references(0, 0.05, 0.2),
    ),
)
