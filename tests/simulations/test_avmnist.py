"""AV-MNIST: SMIL's protocol read from the official files, and who is where."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from common.data.manifest import load_manifest
from common.errors import ConsiliumError
from simulations.benchmarks.base import Split
from simulations.benchmarks.metakd_avmnist import BENCHMARK, BOTH_AT_TEST
from simulations.datasets import avmnist
from simulations.datasets.avmnist import FEW, REST, Digits, load, write_sites


@pytest.fixture(scope="module")
def digits(data_root: Path) -> Digits:
    return load(data_root / avmnist.FOLDER)


def patients(folder: Path) -> dict[str, pd.DataFrame]:
    return {p.name: pd.read_parquet(p / "patients.parquet") for p in sorted(folder.iterdir())}


def held(frame: pd.DataFrame, modality: str) -> int:
    return int(frame[modality].notna().sum()) if modality in frame else 0


def test_the_protocols_images_and_recordings(digits: Digits) -> None:
    assert digits.train.groupby("digit").size().tolist() == [105] * 10
    assert len(digits.test) == 10_000
    few = digits.test[digits.test["audio"].notna()]
    assert few.groupby("digit").size().tolist() == [45] * 10
    index = {name: int(name.rsplit("_", 1)[1].removesuffix(".wav")) for name in digits.sounds}
    assert min(index[n] for n in digits.train["audio"]) == 15
    assert max(index[n] for n in few["audio"]) == 14
    assert {n.split("_")[1] for n in digits.sounds} == {"jackson", "nicolas", "theo"}
    numbers = digits.train.loc[digits.train["digit"] == 3, "image"].tolist()
    assert numbers == sorted(numbers, key=str)  # as text, like the released code
    assert numbers != sorted(numbers)


def test_two_sites_have_both_modalities_and_every_place_every_digit(digits: Digits, tmp_path: Path) -> None:
    said = write_sites(digits, tmp_path / "sites", seed=0)
    found = patients(tmp_path / "sites")
    assert sorted(found) == ["both-1", "both-2", *(f"image-{k}" for k in range(1, 9)), "reference", FEW, REST]
    assert [held(found[s], "audio") for s in ("both-1", "both-2", "image-1", "reference", FEW, REST)] == [95, 94, 0, 21, 0, 0]
    assert {name: len(found[name]) for name in ("reference", FEW, REST)} == {"reference": 105, FEW: 450, REST: 9550}
    assert sum(len(f) for n, f in found.items() if n.startswith(("both", "image"))) == 945
    assert all(f["class"].nunique() == 10 for f in found.values())
    assert said["n"]["train"] == {"digits": 945, "with image": 945, "with audio": 189, "sites": 10}
    assert {load_manifest(tmp_path / "sites" / n).role for n in (FEW, REST)} == {"evaluate"}
    names = pd.concat([f["patient"] for f in found.values()])
    assert names.is_unique
    row = found["image-3"].iloc[4]
    pixels = np.asarray(Image.open(tmp_path / "sites" / "image-3" / row["image"]))
    same = (digits.images["train"][digits.train.loc[digits.train["digit"] == int(row["class"]), "image"]] == pixels).all((1, 2))
    assert same.sum() == 1


@pytest.mark.parametrize(
    ("variant", "train", "test"),
    [
        ("audio-5", {"with image": 945, "with audio": 54}, {"with image": 10_000, "with audio": 0}),
        ("image-20", {"with image": 189, "with audio": 945}, {"with image": 0, "with audio": 450}),
        (BOTH_AT_TEST, {"with image": 945, "with audio": 189}, {"with image": 450, "with audio": 450}),
    ],
)
def test_variants_take_away_what_they_say(
    variant: str, train: dict[str, int], test: dict[str, int], data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSILIUM_DATA", str(data_root))
    assert variant in BENCHMARK.variants
    said = BENCHMARK.prepare(tmp_path / "sites", Split(1, 0, variant))["n"]
    assert {k: said["train"][k] for k in train} == train
    assert {k: said["test"][k] for k in test} == test


def test_without_masks_every_training_digit_has_both_and_without_a_reference_all_are_at_the_sites(
    digits: Digits, tmp_path: Path
) -> None:
    full = write_sites(digits, tmp_path / "full", seed=2, masked=False)["n"]
    assert full["train"]["with audio"] + full["reference"]["with audio"] == 1050
    none = write_sites(digits, tmp_path / "none", seed=2, reference=0)["n"]
    assert "reference" not in none
    assert none["train"] == {"digits": 1050, "with image": 1050, "with audio": 210, "sites": 10}


def test_seeds_deal_anew_and_the_same_seed_alike(digits: Digits, tmp_path: Path) -> None:
    sums = [write_sites(digits, tmp_path / name, seed=seed)["data_checksum"] for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    assert sums[0] == sums[1] != sums[2]


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    return gzip.compress(head + array.astype(np.uint8).tobytes())


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """Files in the official layout, too few of everything."""
    root = tmp_path / "avmnist"
    root.mkdir()
    for images, labels in avmnist.IMAGES.values():
        (root / images).write_bytes(idx(np.zeros((20, 28, 28))))
        (root / labels).write_bytes(idx(np.arange(20) % 10))
    with tarfile.open(root / avmnist.SOUNDS, "w:gz") as archive:
        for name in ("recordings/0_jackson_0.wav", "recordings/0_george_0.wav", "README.md"):
            member = tarfile.TarInfo(f"free-spoken-digit-dataset/{name}")
            member.size = 4
            archive.addfile(member, io.BytesIO(b"RIFF"))
    return root


def one_byte_other(content: bytes) -> bytes:
    """Spoils the code table behind gzip's head, and no checksum: what a decoder says of it is no OSError."""
    return content[:12] + bytes([content[12] ^ 0xFF]) + content[13:]


