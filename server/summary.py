"""``results.json`` of a run: what the sites released, in the schema that benchmarks use too."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from typing import Any

from common.config import Config
from common.data.manifest import REFERENCE_FOLDER
from common.evaluation.predictions import STUDENT
from common.evaluation.results import Results, Row, Weight
from common.messages import code_hash
from common.models.ensemble import build_teacher, read_by
from common.models.student import build_student, parameters_of
from common.task import COMPLETE
from server.checkpoint import RunState

PACKAGES = ("flwr", "torch", "numpy", "pandas", "monai", "pydicom")


def environment() -> dict[str, Any]:
    """Returns versions of what a run stands on."""
    versions = {p: importlib.metadata.version(p) for p in PACKAGES}
    return {"python": platform.python_version(), "platform": platform.platform(), "packages": versions, "code": code_hash()}


def summary(config: Config, state: RunState) -> Results:
    """Returns the results of a run: a row per site, pattern, model and metric.

    No row is pooled over sites: predictions stay in the hospitals, and a mean of AUROCs is not the AUROC of all patients.
    """
    bytes_per_site = {s: float(sum(sum(ways) for ways in phases.values())) for s, phases in state.traffic.items()}
    sizes = {f"teacher:{g}": parameters_of(build_teacher(g, config.task, config.model)) for g in state.teachers()}
    sizes |= {f"teacher:{COMPLETE}": n for name, n in sizes.items() if read_by(name.removeprefix("teacher:")) == COMPLETE}
    sizes[STUDENT] = parameters_of(build_student(config.task, config.model, per_output=config.weights.per_output))
    rows = [
        Row(
            method=r["model"],
            variant=None,
            pattern=r["pattern"],
            split="test",
            site=r["site"],
            fold=None,
            output=None,
            metric=r["metric"],
            mean=r["value"],
            sd=None,
            ci95=None,
            n=r["n"],
            parameters=sizes.get(r["model"]),
            bytes_per_site=bytes_per_site.get(r["site"]),
            published=None,
        )
        for r in state.evaluation
    ]
    weights = [
        Weight(method=STUDENT, seed=config.seed, fold=0, **{k: v for k, v in w.items() if k != "omega"}) for w in state.weights
    ]
    checksums = "".join(s.checksum for _, s in sorted(state.sites.items()))
    return Results(
        schema_version=1,
        benchmark=config.name,
        data="generated" if any(s.data == "generated" for s in state.sites.values()) else "real",
        data_checksum=hashlib.sha256(checksums.encode()).hexdigest(),
        n={name: s.visits for name, s in sorted(state.sites.items())},
        exclusions={name: s.excluded for name, s in sorted(state.sites.items())}
        | ({REFERENCE_FOLDER: state.reference_excluded} if state.reference else {}),
        seeds=[config.seed],
        rows=rows,
        comparisons=[],
        weights=weights,
        environment=environment() | {"withheld": {name: n for name, n in sorted(state.withheld.items()) if n}},
    )
