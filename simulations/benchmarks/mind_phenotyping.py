"""Twenty-five conditions of an intensive-care stay from its series and an X-ray: MIND's multilabel task, MIMIC-IV, MIMIC-CXR."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simulations.benchmarks import mind_mortality
from simulations.benchmarks.base import AT_ONE_PLACE_TOO, Benchmark, Published, Split
from simulations.benchmarks.mind_mortality import NOT_READABLE, PARTIAL


def prepare(folder: Path, split: Split) -> dict[str, Any]:
    """Writes the care units; see :data:`simulations.benchmarks.base.Prepare`."""
    return mind_mortality.prepare(folder, split, "phenotyping")


BENCHMARK = Benchmark(
    name="mind-phenotyping",
    title="25 conditions of a stay in intensive care: charted series, chest X-ray; care units as sites",
    experiment="mind-phenotyping",
    data="real",
    data_version=mind_mortality.DATA_VERSION,
    task_type="multilabel",
    modalities=("cxr", "series"),
    prepare=prepare,
    methods=AT_ONE_PLACE_TOO,
    variants=(None, PARTIAL),
    metrics=("auroc", "auprc"),
    published=(
        Published("MIND", "auroc", None, "not found", NOT_READABLE),
        Published("MIND", "auprc", None, "not found", NOT_READABLE),
    ),
    comparable="MIND's own figures could not be read: ours stand alone.",
    ablations=mind_mortality.ABLATIONS,
)
