"""The Decathlon's archive: pairs of scan and mask, who is tested, and what is wrong with archives."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from common.config import load_config
from common.data.folder import open_cohort
from common.data.manifest import load_manifest
from common.errors import ConsiliumError
from simulations.datasets import hippocampus


def write_archive(root: Path, cases: int = 20, *, lone: bool = True) -> None:
    rng = np.random.default_rng(0)
    root.mkdir()
    with tarfile.open(root / hippocampus.ARCHIVE, "w") as archive:

        def put(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(f"Task04_Hippocampus/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

        def packed(values: np.ndarray) -> bytes:
            file = root / "one.nii.gz"
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), file)
            content = file.read_bytes()
            file.unlink()
            return content

        for at in range(cases):
            mask = np.zeros((12, 16, 9), np.int16)
            mask[3:6, 4:8], mask[6:8, 4:8] = 1, 2
            put(f"imagesTr/hippocampus_{at:03d}.nii.gz", packed((rng.normal(100, 9, mask.shape) + 30 * mask).astype(np.float32)))
            put(f"labelsTr/hippocampus_{at:03d}.nii.gz", packed(mask))
        put("imagesTr/._hippocampus_000.nii.gz", b"a Mac's")
        put("imagesTs/hippocampus_900.nii.gz", b"without a label")
        put("dataset.json", b"{}")
        if lone:
            put("imagesTr/hippocampus_118.nii.gz", b"no mask")


def test_pairs_are_dealt_to_four_sites_and_the_same_cases_are_always_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hippocampus, "PAIRS", 20)
    write_archive(tmp_path / "data")
    cases = hippocampus.load(tmp_path / "data")
    assert len(cases.images) == len(cases.masks) == 20
    assert cases.exclusions == {"scans without a mask": 1}
    tested = []
    for seed in (0, 1):
        said = hippocampus.write_sites(cases, tmp_path / f"sites-{seed}", seed=seed)
        assert said["n"] == {"test": {"scans": 4, "sites": 4}, "train": {"scans": 16, "sites": 4}}
        tables = [pd.read_parquet(f) for f in sorted((tmp_path / f"sites-{seed}").glob("*/patients.parquet"))]
        assert [len(t) for t in tables] == [5] * 4
        frame = pd.concat(tables)
        tested.append(set(frame.loc[frame["split"] == "test", "patient"]))
    assert tested[0] == tested[1]
    config = load_config("hippocampus")
    folder = tmp_path / "sites-0" / "site-1"
    cohort = open_cohort(folder, load_manifest(folder), config.task, config.split, 0)
    assert len(cohort) == 5 and not cohort.findings
    assert cohort.labels.flatten(2).sum(2).tolist() == [[3 * 4 * 9, 2 * 4 * 9]] * 5


def test_an_archive_that_is_absent_cut_short_or_of_something_else_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ConsiliumError, match=r"is missing\. Download Task04_Hippocampus\.tar"):
        hippocampus.load(tmp_path)
    (tmp_path / hippocampus.ARCHIVE).write_bytes(b"<html>not found</html>")
    with pytest.raises(ConsiliumError, match=r"is no complete archive .* Download"):
        hippocampus.load(tmp_path)
    with tarfile.open(tmp_path / hippocampus.ARCHIVE, "w") as archive:
        archive.addfile(tarfile.TarInfo("readme"), io.BytesIO())
    with pytest.raises(ConsiliumError, match=r"holds no case with a file in both imagesTr and labelsTr"):
        hippocampus.load(tmp_path)


def test_an_archive_cut_between_two_files_is_not_taken_for_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hippocampus, "PAIRS", 20)
    write_archive(tmp_path / "data", lone=False)
    file = tmp_path / "data" / hippocampus.ARCHIVE
    assert len(hippocampus.load(file.parent).images) == 20
    with tarfile.open(file) as archive:
        end = archive.getmembers()[14].offset  # seven pairs are before it
    file.write_bytes(file.read_bytes()[:end])
    with pytest.raises(ConsiliumError, match=r"holds 7 labelled cases, the official archive has 20\. Download"):
        hippocampus.load(file.parent)


def test_the_real_archive_holds_260_pairs(data_root: Path) -> None:
    cases = hippocampus.load(data_root / hippocampus.FOLDER)
    assert len(cases.images) == 260
    assert cases.exclusions == {}
    placed = hippocampus.deal(sorted(cases.images), 0)
    assert placed.groupby("split").size().to_dict() == {"test": 52, "train": 208}
