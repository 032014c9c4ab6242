"""Heart disease at four real centres, one table each: FLamby's protocol. One modality: a smoke test of the plumbing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simulations.ablations import standard, teachers
from simulations.benchmarks.base import Benchmark, Published, Split, refuse_reference
from simulations.datasets import uci_heart
from simulations.datasets.files import data_folder

TUNED = {
    "central": ("distill.epochs=5",),
    "fedavg": ("model.dropout=0.1", "refine.rounds=30", "refine.epochs=1", "refine.training.lr=0.002"),
    "local": ("distill.epochs=10",),
}
"""Chosen for each on inner folds of the training rows: docs/looks.md."""

NEEDS = (uci_heart.FOLDER, uci_heart.HOW_TO_GET)


def prepare(folder: Path, split: Split) -> dict[str, Any]:
    """Writes the four centres, the same ones for every seed; see :data:`simulations.benchmarks.base.Prepare`.

    Raises:
        ConsiliumError: If a reference set is asked for: the protocol has none.
    """
    refuse_reference("heart-disease", split)
    return uci_heart.write_sites(uci_heart.load(data_folder(*NEEDS)), folder)


FLAMBY = "FLamby's results, pooled test, five seeds of training"
BENCHMARK = Benchmark(
    name="heart-disease",
    title="Heart disease from ten clinical features, four real centres: FLamby's rows and test rows",
    experiment="heart-disease",
    data="real",
    data_version="UCI Heart Disease, processed files of four centres",
    task_type="binary",
    modalities=("table",),
    prepare=prepare,
    needs=NEEDS,
    methods=("student", "teachers", "fedavg", "local", "central"),
    overrides=TUNED,
    metrics=("accuracy", "auroc", "auprc", "f1"),
    published=(
        Published("FLamby, FedAvg", "accuracy", 0.748, "published", FLAMBY + ", sd .027", n=254),
        Published("FLamby, best federated strategy (Cyclic)", "accuracy", 0.785, "published", FLAMBY, n=254),
        Published("FLamby, pooled", "accuracy", 0.795, "published", FLAMBY + ", sd .003", n=254),
    ),
    comparable=(
        "Same rows and test rows. FLamby scales each centre by its own moments, here all are scaled by those of the training "
        "sites together. Its results files were revised; these figures are of one revision."
    ),
    ablations=(
        teachers("small", "a small network instead of a linear one", table=["small"]),
        *standard("student-no-kd"),
    ),
)
