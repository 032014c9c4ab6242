"""What MIND's multi-class benchmarks share: where a set lies, how its sites are written, what is known of MIND's figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from simulations.benchmarks.base import Published, Split
from simulations.datasets.files import official_or_twin
from simulations.datasets.mind.sites import REFERENCE_SHARE, Samples, write_sites
from simulations.datasets.mind.twins import FINAL_SEED

INFERRED = "MIND (TMLR 2025): only its abstract could be read; that this is one of its sets is inferred"
NOT_FOUND = (Published("MIND", "accuracy", None, "not found", INFERRED),)
COMPARABLE = "That MIND used this set is inferred, and its figures could not be read: ours stand alone."


def find(folder: Path, name: str, how_to_get: str, write_twin: Callable[..., object]) -> tuple[Path, list[str]]:
    """Returns where a set lies, or the twin of the benchmark's tables; see :func:`simulations.datasets.files.official_or_twin`.

    Args:
        folder: Where the sites of a split go; the twin is written beside it.
        name: Folder of the set below ``CONSILIUM_DATA``.
        how_to_get: Where the real one comes from.
        write_twin: Writes the twin with a ``seed``.
    """
    return official_or_twin(name, folder.parent, lambda root: write_twin(root, seed=FINAL_SEED), how_to_get)


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
