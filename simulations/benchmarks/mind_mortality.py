"""Death in hospital from 48 h of intensive care and an X-ray: MIND's binary task, MIMIC-IV and MIMIC-CXR, care units as sites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simulations.ablations import PLAIN_SERIES, POOLED, STANDARD, references, teachers
from simulations.benchmarks.base import AT_ONE_PLACE_TOO, Benchmark, Published, Split
from simulations.datasets.mimic import sites

PARTIAL = "partial"
DATA_VERSION = "MIMIC-IV and MIMIC-CXR-JPG in MedFuse's extraction; a generated twin where they are not there"
MEDFUSE = "MedFuse, Tables 2-3 as quoted by PyHealth; cohort with X-rays after 48 h"
FUSEMOE = (
    "FuseMoE (NeurIPS 2024), row of {}: other stays of 48 h, a quarter with an X-ray; whether all are tested is not told, and "
    "death is worded both as in hospital and as in the ICU"
)
NOT_READABLE = "MIND (TMLR 2025): only its abstract could be read"
ABLATIONS = (
    PLAIN_SERIES,
    teachers("one", "one of each", image=["small"], series=["trend"]),
    *POOLED,
    *STANDARD,
    *references(0, 0.05, 0.2),
)


def prepare(folder: Path, split: Split, cohort: sites.Cohort = "mortality") -> dict[str, Any]:
    """Writes the care units, of MIMIC or of its twin; see :data:`simulations.benchmarks.base.Prepare`."""
    root, warnings = sites.official_or_twin(folder.parent)
    said = sites.write_sites(
        sites.load(root, cohort),
        folder,
        seed=split.seed,
        paired=split.variant != PARTIAL,
        masked=split.masked,
        reference=sites.REFERENCE_SHARE if split.reference is None else split.reference,
    )
    return said | {"warnings": [*warnings, *said["warnings"]]}


def _medfuse(method: str, auroc: float, auprc: float, n: int, variant: str | None = None) -> tuple[Published, ...]:
    figures = {"auroc": auroc, "auprc": auprc}
    return tuple(Published(method, m, v, "second-hand", MEDFUSE, n=n, variant=variant) for m, v in figures.items())


def fusemoe(modalities: str, auroc: float, f1: float) -> tuple[Published, ...]:
    """Returns what FuseMoE reports of death from 48 h and some of its modalities."""
    figures, source = {"auroc": auroc, "f1": f1}, FUSEMOE.format(modalities)
    return tuple(Published(f"FuseMoE ({modalities})", m, v, "published", source) for m, v in figures.items())


BENCHMARK = Benchmark(
    name="mind-mortality",
    title="Death in hospital from the first 48 h in intensive care: charted series, chest X-ray; care units as sites",
    experiment="mind-mortality",
    data="real",
    data_version=DATA_VERSION,
    task_type="binary",
    modalities=("cxr", "series"),
    prepare=prepare,
    methods=AT_ONE_PLACE_TOO,
    variants=(None, PARTIAL),
    published=(
        Published("MIND", "auroc", None, "not found", NOT_READABLE),
        Published("MIND", "auprc", None, "not found", NOT_READABLE),
        *_medfuse("MedFuse (optimal)", 0.865, 0.594, 1373),
        *_medfuse("Unified (Hayat 2021)", 0.835, 0.495, 1373),
        *_medfuse("MedFuse (optimal)", 0.874, 0.567, 5243, PARTIAL),
        *fusemoe("vitals and X-ray", 0.8297, 0.4748),
    ),
    comparable=(
        "MIND's own figures could not be read; those of MedFuse are of the same extraction and task, second-hand, centralised, "
        "and of a cohort that counts X-rays taken after the 48 hours too; FuseMoE's are of other stays, for orientation only."
    ),
    ablations=ABLATIONS,
)
