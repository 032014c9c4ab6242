"""Emotions in acted clips by voice and face: the first of MIND's multi-class tasks, CREMA-D, groups of actors as sites."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from simulations.ablations import POOLED, STANDARD, references, teachers
from simulations.benchmarks.base import Benchmark, Published, Split
from simulations.benchmarks.eicu_mortality import METHODS
from simulations.datasets.files import official_or_twin
from simulations.datasets.mind import cremad, twins
from simulations.datasets.mind.sites import REFERENCE_SHARE, Samples, write_sites

NEW_ACTORS = "new-actors"
INFERRED = "MIND (TMLR 2025): only its abstract could be read; that this is one of its sets is inferred"
NOT_FOUND = (Published("MIND", "accuracy", None, "not found", INFERRED),)
ACTORS_TWICE = "Actors have clips in both of OGM-GE's lists; variant new-actors tests others."


def write_split(folder: Path, split: Split, samples: Samples, sites: tuple[str, ...], warnings: list[str]) -> dict[str, Any]:
    """Writes the sites of a split; see :data:`simulations.benchmarks.base.Prepare`.

    Args:
        folder: Where the sites go.
        split: Which split.
        samples: What a reader returned.
        sites: Names of the training sites.
        warnings: What is to be said beside the warnings of the samples.
    """
    said = write_sites(
        samples,
        folder,
        seed=split.seed,
        sites=sites,
        masked=split.masked,
        reference=REFERENCE_SHARE if split.reference is None else split.reference,
    )
    return said | {"warnings": [*warnings, *said["warnings"]]}


def of_final_seed(write_twin: Callable[..., object]) -> Callable[[Path], object]:
    """Returns what writes the twin of the benchmark's tables."""
    return lambda root: write_twin(root, seed=twins.FINAL_SEED)


def prepare(folder: Path, split: Split) -> dict[str, Any]:
    """Writes the groups of actors; see :data:`simulations.benchmarks.base.Prepare`."""
    root, warnings = official_or_twin(cremad.FOLDER, folder.parent, of_final_seed(twins.write_cremad), cremad.HOW_TO_GET)
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
    methods=METHODS,
    variants=(None, NEW_ACTORS),
    metrics=("accuracy", "f1", "auroc"),
    published=NOT_FOUND,
    comparable="That MIND used this set is inferred, and its figures could not be read: ours stand alone.",
    ablations=(
        teachers("one", "one of each", image=["base"], audio=["base"]),
        *POOLED,
        *STANDARD,
        *references(0, 0.05, 0.2),
    ),
)
