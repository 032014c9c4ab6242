"""The formats of a benchmark run on disk: the cells that go in, ``results.json`` that comes out.

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
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import ConsiliumError
from common.evaluation.metrics import as_matrices

COLUMNS = ("site", "row", "patient", "pattern", "model", "output", "score", "label")
PACKAGES = ("flwr", "torch", "torchmetrics", "numpy", "pandas", "scikit-learn", "scipy", "opacus")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Row(_Strict):
    """One metric of one method on one pattern; pooled over sites, folds and outputs where these are None.

    ``published`` holds the evidence mark and the source of a figure that others reported.
    """

    method: str
    variant: str | None
    pattern: str
    split: str
    site: str | None
    fold: int | None
    output: str | None
    metric: str
    mean: float | None
    sd: float | None
    ci95: tuple[float, float] | None
    n: int | None
    parameters: int | None
    bytes_per_site: float | None
    published: str | None


class Comparison(_Strict):
    """``difference`` = a - b on the same patients, with the interval of the difference."""

    a: str
    b: str
    variant: str | None
    pattern: str
    split: str
    output: str | None
    metric: str
    difference: float
    ci95: tuple[float, float]


class Weight(_Strict):
    """The importance of one modality at one moment of one cell; output None is the mean over outputs."""

    method: str
    seed: int
    fold: int
    phase: str
    round: int
    step: int
    output: str | None
    modality: str
    value: float


class Results(_Strict):
    """The whole of ``results.json``."""

    schema_version: Literal[1]
    benchmark: str
    data: Literal["real", "generated"]
    data_checksum: str
    n: dict[str, Any]
    exclusions: dict[str, int]
    seeds: list[int]
    rows: list[Row]
    comparisons: list[Comparison]
    weights: list[Weight]
    environment: dict[str, Any]


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
    """

    method: str
    seed: int
    fold: int
    parameters: int | None
    bytes_per_site: Mapping[str, int]
    weights: Sequence[Mapping[str, Any]]
    curves: Sequence[Mapping[str, Any]]
    predictions: pd.DataFrame


def load_cell(folder: Path) -> Cell:
    """Reads a finished cell and checks its predictions.

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
        as_matrices("multilabel", frame[["score"]].to_numpy(), frame[["label"]].to_numpy())
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
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConsiliumError(f"{folder.name}: predictions that cannot be used ({error}).") from None


def load_results(path: Path) -> Results:
    """Reads and validates a ``results.json``.

    Raises:
        ConsiliumError: If it is missing or does not fit the schema.
    """
    try:
        return Results.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError:
        raise ConsiliumError(f"There is no {path}. Run the benchmark first, or name another run with --run.") from None
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise ConsiliumError(f"{path} does not fit the schema of results: {where}: {fault['msg']}.") from None


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
