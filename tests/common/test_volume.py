"""Scans and masks: how files become arrays, and what is wrong with those that do not."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from common.config import SplitConfig
from common.data.cohort import Finding
from common.data.folder import _same_place, open_cohort
from common.data.ingest.frames import IngestError
from common.data.ingest.volume import OUTSIDE, place_of, read_mask, read_volume
from common.data.manifest import load_manifest
from common.data.quality import BLANK, content_warnings, mask_warnings
from common.task import Modality, Task

GRID = Modality("volume", voxels=(16, 16, 16))


def scan(file: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), file)
    return file


def random(shape: tuple[int, ...] = (12, 16, 9)) -> np.ndarray:
    return np.random.default_rng(0).normal(100, 20, shape).astype(np.float32)


def with_a_voxel_of(value: float) -> np.ndarray:
    values = random((12, 12, 12)).astype(np.float64)
    values[3, 3, 3] = value
    return values


def test_a_scan_is_standardised_and_centred_in_the_grid(tmp_path: Path) -> None:
    values = random()
    values[:3] = 0
    read = read_volume(scan(tmp_path / "a.nii.gz", values), GRID)
    assert read.shape == (1, 16, 16, 16) and read.dtype == np.float32
    inside = ~np.isnan(read[0])
    assert inside.sum() == values.size
    assert inside[2:14, :, 3:12].all()
    kept = read[0, 2:14, :, 3:12]
    assert (kept[:3] == 0).all()
    assert kept[3:].mean() == pytest.approx(0, abs=1e-5)
    assert kept[3:].std() == pytest.approx(1, abs=1e-4)


def test_scans_are_turned_into_one_orientation(tmp_path: Path) -> None:
    values = random((10, 12, 14))
    flipped = np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = 9
    one = read_volume(scan(tmp_path / "a.nii", values), GRID)
    other = read_volume(scan(tmp_path / "b.nii", values[::-1].copy(), flipped), GRID)
    assert np.allclose(one, other, equal_nan=True)


def test_scans_are_resampled_to_the_tasks_spacing(tmp_path: Path) -> None:
    fine = Modality("volume", voxels=(24, 24, 24), spacing_mm=(1.0, 1.0, 1.0))
    values = np.zeros((6, 8, 10), dtype=np.float32)
    values[2:4, 2:6, 3:7] = 50 + random((2, 4, 4))
    read = read_volume(scan(tmp_path / "a.nii", values, np.diag([2.0, 1, 1, 1])), fine)
    assert (~np.isnan(read[0])).sum() == 11 * 8 * 10
    mask = read_mask(scan(tmp_path / "m.nii", (values > 0).astype(np.int16), np.diag([2.0, 1, 1, 1])), fine, {1})
    assert set(np.unique(mask)) == {OUTSIDE, 0, 1}
    assert np.array_equal(mask == OUTSIDE, np.isnan(read[0]))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (random((20, 8, 8)), "20x8x8 voxels does not fit into the task's grid of 16x16x16; set 'voxels'"),
        (np.full((8, 8, 8), 3.0, np.float32), "empty"),
        (np.full((8, 8, 8), 0.1, np.float32), "empty"),
        (np.full((8, 8, 8), 3.3, np.float32), "empty"),
        (np.full((8, 8, 8), -7e30, np.float32), "empty"),
        (np.zeros((8, 8, 8), np.float32), "empty"),
        (with_a_voxel_of(1e20), "dwarf all others"),
        (with_a_voxel_of(1e39), "no numbers"),
        (np.where(random((8, 8, 8)) > 100, np.nan, 1.0).astype(np.float32), "no numbers"),
        (random((8, 8, 8, 2)), "4 dimensions"),
    ],
)
def test_a_scan_that_cannot_be_used_says_why(tmp_path: Path, values: np.ndarray, told: str) -> None:
    with pytest.raises(IngestError, match=told):
        read_volume(scan(tmp_path / "a.nii.gz", values), GRID)


def test_a_bright_voxel_and_a_faint_contrast_are_no_fault(tmp_path: Path) -> None:
    for name, values in (("bright", with_a_voxel_of(5000.0)), ("faint", 1e4 + 1e-3 * random((12, 12, 12)).astype(np.float64))):
        read = read_volume(scan(tmp_path / f"{name}.nii", values), GRID)
        assert np.nanstd(read) == pytest.approx(1, abs=1e-4)


def test_a_scan_that_does_not_say_how_it_lies_in_space_is_refused(tmp_path: Path) -> None:
    file = scan(tmp_path / "a.nii", random((8, 8, 8)))
    content = bytearray(file.read_bytes())
    content[280:296] = bytes(16)  # the first row of the affine
    file.write_bytes(content)
    with pytest.raises(IngestError, match=r"affine is broken|cannot be read"):
        read_volume(file, GRID)


def test_a_half_downloaded_scan_and_a_web_page_are_named(tmp_path: Path) -> None:
    whole = scan(tmp_path / "a.nii.gz", random())
    (tmp_path / "half.nii.gz").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "page.nii.gz").write_text("<html>not found</html>")
    for name in ("half", "page"):
        with pytest.raises(IngestError, match="cannot be read"):
            read_volume(tmp_path / f"{name}.nii.gz", GRID)


def test_a_mask_with_values_that_the_task_does_not_know_is_refused(tmp_path: Path) -> None:
    labels = np.zeros((8, 8, 8), np.int16)
    labels[2:4], labels[5] = 1, 4
    file = scan(tmp_path / "m.nii.gz", labels)
    assert set(np.unique(read_mask(file, GRID, {1, 2, 4}))) == {OUTSIDE, 0, 1, 4}
    with pytest.raises(IngestError, match="the mask holds 4, the task's regions know 1, 2, 3"):
        read_mask(file, GRID, {1, 2, 3})
    with pytest.raises(IngestError, match="not whole"):
        read_mask(scan(tmp_path / "p.nii.gz", labels * 0.3), GRID, {1})


def test_a_mask_that_marks_nothing_is_a_warning_and_one_empty_region_is_none(tmp_path: Path) -> None:
    task = Task("t", "segmentation", ("whole", "core"), {"t1": GRID}, regions={"whole": (1, 2), "core": (2,)})
    for name, value in (("a", 1), ("b", 0)):
        labels = np.zeros((8, 8, 8), np.int16)
        labels[2:4] = value
        scan(tmp_path / f"{name}-mask.nii", labels)
        scan(tmp_path / f"{name}.nii", random((8, 8, 8)))
    (tmp_path / "patients.csv").write_text("visit,t1,seg\n1,a.nii,a-mask.nii\n2,b.nii,b-mask.nii\n")
    head = "{site: ash, patients: patients.csv, patient: visit, visit: visit, labels: {mask: seg}, modalities: {t1: "
    (tmp_path / "manifest.yaml").write_text(head + "{kind: volume, column: t1}}}")
    manifest = load_manifest(tmp_path)
    cohort = open_cohort(tmp_path, manifest, task, SplitConfig(), 0)
    assert (len(cohort), cohort.findings) == (2, ())
    assert mask_warnings(manifest, cohort) == (Finding("patients.csv", 3, "seg", BLANK),)
    assert content_warnings(tmp_path, manifest, cohort) == mask_warnings(manifest, cohort)
    assert "export the mask again" in BLANK


@pytest.mark.parametrize("label", [40_000, 65_535])
def test_a_label_of_any_size_stays_itself(tmp_path: Path, label: int) -> None:
    labels = np.zeros((8, 8, 8), np.uint16)
    labels[2:4] = label
    read = read_mask(scan(tmp_path / "m.nii.gz", labels), GRID, {label})
    assert set(np.unique(read)) == {OUTSIDE, 0, label}
    assert (read == label).sum() == 2 * 8 * 8 and (read == OUTSIDE).sum() == 16**3 - 8**3


def test_voxels_that_are_not_a_millimetre_ask_for_a_spacing(tmp_path: Path) -> None:
    file = scan(tmp_path / "a.nii.gz", random((8, 8, 8)), np.diag([0.5, 0.5, 5, 1]))
    with pytest.raises(IngestError, match=r"its voxels are 0\.5 x 0\.5 x 5 mm, not 1 mm; set 'spacing_mm'"):
        read_volume(file, GRID)


def test_where_a_scan_lies_does_not_depend_on_how_it_is_stored(tmp_path: Path) -> None:
    values = random((10, 12, 14))
    flipped = np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = 9
    one = place_of(scan(tmp_path / "a.nii", values))
    assert np.allclose(one, place_of(scan(tmp_path / "b.nii", values[::-1].copy(), flipped)))
    assert not np.allclose(one, place_of(scan(tmp_path / "c.nii", values, np.diag([-1.0, 1, 1, 1]))))


def moved(by: float) -> np.ndarray:
    affine = np.eye(4)
    affine[0, 3] = by
    return affine


@pytest.mark.parametrize(
    ("shape", "affine", "same"),
    [
        ((240, 4, 5), np.diag([1.0, 1, 1, 1]), True),
        ((240, 4, 5), np.diag([1.0099, 1, 1, 1]), False),  # at the far end 2.4 mm
        ((4, 240, 5), np.diag([1.0, 1, 1, 1]), False),
        ((241, 4, 5), np.diag([1.0, 1, 1, 1]), False),
        ((240, 4, 5), np.diag([1.0005, 1, 1, 1]), True),
        ((240, 4, 5), np.diag([1.0, 1.02, 1, 1]), True),  # four voxels, 0.06 mm
        ((240, 4, 5), moved(0.2), True),
        ((240, 4, 5), moved(0.3), False),
    ],
)
def test_two_scans_lie_in_the_same_place_if_their_corners_do(
    tmp_path: Path, shape: tuple[int, ...], affine: np.ndarray, same: bool
) -> None:
    one = place_of(scan(tmp_path / "a.nii", random((240, 4, 5))))
    other = place_of(scan(tmp_path / "b.nii", random(shape), affine))
    assert _same_place(one, other) is _same_place(other, one) is same


def test_a_header_that_turns_by_a_quaternion_says_the_same_place(tmp_path: Path) -> None:
    turn, tilt = np.diag([-1.0, -1, 1]), np.radians(13.0)
    turn @= np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    places = []
    for name, codes in (("matrix", (0, 1)), ("quaternion", (1, 0))):
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = turn, (119.7, 133.3, -71.1)
        image = nibabel.Nifti1Image(random((240, 4, 200)), affine)
        image.set_qform(affine, codes[0])
        image.set_sform(affine, codes[1])
        nibabel.save(image, tmp_path / f"{name}.nii")
        places.append(place_of(tmp_path / f"{name}.nii"))
    assert _same_place(*places)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"regions": {}}, "'regions' names"),
        ({"regions": {"a": (1,)}}, "'regions' names"),
        ({"regions": {"a": (1,), "b": ()}}, "'regions' names"),
        ({"modalities": {"t": Modality("table", {"age": {}})}}, "of kind 'volume'"),  # type: ignore[dict-item]
        ({"modalities": {"x": GRID, "y": Modality("volume", voxels=(8, 8, 8))}}, "the same 'voxels'"),
        ({"type": "binary", "outputs": ("a",), "regions": {}}, "of kind 'volume'"),
    ],
)
def test_a_segmentation_task_needs_volumes_of_one_grid_and_regions(changes: dict[str, object], told: str) -> None:
    regions = {"a": (1,), "b": (1, 2)}
    fit = {"name": "t", "type": "segmentation", "outputs": ("a", "b"), "regions": regions, "modalities": {"x": GRID}}
    Task(**fit)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=told):
        Task(**{**fit, **changes})  # type: ignore[arg-type]
