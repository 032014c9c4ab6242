"""A whole run that finds regions in scans: two modalities, each of which shows one region, at two hospitals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from pydantic import TypeAdapter
from safetensors.numpy import load_file

from client.site import Site
from common.arrays import consilium_of
from common.config import SplitConfig
from common.data.folder import open_cohort
from common.data.manifest import load_manifest
from common.task import Task
from server import checkpoint
from simulations.inproc import run_inproc

EDGE = 16
TASK = {
    "name": "lesions",
    "type": "segmentation",
    "outputs": ["whole", "core"],
    "regions": {"whole": [1, 2], "core": [2]},
    "modalities": {m: {"kind": "volume", "voxels": [EDGE] * 3} for m in ("flair", "t1ce")},
}
OVERRIDES = [
    "model.width=4", "model.dropout=0.0", "model.fusion=weighted", "model.teachers.volume=[small]", "teach.rounds=3",
    "teach.epochs=3",
    "teach.training.default={optimiser: adamw, lr: 0.01, batch_size: 4}", "refine.rounds=4", "refine.epochs=3",
    "refine.training={optimiser: adamw, lr: 0.01, batch_size: 4}", "distill.labels=1",
    "split={meta: 0.1, validation: 0.0, test: 0.25}",
    "weights=lookahead", "weights.steps=1", "weights.per_output=true", "weights.start=evidence", "weights.guard=false",
    "distill.epochs=9", "distill.training={optimiser: adamw, lr: 0.01, batch_size: 4}",
]  # fmt: skip


def from_task(task: dict[str, Any]) -> Task:
    return TypeAdapter(Task).validate_python(task)


def write_scan(file: Path, values: np.ndarray) -> None:
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), file)


def write_site(folder: Path, seed: int, scans: int = 20) -> None:
    """Every scan has a ball in which ``flair`` is bright, and within it a smaller one in which ``t1ce`` is."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    grid = np.stack(np.meshgrid(*[np.arange(EDGE)] * 3, indexing="ij"), -1)
    rows = []
    for i in range(scans):
        size = (EDGE, EDGE - i % 3, EDGE)
        centre = rng.uniform(5, EDGE - 6, 3)
        apart = np.linalg.norm(grid - centre, axis=-1)[: size[0], : size[1], : size[2]]
        whole, core = apart < 4, apart < 2.2
        row = {"patient": f"p{i}", "visit": f"v{i}", "mask": f"{i}-mask.nii.gz"}
        write_scan(folder / row["mask"], (whole.astype(np.int16) + core))
        for name, region in (("flair", whole), ("t1ce", core)):
            if i % 4 or name == "flair":
                row[name] = f"{i}-{name}.nii.gz"
                write_scan(folder / row[name], (rng.normal(10, 1, size) + 4 * region).astype(np.float32))
        rows.append(row)
    pd.DataFrame(rows).to_csv(folder / "patients.csv", index=False)
    manifest = {
        "schema_version": 1, "site": folder.name, "data": "generated", "patients": "patients.csv", "patient": "patient",
        "visit": "visit", "labels": {"mask": "mask"}, "limits": {"min_count": 1},
        "modalities": {m: {"kind": "volume", "column": m} for m in ("flair", "t1ce")},
    }  # fmt: skip
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("scans")
    for seed, (site, scans) in enumerate({"alder": 20, "birch": 20, "reference": 8}.items()):
        write_site(place / "sites" / site, seed, scans)
    (place / "task.yaml").write_text(yaml.safe_dump(TASK))
    overrides = [f"task_file={place / 'task.yaml'}", *OVERRIDES]
    run_inproc(sites=place / "sites", run_dir=place / "run", experiment="custom", overrides=overrides)
    return place / "run"


def test_student_and_teachers_find_the_regions(run: Path) -> None:
    assert checkpoint.load(run).phase == "finished"
    rows = pd.DataFrame(json.loads((run / "results.json").read_text())["rows"])
    dice = rows[rows["metric"] == "dice"].groupby(["method", "pattern"])["mean"].mean()
    assert dice["student", "all"] > 0.5  # after some 50 steps
    assert dice["student", "flair"] > 0.3
    assert set(rows["metric"]) >= {"dice", "hd95", "nsd", "dice:0", "dice:3"}


def test_scale_bias_and_weights_are_fitted_on_the_reference_scans(run: Path) -> None:
    calibration, omega = consilium_of(load_file(run / "consilium.safetensors"))
    assert not torch.isclose(calibration.scale, torch.ones(2)).any() and calibration.bias.all()
    first = pd.DataFrame(json.loads((run / "weights.json").read_text())).query("phase == 'distilling' and step == 0")
    start = first.set_index(["output", "modality"])["value"]
    assert start["whole", "flair"] > 0.55, "t1ce does not show the whole"
    assert not torch.isclose(omega[0], omega[1]).any()


def test_a_mask_or_scan_that_lies_elsewhere_is_a_finding_and_not_swapped_in_silence(tmp_path: Path) -> None:
    write_site(tmp_path / "alder", 0, scans=8)
    mask = np.asarray(nibabel.load(tmp_path / "alder" / "1-mask.nii.gz").dataobj)
    mirrored = np.diag([-1.0, 1, 1, 1])
    nibabel.save(nibabel.Nifti1Image(mask.astype(np.int16), mirrored), tmp_path / "alder" / "1-mask.nii.gz")
    scan = np.asarray(nibabel.load(tmp_path / "alder" / "2-t1ce.nii.gz").dataobj)
    nibabel.save(nibabel.Nifti1Image(scan[:12].astype(np.float32), np.eye(4)), tmp_path / "alder" / "2-t1ce.nii.gz")
    (tmp_path / "alder" / "3-mask.nii.gz").unlink()
    manifest = load_manifest(tmp_path / "alder")
    manifest = replace(manifest, limits=replace(manifest.limits, bad_rows=1.0))
    cohort = open_cohort(tmp_path / "alder", manifest, from_task(TASK), SplitConfig(), 0)
    found = {f.row: (f.column, f.problem) for f in cohort.findings}
    assert found[3][0] == "mask" and "the mask lies elsewhere than the scans" in found[3][1]
    assert found[4][0] == "visit" and "the scans flair, t1ce of this row differ in size or place" in found[4][1]
    assert found[5] == ("mask", "the file does not exist; put it there, or mend the path")
    assert len(cohort) == 5


def test_a_changed_mask_changes_the_sites_checksum(tmp_path: Path) -> None:
    write_site(tmp_path / "alder", 0, scans=8)
    manifest = load_manifest(tmp_path / "alder")
    cohort = open_cohort(tmp_path / "alder", manifest, from_task(TASK), SplitConfig(), 0)
    site = Site(tmp_path / "alder", manifest, cohort)
    before = site.checksum()
    assert site.checksum() == before
    mask = nibabel.load(tmp_path / "alder" / "1-mask.nii.gz")
    write_scan(tmp_path / "alder" / "1-mask.nii.gz", np.zeros(mask.shape, np.int16))
    assert site.checksum() != before
    blank = open_cohort(tmp_path / "alder", manifest, from_task(TASK), SplitConfig(), 0)
    Site(tmp_path / "alder", manifest, blank).store_findings()
    (told,) = pd.read_csv(tmp_path / "alder" / ".consilium" / "findings.csv").to_dict("records")
    assert (told["row"], told["column"]) == (3, "mask") and told["problem"].startswith("the mask marks no region at all")
