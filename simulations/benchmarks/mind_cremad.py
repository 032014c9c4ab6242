"""Emotions in acted clips by voice and face: the first of MIND's multi-class tasks, CREMA-D, groups of actors as sites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simulations.ablations import POOLED, STANDARD, references, teachers
from simulations.benchmarks.base import AT_ONE_PLACE_TOO, Benchmark, Published, Split
from simulations.benchmarks.mind import NOT_FOUND, find, write_split
from simulations.datasets.mind import cremad, twins

NEW_ACTORS = "new-actors"
ACTORS_TWICE = "Actors have clips in both of OGM-GE's lists; variant new-actors tests others."
G2D = "names of checkpoints in G2D's repository, read in code: OGM-GE's 744 clips [inferred: multiples of 1/744]"
BALANCE = "Results.jpeg in BalanceBenchmark's repository, read there: its own runs of all; which clips is not told"
BALANCED = {
    "plain joint": 0.6550, "OGM": 0.6776, "AGM": 0.7159, "PMR": 0.6719, "G-Blending": 0.7159, "UMT": 0.6747, "MLA": 0.7230,
    "MMPareto": 0.7997,
}  # fmt: skip
"""Method -> accuracy in BalanceBenchmark."""


def prepare(folder: Path, split: Split) -> dict[str, Any]:
    """Writes the groups of actors; see :data:`simulations.benchmarks.base.Prepare`."""
    root, warnings = find(folder, cremad.FOLDER, cremad.HOW_TO_GET, twins.write_cremad)
    samples = cremad.load(root)
    if split.variant == NEW_ACTORS:
        samples = cremad.new_actors(samples, split.seed)
    else:
        warnings.append(ACTORS_TWICE)
    return write_split(folder, split, samples, tuple(f"actors-{k + 1}" for k in range(8)), warnings)


BENCHMARK = Benchmark(
    name="mind-cremad",
    title="One of six acted emotions from voice and face, OGM-GE's lists; groups of actors as sites",
    experiment="mind-cremad",
    data="real",
    data_version=f"{cremad.TITLE}; a generated twin where it is not there",
    task_type="multiclass",
    modalities=("audio", "image"),
    prepare=prepare,
    methods=AT_ONE_PLACE_TOO,
    variants=(None, NEW_ACTORS),
    metrics=("accuracy", "f1", "auroc"),
    published=(
        *NOT_FOUND,
        Published("G2D's unimodal teachers", "accuracy", 0.6169, "published", G2D, "audio", n=744),
        Published("G2D's unimodal teachers", "accuracy", 0.7648, "published", G2D, "image", n=744),
        *(Published(f"{m} (BalanceBenchmark)", "accuracy", v, "second-hand", BALANCE) for m, v in BALANCED.items()),
    ),
    comparable=(
        "That MIND used this set is inferred, and its figures could not be read. Those of others are for orientation: learned at "
        "one place, and it is not told on which clips BalanceBenchmark's are. Our image teacher reads one grey frame of 64 x 64."
    ),
    ablations=(
        teachers("one", "one of each", image=["base"], audio=["base"]),
        *POOLED,
        *STANDARD,
        *references(0, 0.05, 0.2),
    ),
)
