"""The cells of a benchmark run on disk, and what they stand on.

A cell is one (method, seed, fold). ``predictions.parquet`` holds one line per test row, pattern, model and output; ``cell.json``
says what it cost and how it went, and is written last.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from common.errors import ConsiliumError
from common.evaluation.metrics import check_predictions
from common.task import TaskType

COLUMNS = ("site", "row", "patient", "pattern", "model", "output", "score", "label")
PACKAGES = ("flwr", "torch", "torchmetrics", "numpy", "pandas", "scikit-learn", "scipy", "opacus")


@dataclass(frozen=True)
class Cell:
    """A finished cell.

    Attributes:
        method: Name of the method.
        seed: Its seed.
        fold: Its test fold.
        parameters: Parameters of what predicts.
        bytes_per_site: Site -> bytes that it sent and received.
        weights: Modality weights over time.
        curves: Losses over time: phase, round, group, split, loss.
        predictions: One line per test row, pattern, model and output.
        seconds: That it took.
        excluded: Visits that were left out when sites and reference set opened their files.
    """

    method: str
    seed: int
    fold: int
    parameters: int | None
    bytes_per_site: Mapping[str, int]
    weights: Sequence[Mapping[str, Any]]
    curves: Sequence[Mapping[str, Any]]
    predictions: pd.DataFrame
    seconds: float = 0.0
    excluded: int = 0


def load_cell(folder: Path, task_type: TaskType) -> Cell:
    """Reads a finished cell and checks its predictions, probabilities or the numbers of a regression.

    Raises:
        ConsiliumError: If the cell is not finished, or its predictions are missing or no predictions.
    """
    try:
        said = json.loads((folder / "cell.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConsiliumError(f"{folder.name}: no readable cell.json. Run the benchmark again; it resumes.") from None
    if said.get("status") != "finished":
        raise ConsiliumError(f"{folder.name}: {said.get('reason', 'not finished')}")
    try:
        frame = pd.read_parquet(folder / "predictions.parquet")
        missing = sorted(set(COLUMNS) - set(frame.columns))
        if missing or frame.empty:
            raise ValueError(f"no rows, or no column {', '.join(missing)}")
        check_predictions(task_type, frame["score"].to_numpy(), frame["label"].to_numpy())
        if frame.duplicated(["site", "row", "pattern", "model", "output"]).any():
            raise ValueError("a row is predicted twice")
        return Cell(
            said["method"],
            int(said["seed"]),
            int(said["fold"]),
            said.get("parameters"),
            said.get("bytes_per_site") or {},
            said.get("weights") or [],
            said.get("curves") or [],
            frame,
            float(said.get("seconds", 0.0)),
            int(said.get("excluded", 0)),
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConsiliumError(f"{folder.name}: predictions that cannot be used ({error}).") from None


def environment() -> dict[str, Any]:
    """Returns what the run stands on: Python, platform, package versions, processors and, in a checkout, the git commit."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": versions,
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """Returns the commit of this checkout, with ``-dirty`` if files differ; None where this file is not under git."""
    git, here = shutil.which("git"), Path(__file__).resolve()
    if git is None:
        return None
    for arguments in (
        ["ls-files", "--error-unmatch", here.name],
        ["describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
    ):
        answer = subprocess.run([git, *arguments], cwd=here.parent, capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            return None
    return answer.stdout.strip()
