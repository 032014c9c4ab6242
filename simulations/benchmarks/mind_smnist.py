"""Written digits that are spoken too: the second of MIND's multi-class tasks, S-MNIST as Zenodo 4452953 has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simulations.ablations import POOLED, STANDARD, references, teachers
from simulations.benchmarks.base import AT_ONE_PLACE_TOO, Benchmark, Split
from simulations.benchmarks.mind import COMPARABLE, NOT_FOUND, find, write_split
from simulations.datasets.mind import smnist, twins


def prepare(folder: Path, split: Split) -> dict[str, Any]:
    """Writes ten sites; see :data:`simulations.benchmarks.base.Prepare`."""
    root, warnings = find(folder, smnist.FOLDER, smnist.HOW_TO_GET, twins.write_smnist)
    return write_split(folder, split, smnist.load(root), tuple(f"site-{k + 1}" for k in range(10)), warnings)


BENCHMARK = Benchmark(
    name="mind-smnist",
    title="The digit that is written in an image and spoken; ten sites",
    experiment="mind-smnist",
    data="real",
    data_version=f"{smnist.TITLE}; a generated twin where it is not there",
    task_type="multiclass",
    modalities=("image", "speech"),
    prepare=prepare,
    methods=AT_ONE_PLACE_TOO,
    metrics=("accuracy", "f1", "auroc"),
    published=NOT_FOUND,
    comparable=COMPARABLE,
    ablations=(
        teachers("one", "one of each", image=["lenet4"], series=["attention"]),
        *POOLED,
        *STANDARD,
        *references(0, 0.05, 0.2),
    ),
)