def damage(root: Path, what: str) -> None:
    images, labels = avmnist.IMAGES["train"]
    if what == "missing":
        (root / labels).unlink()
    elif what == "cut":
        (root / images).write_bytes(gzip.compress(gzip.decompress((root / images).read_bytes())[:-5]))
    elif what == "half":
        content = (root / images).read_bytes()
        (root / images).write_bytes(content[: len(content) // 2])
    elif what == "a byte":
        (root / images).write_bytes(one_byte_other((root / images).read_bytes()))
    elif what == "a byte of the sounds":
        archive = gzip.decompress((root / avmnist.SOUNDS).read_bytes())  # a head of 512 bytes, then the first recording
        (root / avmnist.SOUNDS).write_bytes(gzip.compress(archive[:512]) + one_byte_other(gzip.compress(archive[512:])))
    elif what == "no head":
        (root / images).write_bytes(gzip.compress(bytes([0, 0, 8, 3, 0, 0])))
    elif what == "no gzip":
        (root / images).write_bytes(b"<html>not found</html>")
    elif what == "unlike":
        (root / labels).write_bytes(idx(np.arange(19) % 10))
    elif what == "no archive":
        (root / avmnist.SOUNDS).write_bytes(b"nothing")
    elif what == "checksum":
        (root / "SHA256SUMS").write_text(f"{'0' * 64}  {images}\n")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", "train-labels-idx1-ubyte.gz is missing"),
        ("cut", "no IDX file of 3 dimension"),
        ("half", r"images-idx3-ubyte\.gz cannot be unpacked \(EOFError\)"),
        ("a byte", r"images-idx3-ubyte\.gz cannot be unpacked \(error\)"),
        ("a byte of the sounds", r"dataset\.tar\.gz cannot be unpacked \(error\)"),
        ("no head", "no IDX file of 3 dimension"),
        ("no gzip", r"cannot be unpacked \(BadGzipFile\): .* no gzip file"),
        ("unlike", "differ in length"),
        ("no archive", "cannot be unpacked"),
        ("checksum", "differs from its checksum"),
        ("", "too few images or recordings of the digit 0"),
    ],
)
def test_damaged_files_are_named_with_their_home(official: Path, what: str, message: str) -> None:
    damage(official, what)
    with pytest.raises(ConsiliumError, match=message) as caught:
        load(official)
    assert "free-spoken-digit-dataset" in str(caught.value)
    shutil.rmtree(official)


def test_a_published_figure_is_a_share_of_the_images_that_it_is_said_to_be_of() -> None:
    for figure in BENCHMARK.published:
        assert figure.n in (450, 10_000)
        if figure.value is not None:
            assert f"{figure.n:,} images" in figure.source
            assert abs(round(figure.value * figure.n) / figure.n - figure.value) < 1e-4, f"{figure.method}: {figure.value}"


def test_every_rate_has_the_figures_of_all_eight_columns() -> None:
    found = {(p.method, p.variant): p.value for p in BENCHMARK.published}
    variants = {None, "audio-5", "audio-10", "audio-15"}
    assert len(BENCHMARK.published) == len(found) == 8 * 4 and {variant for _, variant in found} == variants
    assert (found["Full2miss", "audio-15"], found["GAN", "audio-5"], found["SMIL", None]) == (0.9223, 0.8911, 0.9444)
    assert {found["UpperB, sound at test too", v] for v in variants} == {0.9822}
    assert [found["MetaKD", v] for v in ("audio-5", "audio-10", "audio-15", None)] == [None, 0.9422, 0.9489, None]
