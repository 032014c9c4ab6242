"""What the benchmarks on BraTS and on its twin share: methods, ablations, and the sites of a year."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from common.errors import ConsiliumError
from common.evaluation.metrics import REGION_METRICS
from simulations.ablations import Ablation, standard, teachers
from simulations.benchmarks.base import Benchmark, Published, Split
from simulations.datasets import brats
from simulations.datasets.files import data_folder, differs

METHODS = (
    "student", "teachers", "student-uniform", "student-no-kd", "metakd-faithful", "central-zero", "fedavg", "local", "central",
    "central-full",
)  # fmt: skip
ABLATIONS = (
    teachers("large", "one, larger", volume=["base"]),
    teachers("two", "two, the larger one too", volume=["small", "base"]),
    Ablation("student-weighted", "fusion", "weighted, one mean of the maps", ("model.fusion=weighted",)),
    Ablation("student-late", "fusion", "late, logits alone", ("model.fusion=late",)),
    *standard("student-no-pairwise", "student-ratio", "student-uniform", "student-metakd"),
    Ablation("student-one-row", "modality weights", "one row for all regions", ("weights.per_output=false",)),
    *standard("student-dropout-batch", "student-no-scale", "student-no-refine"),
)
EPOCHS, LOCAL_EPOCHS = 60, 2
"""Of what trains in one phase alone, ``metakd-faithful`` among it; those between two averages (``refine.epochs``)."""


CASES = {2018: 285, 2019: 335, 2020: 369}
"""Of the training data, as the organisers of each year count them."""


def home_of(year: int | str) -> tuple[str, str]:
    """Returns the folder of a year below ``CONSILIUM_DATA``, and where its data are to be had."""
    place = f"brats{year}"
    return place, (
        f"Register with the organisers of BraTS {year} (Synapse or CBICA's portal), and unpack its training data into a folder "
        f"'{place}' where CONSILIUM_DATA points. Without access: consilium-bench run brain-twin, generated cases in that layout."
    )


def prepare(folder: Path, split: Split, year: int) -> dict[str, Any]:
    """Writes the clients and the reference set of a year; see :data:`simulations.benchmarks.base.Prepare`.

    Raises:
        ConsiliumError: If the data are not there, or another reference set is asked for.
    """
    refuse_another_reference(split)
    needs = home_of(year)
    cases = brats.load(data_folder(*needs), needs[1])
    said = brats.write_sites(cases, folder, seed=split.seed, masked=split.masked)
    found = len(cases.frame) + cases.exclusions.get(brats.UNLISTED, 0)
    if cases.data == "real" and (told := differs("Training cases", [found], [CASES[year]], f"BraTS {year}")):
        said["warnings"] = [f"{told} Unpack all of its training data there, and nothing else.", *said["warnings"]]
    return said


def of_year(year: int, published: tuple[Published, ...], comparable: str) -> Benchmark:
    """Returns the benchmark on the training data of a year, which only its organisers give away.

    Args:
        year: 2018, 2019 or 2020.
        published: Figures of others.
        comparable: As of :class:`simulations.benchmarks.base.Benchmark`.
    """
    return Benchmark(
        name=f"metakd-brats{year}",
        title=f"Whole tumour, core and enhancing tumour from one to four MR modalities, BraTS {year}; institutions as sites",
        experiment="metakd-brats",
        data="real",
        data_version=f"BraTS {year}, training data",
        task_type="segmentation",
        modalities=brats.MODALITIES,
        prepare=partial(prepare, year=year),
        needs=home_of(year),
        methods=METHODS,
        overrides=of_one_phase(EPOCHS, LOCAL_EPOCHS),
        metrics=REGION_METRICS,
        ablations=ABLATIONS,
        published=published,
        comparable=comparable,
    )


def of_one_phase(epochs: int, between: int) -> dict[str, tuple[str, ...]]:
    """Returns the overrides with which every method that trains in one phase alone sees its cases as often.

    Args:
        epochs: How often.
        between: Epochs between two averages of ``fedavg``.
    """
    return at_one_place(epochs) | {"fedavg": (f"refine.rounds={epochs // between}",)}


def at_one_place(epochs: int, *more: str) -> dict[str, tuple[str, ...]]:
    """Returns the overrides with which every method that trains at one place sees its cases as often; ``more`` for each."""
    methods = ("local", "central", "central-full", "central-zero", "metakd-faithful")
    return dict.fromkeys(methods, (f"distill.epochs={epochs}", *more))


def refuse_another_reference(split: Split) -> None:
    """Refuses a reference set of a wanted size.

    Raises:
        ConsiliumError: If the split asks for one.
    """
    if split.reference is not None:
        raise ConsiliumError("The reference set of BraTS is one institution: there is no other share of it.")
