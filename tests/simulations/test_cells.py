"""Cells of real methods, on two generated hospitals and with short training."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from common.arrays import read_arrays
from server.record import Record
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
    cell = load_cell(work.cell(job), "binary")
    assert (cell.method, cell.seed, cell.fold) == (method, 0, 0)
    assert set(cell.predictions["site"]) == {"alder", "birch"}
    assert cell.curves and max(max(c["round"], c.get("step", 0)) for c in cell.curves) <= 2
    phases = {c["phase"] for c in cell.curves}
    assert ("refining" in phases) == method.startswith("student")


def run(work: Work, method: str) -> Path:
    """Runs a cell; returns its folder."""
    job = Job(method, 0, 0)
    work.run(job)
    assert work.fault(job) is None
    return work.cell(job)


def events(cell: Path) -> list[str]:
    return [event["event"] for event in Record(cell / "run").events()]


def test_a_cell_begins_behind_the_teach_phase_of_another_and_ends_as_if_it_had_taught(work: Work, tmp_path: Path) -> None:
    work = replace(work, folder=shutil.copytree(work.folder / "sites", tmp_path / "sites").parent)
    alone = run(work, "student-no-kd").rename(tmp_path / "alone")
    run(work, "student")
    after = run(work, "student-no-kd")
    assert "taught" not in events(alone)
    assert events(after)[:2] == ["taught", "resumed"] and Record(after / "run").events("taught")[0]["by"] == "student-0-0"
    assert not [e for e in Record(after / "run").events("round") if e["phase"] == "teach"]
    files = sorted(f.relative_to(alone) for f in alone.rglob("*.safetensors"))
    assert len(files) > 10 and files == sorted(f.relative_to(after) for f in after.rglob("*.safetensors"))
    for file in files:
        ours, theirs = ({n: (a.dtype, a.tobytes()) for n, a in read_arrays(cell / file).items()} for cell in (after, alone))
        assert ours == theirs, file
    # The bytes of teach are those of the cell that taught: its configuration is some letters longer or shorter.
    dropped = {"seconds": 0, "bytes_per_site": 0, "traffic": 0}
    for name in ("cell.json", "run/state.json", "run/config.json"):
        ours, theirs = (json.loads((cell / name).read_text()) | dropped for cell in (after, alone))
        assert ours == theirs, name
    for site, phases in json.loads((after / "run" / "traffic.json").read_text()).items():
        theirs = json.loads((alone / "run" / "traffic.json").read_text())[site]
        assert phases.pop("teach") == pytest.approx(theirs.pop("teach"), rel=1e-2)
        theirs.pop("enrol")
        assert {p: b for p, b in phases.items() if p != "enrol"} == theirs
    pd.testing.assert_frame_equal(*(pd.read_parquet(cell / "predictions.parquet") for cell in (after, alone)))


def test_a_cell_teaches_itself_if_the_other_learned_otherwise_or_from_other_files(tmp_path: Path) -> None:
    other = replace(TINY, overrides={"teachers": ("teach.epochs=2",)})
    work = Work(other, tmp_path, None, "inproc", True, None)
    work.prepare(Job("student", 0, 0).split)
    run(work, "teachers")
    assert events(run(work, "student"))[0] == "started"
    work.prepare(Job("student", 0, 0).split)
    assert events(run(work, "student-uniform"))[0] == "started"
