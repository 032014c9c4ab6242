"""Two regions of the hippocampus in MR scans, four sites: the Medical Segmentation Decathlon's Task04. One modality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.errors import ConsiliumError
from common.evaluation.metrics import REGION_METRICS
from simulations.benchmarks.base import Benchmark, Published, Split
from simulations.datasets import hippocampus
from simulations.datasets.files import data_folder


def prepare(folder: Path, split: Split) -> dict[str, Any]:
    """Writes the four sites; see :data:`simulations.benchmarks.base.Prepare`.

    Raises:
        ConsiliumError: If a reference set is asked for: the protocol has none.
    """
    if split.reference:
        raise ConsiliumError("hippocampus has no reference set: its students learn in refine alone.")
    cases = hippocampus.load(data_folder(hippocampus.FOLDER, hippocampus.HOW_TO_GET))
    return hippocampus.write_sites(cases, folder, seed=split.seed)


NNUNET = "about, other test cases"
ATLAS = "naive Bayes of place and grey value, 52 held-out cases"
BENCHMARK = Benchmark(
    name="hippocampus",
    title="Anterior and posterior hippocampus in MR scans, cases dealt to four sites",
    experiment="hippocampus",
    data="real",
    data_version="Medical Segmentation Decathlon, Task04, its labelled cases",
    task_type="segmentation",
    modalities=("mr",),
    prepare=prepare,
    methods=("student", "teachers", "fedavg", "local", "central"),
    metrics=REGION_METRICS,
    published=(
        Published("atlas, anterior", "dice", 0.782, "measured", ATLAS, output="anterior:dice", n=52),
        Published("atlas, posterior", "dice", 0.753, "measured", ATLAS, output="posterior:dice", n=52),
        Published("nnU-Net, anterior", "dice", 0.90, "second-hand", NNUNET, output="anterior:dice"),
        Published("nnU-Net, posterior", "dice", 0.89, "second-hand", NNUNET, output="posterior:dice"),
    ),
)
