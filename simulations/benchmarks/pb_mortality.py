"""Death in hospital from X-ray, history of present illness and table: the pooled-bottleneck paper's task on MIMIC-IV.

The paper's cohort, split, encoders and list of laboratory values could not be read. Here the cohort, split and sites are those of
``mind-mortality``: stays of 48 h at least with an X-ray within them. Its figure therefore stands beside ours for orientation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simulations.ablations import JOINT, STANDARD, Ablation, references, teachers
from simulations.benchmarks import mind_mortality
from simulations.benchmarks.base import AT_ONE_PLACE_TOO, Benchmark, Published, Split
from simulations.benchmarks.mind_mortality import PARTIAL

ABSTRACT = "Wang et al., CMPB 2025, abstract; cohort and prevalence not readable"
UNRELIABLE = "a file on GitHub that is unreliable: it gives TriMF's other figure to another method too; JBI 2025 was not readable"


def prepare(folder: Path, split: Split) -> dict[str, Any]:
    """Writes the care units; see :data:`simulations.benchmarks.base.Prepare`."""
    return mind_mortality.prepare(folder, split, "admission")


BENCHMARK = Benchmark(
    name="pb-mortality",
    title="Death in hospital: chest X-ray, history of present illness, demographics and laboratory values; care units as sites",
    experiment="pb-mortality",
    data="real",
    data_version=f"MIMIC-IV-Note beside {mind_mortality.DATA_VERSION}",
    task_type="binary",
    modalities=("cxr", "table", "text"),
    prepare=prepare,
    methods=AT_ONE_PLACE_TOO,
    variants=(None, PARTIAL),
    published=(
        Published("pooled bottleneck + KD + gradient modulation", "auroc", 0.886, "published", ABSTRACT),
        Published("pooled bottleneck + KD + gradient modulation", "auprc", 0.459, "published", ABSTRACT),
        Published("TriMF (radiology report instead of history)", "auroc", 0.816, "second-hand", UNRELIABLE),
        *mind_mortality.fusemoe("vitals, radiology notes and X-ray", 0.8387, 0.4536),
    ),
    comparable=(
        "For orientation only: the paper's cohort, prevalence and split could not be read, its AUPRC means nothing without the "
        "prevalence, and TriMF and FuseMoE read other notes of other stays, FuseMoE series instead of the table."
    ),
    ablations=(
        JOINT,
        Ablation("student-late", "fusion", "late", ("model.fusion=late",)),
        Ablation("student-no-complete", "teacher of complete visits", "none", ("model.complete=null",)),
        Ablation("student-no-modulation", "gradient modulation", "off", ("balance=none",)),
        teachers("one", "one of each", image=["small"], table=["linear"], text=["linear"]),
        *STANDARD,
        *references(0, 0.05, 0.2),
    ),
)
