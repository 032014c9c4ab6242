"""Scans and masks that were read once: what is kept, what is believed of it, and what is in memory."""

from __future__ import annotations

import ctypes
import importlib.metadata
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from common.config import SplitConfig
from common.data.cohort import Cohort, concatenate
from common.data.folder import open_cohort
from common.data.ingest import volume
from common.data.ingest.volume import read_mask, read_volume
from common.data.manifest import OWN_FOLDER, load_manifest
from common.data.rows import LazyRows
from common.data.standardise import Standardisation, moments
from common.task import Modality, Task
from server.reference import checksum

NAMES = ("flair", "t1ce")
EVERYTHING = 1.0


def task_of(edge: int = 16, core: int = 2) -> Task:
    return Task(
        "lesions", "segmentation", ("whole", "core"), {n: Modality("volume", voxels=(edge, edge, edge)) for n in NAMES},
        regions={"whole": (1, 2), "core": (core,)},
    )  # fmt: skip


def write(file: Path, values: np.ndarray) -> None:
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), file)


def make_site(folder: Path, scans: int = 6, edge: int = 14) -> Path:
    """Scans 0, 4, 8, ... lack ``t1ce``; scan 1 has no voxel of the core."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for i in range(scans):
        row = {"patient": f"p{i}", "visit": f"v{i}", "mask": f"{i}-mask.nii", "split": "test" if i == 3 else "train"}
        mask = np.zeros((edge,) * 3, np.int16)
        mask[3:6], mask[4] = 1, 1 if i == 1 else 2
        write(folder / row["mask"], mask)
        for name in NAMES[: 1 + bool(i % 4)]:
            row[name] = f"{i}-{name}.nii"
            write(folder / row[name], rng.integers(0, 900, (edge,) * 3).astype(np.int16))
        rows.append(row)
    pd.DataFrame(rows).to_csv(folder / "patients.csv", index=False)
    manifest = {
        "schema_version": 1, "site": folder.name, "data": "generated", "patients": "patients.csv", "patient": "patient",
        "visit": "visit", "labels": {"mask": "mask"}, "split": "split", "limits": {"bad_rows": EVERYTHING},
        "modalities": {n: {"kind": "volume", "column": n} for n in NAMES},
    }  # fmt: skip
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    return folder


def opened(folder: Path, task: Task | None = None) -> Cohort:
    return open_cohort(folder, load_manifest(folder), task or task_of(), SplitConfig(), 0)


def kept(folder: Path) -> dict[str, int]:
    return {f.name: f.stat().st_mtime_ns for f in (folder / OWN_FOLDER / "volumes").iterdir()}


def same(one: Cohort, other: Cohort) -> bool:
    pairs = [(one.labels, other.labels), *((one.inputs[n].nan_to_num(9), other.inputs[n].nan_to_num(9)) for n in NAMES)]
    return len(one) == len(other) and all(torch.equal(a + 0, b + 0) for a, b in pairs)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return make_site(tmp_path / "alder")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the NIfTI files that are read."""
    read: list[str] = []
    loaded = volume._loaded

    def noted(path: Path, what: str) -> object:
        read.append(path.name)
        return loaded(path, what)

    monkeypatch.setattr(volume, "_loaded", noted)
    return read


def test_what_is_kept_is_what_the_files_hold(site: Path) -> None:
    cohort, task = opened(site), task_of()
    assert cohort.present.tolist() == [[True, bool(i % 4)] for i in range(6)]
    modality = task.modalities["t1ce"]
    expected = torch.from_numpy(read_volume(site / "2-t1ce.nii", modality)).half().float()
    assert torch.equal(cohort.inputs["t1ce"][2].nan_to_num(9), expected.nan_to_num(9))
    assert cohort.inputs["t1ce"].dtype == torch.float32 and cohort.inputs["t1ce"][0].isnan().all()
    mask = read_mask(site / "2-mask.nii", modality, {1, 2})
    assert cohort.labels.dtype == torch.uint8
    assert np.array_equal(cohort.labels[2].numpy(), np.stack([mask > 0, mask == 2]))
    assert cohort.label_counts().tolist() == [6, 5]
    assert cohort.part("nowhere").label_counts().tolist() == [0, 0]


