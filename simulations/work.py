"""What the cells of a benchmark run share, and where they lie."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.arrays import write_json
from common.errors import ConsiliumError
from server import record
from simulations.benchmarks.base import Benchmark, Split
from simulations.finished import load_cell

UNMASKED = ("central-full",)
"""Methods that see every modality of every training patient."""

RUN_FOLDER = "run"


@dataclass(frozen=True)
class Job:
    """One cell to run."""

    method: str
    seed: int
    fold: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.method}-{self.seed}-{self.fold}"


RunCell = Callable[["Work", Job], None]
"""``run_cell(work, job)`` writes a cell, ``cell.json`` last."""


@dataclass(frozen=True)
class Work:
    """What all cells of a run share, and where they lie.

    Attributes:
        benchmark: What is run.
        folder: The run directory.
        variant: Variant of the benchmark.
        runtime: ``inproc`` or ``flwr``.
        debug: Whether training is cut short.
        run_cell: Runs one cell; ``simulations.cells.run_cell`` if None.
    """

    benchmark: Benchmark
    folder: Path
    variant: str | None
    runtime: str
    debug: bool
    run_cell: RunCell | None

    def split(self, job: Job) -> Split:
        """Returns which sites a cell opens."""
        ablation = self.benchmark.ablation(job.method)
        reference = ablation.reference if ablation else None
        return Split(job.seed, job.fold, self.variant, job.method not in UNMASKED, reference)

    def cell(self, job: Job) -> Path:
        """Returns the folder of a cell."""
        return self.folder / "cells" / job.name

    def record(self, job: Job) -> Path:
        """Returns where a cell that is a run of the five phases records what happens."""
        return self.cell(job) / RUN_FOLDER / record.FILE_NAME

    def sites(self, split: Split) -> Path:
        """Returns the folder of the sites of a split."""
        return self.folder / "sites" / split.name

    def prepared(self, split: Split) -> dict[str, Any]:
        """Returns what ``prepare`` said of a split."""
        said: dict[str, Any] = json.loads(self._prepared_file(split).read_text(encoding="utf-8"))
        return said

    def fault(self, job: Job) -> str | None:
        """Returns why a cell is not finished; None if it is."""
        try:
            load_cell(self.cell(job), self.benchmark.task_type)
        except ConsiliumError as error:
            return str(error)
        return None

    def prepare(self, split: Split) -> None:
        """Writes the sites of a split anew."""
        shutil.rmtree(self.sites(split), ignore_errors=True)
        self.sites(split).parent.mkdir(parents=True, exist_ok=True)
        said = self.benchmark.prepare(self.sites(split), split)
        self._prepared_file(split).parent.mkdir(exist_ok=True)
        write_json(self._prepared_file(split), said)

    def record_failure(self, job: Job, reason: str) -> None:
        """Writes that a cell failed, and why."""
        self.cell(job).mkdir(parents=True, exist_ok=True)
        write_json(self.cell(job) / "cell.json", self.head(job) | {"status": "failed", "reason": reason})

    def head(self, job: Job) -> dict[str, Any]:
        """Returns what every ``cell.json`` begins with."""
        return {"method": job.method, "seed": job.seed, "fold": job.fold, "variant": self.variant}

    def _prepared_file(self, split: Split) -> Path:
        return self.folder / "prepared" / f"{split.name}.json"
