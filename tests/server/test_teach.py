"""Phase 2: when the reference set teaches too, and what is kept of the teachers before."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.arrays import Arrays
from server import checkpoint
from simulations.inproc import run_inproc

ONLY_TEACH = ("distill.epochs=0", "refine.rounds=0", "weights.steps=0")


def taught(sites: Path, folder: Path, *overrides: str) -> checkpoint.RunState:
    run_inproc(sites=sites, run_dir=folder, experiment="tiny", overrides=[*ONLY_TEACH, *overrides])
    return checkpoint.load(folder)


def same(a: dict[str, Arrays], b: dict[str, Arrays]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[g][k], b[g][k]) for g in a for k in a[g])


def test_the_teachers_from_before_the_reference_set_are_kept(tiny: Path, tmp_path: Path) -> None:
    alone = taught(tiny, tmp_path / "alone", "teach.rounds=1")
    joined = taught(tiny, tmp_path / "joined", "teach.rounds=2", "teach.reference_share=0.5")
    assert same(alone.teachers(), joined.teachers(unseeing=True))
    assert not same(joined.teachers(), joined.teachers(unseeing=True))


def test_the_reference_set_moves_teachers_only_in_its_share_of_the_rounds(tiny: Path, tmp_path: Path) -> None:
    never = taught(tiny, tmp_path / "never", "teach.rounds=2", "teach.reference_share=0")
    unused = taught(
        tiny, tmp_path / "unused", "teach.rounds=2", "teach.reference_share=0.9", "distill.reference=false", "refine.rounds=1"
    )
    joined = taught(tiny, tmp_path / "joined", "teach.rounds=2", "teach.reference_share=0.5")
    assert same(never.teachers(), never.teachers(unseeing=True))
    assert same(unused.teachers(), unused.teachers(unseeing=True))
    assert not same(never.teachers(), joined.teachers())
