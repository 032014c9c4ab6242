"""The schema of ``results.json``: what a run or a benchmark found, for people and programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import ConsiliumError

FILE_NAME = "results.json"


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


def load_results(path: Path) -> Results:
    """Reads and validates a ``results.json``.

    Raises:
        ConsiliumError: If it is missing or does not fit the schema.
    """
    try:
        return Results.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError:
        raise ConsiliumError(f"There is no {path}. Run the benchmark first, or name another run directory.") from None
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise ConsiliumError(f"{path} does not fit the schema of results: {where}: {fault['msg']}.") from None
