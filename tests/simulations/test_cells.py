"""Cells of real methods, on two generated hospitals and with short training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simulations.benchmarks.base import Benchmark
from simulations.cells import methods
from simulations.consortium import write_tiny
from simulations.results import load_cell
from simulations.workers import Job, Work


def prepare(folder: Path, seed: int, fold: int, variant: str | None, masked: bool) -> dict[str, Any]:
    write_tiny(folder)
    return {"n": {}, "exclusions": {}, "data_checksum": ""}


TINY = Benchmark("tiny", "two hospitals", "tiny", "generated", "tiny consortium", "binary", (), prepare, tuple(methods()))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """A run directory whose sites are prepared."""
    work = Work(TINY, tmp_path_factory.mktemp("tiny"), None, "inproc", True, None)
    for split in {Job(method, 0, 0).split for method in methods()}:
        work.prepare(split)
    return work


@pytest.mark.parametrize("method", methods())
def test_every_method_can_be_tried_with_short_training(work: Work, method: str) -> None:
    job = Job(method, 0, 0)
    work.run(job)
    cell = load_cell(work.cell(job))
    assert (cell.method, cell.seed, cell.fold) == (method, 0, 0)
    assert set(cell.predictions["site"]) == {"alder", "birch"}
    assert cell.curves and max(max(c["round"], c.get("step", 0)) for c in cell.curves) <= 2