def test_a_second_opening_reads_no_scan_and_finds_the_same(site: Path, reads: list[str]) -> None:
    first = opened(site)
    before, once = kept(site), len(reads)
    assert once and len(before) == 6 + 6 + 4
    again = opened(site)
    assert len(reads) == once and kept(site) == before
    assert same(first, again) and checksum(first) == checksum(again)


def test_faults_are_found_at_every_opening(site: Path, reads: list[str]) -> None:
    write(site / "1-mask.nii", np.full((14, 14, 14), 7, np.int16))
    write(site / "2-t1ce.nii", np.ones((12, 14, 14), np.int16) * np.arange(14, dtype=np.int16))
    (site / "3-flair.nii").write_bytes((site / "3-flair.nii").read_bytes()[:3000])
    first = opened(site)
    assert sorted((f.row, f.column) for f in first.findings) == [(3, "mask"), (4, "visit"), (5, "flair")]
    reads.clear()
    assert opened(site).findings == first.findings
    assert set(reads) == {"1-mask.nii", "3-flair.nii"}


def test_a_scan_or_mask_that_changed_is_read_anew_and_the_old_one_removed(site: Path, reads: list[str]) -> None:
    before, names = opened(site), set(kept(site))
    write(site / "1-flair.nii", np.random.default_rng(1).integers(0, 900, (14, 14, 14)).astype(np.int16))
    mask = np.zeros((14, 14, 14), np.int16)
    mask[9] = 2
    write(site / "1-mask.nii", mask)
    reads.clear()
    after = opened(site)
    assert set(reads) == {"1-flair.nii", "1-mask.nii"}
    assert len(names - set(kept(site))) == len(set(kept(site)) - names) == 2
    assert not torch.equal(after.inputs["flair"][1].nan_to_num(), before.inputs["flair"][1].nan_to_num())
    assert torch.equal(after.inputs["flair"][2].nan_to_num(), before.inputs["flair"][2].nan_to_num())
    assert after.label_counts().tolist() == [6, 6]
    assert before.label_counts().tolist() == [6, 5]  # who opened before sees what was there, though its files are removed


def test_another_grid_reads_all_anew_and_other_regions_the_masks(site: Path, reads: list[str]) -> None:
    opened(site)
    reads.clear()
    cohort = opened(site, task_of(core=1))
    assert set(reads) == {f"{i}-mask.nii" for i in range(6)}
    assert cohort.label_counts().tolist() == [6, 6]
    cohort = opened(site, task_of(edge=20, core=1))
    assert cohort.inputs["flair"][0].shape == (1, 20, 20, 20)
    assert len(kept(site)) == 16


def rewritten_in_its_old_time(site: Path) -> None:
    file = site / "1-flair.nii"
    before = file.stat()
    write(file, np.random.default_rng(1).integers(0, 900, (14, 14, 14)).astype(np.int16))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_a_scan_that_was_rewritten_with_its_old_size_and_time_is_read_anew(site: Path, reads: list[str]) -> None:
    opened(site)
    reads.clear()
    rewritten_in_its_old_time(site)
    opened(site)
    assert set(reads) == {"1-flair.nii"}


def test_links_that_a_simulation_makes_to_linked_scans_read_nothing_anew(site: Path, tmp_path: Path, reads: list[str]) -> None:
    for cell in ("first", "second"):
        (tmp_path / cell).mkdir()
        for file in (f for f in site.iterdir() if f.is_file()):
            os.link(file, tmp_path / cell / file.name)
        opened(tmp_path / "first")
        assert bool(reads) is (cell == "first")
        reads.clear()


