"""One of 42 things by image, spoken word and passage: the third of MIND's multi-class tasks, LUMA without added noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simulations.ablations import POOLED, STANDARD, references, teachers
from simulations.benchmarks.base import AT_ONE_PLACE_TOO, Benchmark, Split
from simulations.benchmarks.mind import COMPARABLE, NOT_FOUND, find, write_split
from simulations.datasets.mind import luma, twins


def prepare(folder: Path, split: Split) -> dict[str, Any]:
    """Writes eight sites; see :data:`simulations.benchmarks.base.Prepare`."""
    root, warnings = find(folder, luma.FOLDER, luma.HOW_TO_GET, twins.write_luma)
    return write_split(folder, split, luma.load(root), tuple(f"site-{k + 1}" for k in range(8)), warnings)


BENCHMARK = Benchmark(
    name="mind-luma",
    title="One of 42 things from an image, a spoken word and a passage; eight sites",
    experiment="mind-luma",
    data="real",
    data_version=f"{luma.TITLE}; a generated twin where it is not there",
    task_type="multiclass",
    modalities=("audio", "image", "text"),
    prepare=prepare,
    methods=AT_ONE_PLACE_TOO,
    metrics=("accuracy", "f1", "auroc"),
    published=NOT_FOUND,
    comparable=COMPARABLE,
    ablations=(
        teachers("one", "one of each", image=["base"], audio=["base"], text=["linear"]),
        *POOLED,
        *STANDARD,
        *references(0, 0.05, 0.2),
    ),
)
