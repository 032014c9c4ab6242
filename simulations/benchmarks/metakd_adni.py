"""Normal, mild cognitive impairment or Alzheimer's disease from four modalities: MetaKD's ADNI, its cohort phases as sites.

The protocol is Flex-MoE's, which MetaKD uses, but for the images: see ``simulations.datasets.adni.tables``. How the published
means were taken over the 15 combinations of modalities (on which subjects each, one network or several) could not be read.
``central`` and ``metakd-faithful`` are the centralised protocol.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simulations.ablations import POOLED, STANDARD, Ablation, references, teachers
from simulations.benchmarks.base import MEAN_OF_PATTERNS, Benchmark, Published, Split
from simulations.datasets.adni import sites

DATA_VERSION = "ADNI, tables and genotypes in Flex-MoE's layout; a generated twin where they are not there"
METAKD = "MetaKD (arXiv 2405.07155v2), as a third party tells its Table 2"


def prepare(folder: Path, split: Split) -> dict[str, Any]:
    """Writes the cohort phases, of ADNI or of its twin; see :data:`simulations.benchmarks.base.Prepare`."""
    root, warnings = sites.official_or_twin(folder.parent)
    share = sites.REFERENCE_SHARE if split.reference is None else split.reference
    said = sites.write_sites(sites.load(root), folder, seed=split.seed, reference=share)
    return said | {"warnings": [*warnings, *said["warnings"]]}


def _published(method: str, accuracy: float, f1: float) -> tuple[Published, ...]:
    figures = {"accuracy": accuracy, "f1": f1}
    return tuple(Published(method, m, v, "second-hand", METAKD, pattern=MEAN_OF_PATTERNS) for m, v in figures.items())


BENCHMARK = Benchmark(
    name="metakd-adni",
    title="Normal, mild impairment or Alzheimer's disease: biospecimen, clinical, genomic, imaging; ADNI's phases as sites",
    experiment="metakd-adni",
    data="real",
    data_version=DATA_VERSION,
    task_type="multiclass",
    modalities=("biospecimen", "clinical", "genomic", "imaging"),
    prepare=prepare,
    # Nothing is taken from a site: subjects lack modalities as they do in ADNI, so that there is no `central-full`.
    methods=(
        "student", "teachers", "student-uniform", "student-metakd", "student-no-kd", "metakd-faithful", "fedavg",
        "local", "central",
    ),
    metrics=("accuracy", "f1", "auroc"),
    published=(*_published("MetaKD", 0.6283, 0.4464), *_published("Flex-MoE", 0.5871, 0.4042)),
    comparable=(
        "Not on equal terms even on ADNI itself: the published protocol reads imaging as whole maps of grey matter (MUSE/RAVENS, "
        "91x109x91) by a 3-D network, ours as FreeSurfer's table of regions, which that code took up in June 2025 only; the "
        "official split is not published, genotypes enter as principal components, medications are left out because they name "
        "the disease, and how the published mean was taken could not be read. Ours is the mean of fifteen "
        "combinations' means over seeds, each of the subjects who have it, and has no spread."
    ),
    ablations=(
        teachers("one", "linear", table=["linear"]),
        Ablation("student-late", "fusion", "late", ("model.fusion=late",)),
        *POOLED,
        *STANDARD,
        *references(0, 0.05, 0.2),
    ),
)  # fmt: skip
