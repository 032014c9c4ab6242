"""Two regions of the hippocampus in MR scans, four sites: the Medical Segmentation Decathlon's Task04. One modality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.evaluation.metrics import REGION_METRICS
from simulations.ablations import standard, teachers
from simulations.benchmarks.base import Benchmark, Published, Split, refuse_reference
from simulations.datasets import hippocampus
from simulations.datasets.files import data_folder

NEEDS = (hippocampus.FOLDER, hippocampus.HOW_TO_GET)


def prepare(folder: Path, split: Split) -> dict[str, Any]:
    """Writes the four sites; see :data:`simulations.benchmarks.base.Prepare`.

    Raises:
        ConsiliumError: If a reference set is asked for: the protocol has none.
    """
    refuse_reference("hippocampus", split)
    cases = hippocampus.load(data_folder(*NEEDS))
    return hippocampus.write_sites(cases, folder, seed=split.seed)


BENCHMARK = Benchmark(
    name="hippocampus",
    title="Anterior and posterior hippocampus in MR scans, cases dealt to four sites",
    experiment="hippocampus",
    data="real",
    data_version="Medical Segmentation Decathlon, Task04, its labelled cases",
    task_type="segmentation",
    modalities=("mr",),
    prepare=prepare,
    needs=NEEDS,
    methods=("student", "teachers", "fedavg", "local", "central"),
    metrics=REGION_METRICS,
    published=(
        Published("atlas of place and grey value, naive Bayes", "dice", 0.7675, "measured", "mean of .782 and .753", n=52),
        Published("nnU-Net", "dice", 0.895, "second-hand", "mean of about .90 and .89, other cases; source not read"),
    ),
    ablations=(teachers("large", "one, larger", volume=["base"]), *standard("student-no-kd")),
)
