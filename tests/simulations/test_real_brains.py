"""Two real patients with a brain tumour (Medical Segmentation Decathlon, Task01, partly covered scans): the path from four MR
modalities to regions with any of them missing. A smoke test: two patients are no benchmark."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from common.config import Config, load_config
from common.evaluation.predictions import predict_patterns
from common.task import pattern_name, patterns
from simulations.baselines import central, open_consortium
from simulations.datasets import brats
from simulations.datasets.files import write_site

FILE = Path("msd_task01_partial") / "msd_task01_2cases.npz"
CASES = ("BRATS_009", "BRATS_119")
OF_BRATS = np.array([0, 2, 1, 4])
"""The Decathlon's values of a mask -> those of BraTS: oedema, core, enhancing tumour."""
GRID, SPACING = [72, 88, 28], [2.0, 2.0, 2.0]
"""Voxels of 2 mm into which both patients fit."""


@pytest.fixture(scope="module")
def sites(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (data_root / FILE).is_file():
        pytest.skip(f"CONSILIUM_DATA holds no {FILE}")
    root = tmp_path_factory.mktemp("brains")
    with np.load(data_root / FILE) as found:
        for case, split in ((c, s) for c in CASES for s in ("train", "test")):
            site = root / f"{case.lower().replace('_', '-')}-{split}"
            table = pd.DataFrame({"patient": ["one"], "visit": ["one"], "split": [split]})
            values = found[f"{case}_label"]
            covered = values != 255
            parts = dict(zip(brats.MODALITIES, found[f"{case}_image"], strict=True))
            parts["seg"] = OF_BRATS[np.where(covered, values, 0)].astype(np.int16)
            images = {}
            for part, voxels in parts.items():
                table[part] = f"scans/{part}.nii.gz"
                images[table[part][0]] = nibabel.Nifti1Image((voxels * covered).astype(np.int16), np.eye(4))
            kinds = {m: {"kind": "volume", "column": m} for m in brats.MODALITIES}
            write_site(site, table, {"labels": {"mask": "seg"}, "split": "split", "modalities": kinds}, {})
            (site / "scans").mkdir()
            for name, image in images.items():
                nibabel.save(image, site / name)
    return root


def configured() -> Config:
    grid = [f"task.modalities.{m}.voxels={GRID}" for m in brats.MODALITIES]
    grid += [f"+task.modalities.{m}.spacing_mm={SPACING}" for m in brats.MODALITIES]
    return load_config("brain-twin", [*grid, "model.patch=[32,32,28]", "distill.epochs=100"])


def test_a_student_finds_the_tumours_that_it_learned_with_any_modality_missing(sites: Path) -> None:
    consortium = open_consortium(sites, configured())
    assert not any(c.findings for c in (*consortium.training.values(), *consortium.testing.values()))
    trained = central(consortium)
    said = pd.concat(
        predict_patterns(cohort, [trained.speaker(site)[0]], trained.speaker(site)[1])
        for site, cohort in consortium.testing.items()
    )
    dice = said.pivot_table(index="pattern", columns="output", values="score")[["wt:dice", "tc:dice", "et:dice"]]
    assert set(dice.index) == {"all", *(pattern_name(p) for p in patterns(list(brats.MODALITIES)))}
    print(dice.round(2).to_string())
    whole = dice["wt:dice"]
    assert whole["all"] > 0.7
    assert whole.drop("t1").min() > 0.3, "T1 alone hardly shows oedema"
