"""Images: grey values that do not depend on how they were stored, and faults that quote nothing."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.ingest import Frames, IngestError, reader
from common.data.ingest.image import read_image
from common.data.manifest import Source
from tests.common.samples import MODALITIES, write_dicom


def ramp(size: int = 16) -> np.ndarray:
    return np.tile(np.arange(size), (size, 1)) * 100 + 7


def test_grey_values_are_scaled_to_percentiles_so_that_bit_depth_does_not_matter(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", ramp())
    write_dicom(tmp_path / "b.dcm", ramp() * 3)
    Image.fromarray((ramp() // 10).astype(np.uint8)).save(tmp_path / "c.png")
    a, b, c = (read_image(tmp_path / f, 8) for f in ("a.dcm", "b.dcm", "c.png"))
    assert a.shape == (1, 8, 8)
    assert a.dtype == np.float32
    assert a.min() >= 0
    assert a.max() <= 1
    assert (np.diff(a[0, 0]) > 0).all()
    assert np.allclose(a, b)
    assert np.allclose(a, c, atol=0.02)


def test_an_image_where_white_is_low_is_inverted(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", ramp())
    write_dicom(tmp_path / "b.dcm", ramp(), "MONOCHROME1")
    assert np.allclose(read_image(tmp_path / "a.dcm", 8), 1 - read_image(tmp_path / "b.dcm", 8), atol=1e-6)


def test_the_rescale_slope_of_a_dicom_counts(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", ramp())
    write_dicom(tmp_path / "b.dcm", ramp(), RescaleSlope="-1", RescaleIntercept="0")
    assert np.allclose(read_image(tmp_path / "a.dcm", 8), 1 - read_image(tmp_path / "b.dcm", 8), atol=1e-6)


def test_sixteen_bit_and_colour_pngs_are_read_as_grey(tmp_path: Path) -> None:
    Image.fromarray((ramp() * 40).astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.repeat((ramp() // 10).astype(np.uint8)[..., None], 3, axis=2)).save(tmp_path / "colour.png")
    assert np.allclose(read_image(tmp_path / "deep.png", 8), read_image(tmp_path / "colour.png", 8), atol=0.02)


def bad_images(folder: Path) -> None:
    write_dicom(folder / "colour.dcm", np.zeros((16, 16, 3)), "RGB")
    write_dicom(folder / "frames.dcm", np.stack([ramp()] * 4))
    write_dicom(folder / "palette.dcm", ramp(), "PALETTE COLOR")
    write_dicom(folder / "empty.dcm", np.full((16, 16), 5))
    with warnings.catch_warnings(action="ignore"):
        write_dicom(folder / "slope.dcm", ramp(), RescaleSlope="nan", RescaleIntercept=0)
    write_dicom(folder / "whole.dcm", ramp())
    whole = (folder / "whole.dcm").read_bytes()
    (folder / "cut.dcm").write_bytes(whole[:-200])
    (folder / "header.dcm").write_bytes(whole[:300])
    (folder / "text.dcm").write_bytes(b"SECRET is no image")
    (folder / "text.png").write_bytes(b"SECRET is no image")
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(folder / "black.png")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("colour.dcm", "colours or several frames"),
        ("frames.dcm", "colours or several frames"),
        ("palette.dcm", "colours or several frames"),
        ("empty.dcm", "the image is empty"),
        ("black.png", "the image is empty"),
        ("slope.dcm", "no numbers; export it again"),
        *((name, "cannot be read: it is damaged, cut short or no image") for name in ("cut.dcm", "header.dcm", "text.dcm")),
        ("text.png", "cannot be read: it is damaged, cut short or no image"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom", "ignore:invalid value:RuntimeWarning")
def test_an_image_that_cannot_be_used_is_named(tmp_path: Path, name: str, text: str) -> None:
    bad_images(tmp_path)
    with pytest.raises(IngestError) as found:
        reader(tmp_path, Source("image", column="cxr"), MODALITIES["cxr"], Frames())(name, "1")
    assert text in str(found.value)
    assert "SECRET" not in str(found.value) and "Doe" not in str(found.value)