@pytest.mark.parametrize("package", ["monai", "nibabel", "torch"])
def test_another_version_of_what_reads_and_resamples_reads_all_anew(
    site: Path, reads: list[str], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(site)
    reads.clear()
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0" if name == package else version(name))
    opened(site)
    assert len(set(reads)) == len(kept(site)) == 16


def test_half_a_file_is_never_believed(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, synced = opened(site), []

    def killed(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) > 2:
            raise KeyboardInterrupt

    for file in (site / OWN_FOLDER / "volumes").iterdir():
        file.unlink()
    with monkeypatch.context() as at, pytest.raises(KeyboardInterrupt):
        at.setattr(os, "fsync", killed)
        opened(site)
    names = kept(site)
    assert sorted(Path(n).suffix for n in names) == [".partial", ".safetensors", ".safetensors"]
    for name, content in zip(sorted(n for n in names if n.endswith("s")), (b"", bytes(5000)), strict=True):
        (site / OWN_FOLDER / "volumes" / name).write_bytes(content)  # as a crash of the machine may leave it
    assert same(opened(site), expected)
    assert len(kept(site)) == 16 + 1, "another process may be writing the partial file"
    (partial,) = (site / OWN_FOLDER / "volumes").glob("*.partial")
    os.utime(partial, (time.time() - 9000,) * 2)
    opened(site)
    assert len(kept(site)) == 16


def read_only(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Path.mkdir

    def refused(path: Path, *args: object, **more: object) -> None:
        if OWN_FOLDER in path.parts:
            raise PermissionError(13, "Permission denied")
        make(path, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", refused)


def in_the_way(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (site / OWN_FOLDER).write_text("no folder")


def full(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)


@pytest.mark.parametrize("hindered", [read_only, in_the_way, full])
def test_where_nothing_can_be_kept_scans_are_held_in_memory(
    site: Path,
    tmp_path: Path,
    hindered: Callable[[Path, pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = opened(make_site(tmp_path / "birch"))
    hindered(site, monkeypatch)
    with caplog.at_level(logging.WARNING):
        cohort = opened(site)
    assert same(cohort, expected) and checksum(cohort) == checksum(expected)
    assert [r.getMessage().split(" (")[0] for r in caplog.records] == [
        f"Scans cannot be kept in the folder {OWN_FOLDER} beside the manifest"
    ]
    assert not (site / OWN_FOLDER).is_dir() or not kept(site)


def test_moments_and_scaling_are_those_of_the_whole_tensor(site: Path) -> None:
    cohort = opened(site)
    whole = replace(cohort, inputs={n: x + 0 for n, x in cohort.inputs.items()}, labels=cohort.labels + 0)
    assert not any(isinstance(x, LazyRows) for x in whole.inputs.values())
    lazy, plain = cohort.moments(), whole.moments()
    for name in NAMES:
        for one, other in zip(vars(lazy[name]).values(), vars(plain[name]).values(), strict=True):
            assert one == pytest.approx(other, rel=1e-12, abs=1e-12)
        none = moments(cohort.task.modalities[name], cohort.part("nowhere").inputs[name])
        assert none.count.tolist() == none.mean.tolist() == none.variance.tolist() == [0.0]
    ready, expected = (concatenate([c, c]).standardised(Standardisation(plain)) for c in (cohort, whole))
    assert isinstance(ready.inputs["flair"], LazyRows) and isinstance(ready.labels, LazyRows)
    index = torch.tensor([7, 1, 0])
    one, other = ready.batch(index), expected.batch(index)
    assert all(torch.equal(one.inputs[n], other.inputs[n]) for n in NAMES) and torch.equal(one.labels, other.labels)


class Malloc(ctypes.Structure):
    """What the C library says of the memory that it gave out (``mallinfo2``)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    )


@contextmanager
def watched() -> Iterator[list[int]]:
    """Gives the most bytes that arrays and tensors took meanwhile, at the end; mapped files are not among them."""
    told = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if told is None:
        pytest.skip("this C library does not tell how much memory is in use")
    told.restype = Malloc

    def now() -> int:
        said = told()
        return int(said.uordblks + said.hblkhd)

    done, most, start = threading.Event(), [0], now()

    def watch() -> None:
        while not done.wait(0.001):
            most[0] = max(most[0], now() - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        done.set()
        watcher.join()


def test_memory_does_not_grow_with_the_number_of_scans(tmp_path: Path) -> None:
    edge, scans = 48, 40
    folder, task = make_site(tmp_path / "alder", scans, edge), task_of(edge)
    opened(make_site(tmp_path / "birch")).moments()  # what is imported and started once
    whole = scans * edge**3 * (4 * len(NAMES) + len(task.outputs))
    with watched() as most:
        cohort = opened(folder, task)
        told = Standardisation(cohort.moments())
        cohort.label_counts()
        ready = concatenate([cohort, cohort]).standardised(told)
        for start in range(0, len(ready), 4):
            ready.part("train").holding("t1ce").batch(torch.arange(start % scans // 2, start % scans // 2 + 2))
    one = edge**3 * 8
    assert whole > 40 * one
    assert one < most[0] < 15 * one
