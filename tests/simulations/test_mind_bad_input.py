"""The files of CREMA-D, S-MNIST and LUMA, spoiled one at a time: each is refused with file, line and remedy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.errors import ConsiliumError
from simulations.datasets.mind import cremad, luma, smnist, twins
from tests.simulations.mind_files import SEED, SETS

HOME = {"cremad": "CheyneyComputerScience/CREMA-D", "smnist": "zenodo.org/record/4452953", "luma": "bezirganyan/LUMA"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three sets, as small as they can be."""
    home = tmp_path_factory.mktemp("tiny")
    twins.write_cremad(home / "cremad", seed=SEED, actors=3, sentences=1)
    twins.write_smnist(home / "smnist", seed=SEED, train=40, test=20)
    twins.write_luma(home / "luma", seed=SEED, train=2, test=1)
    return home


def lines(file: Path, change: Callable[[list[str]], list[str]]) -> None:
    """Changes the lines of a text file."""
    file.write_text("\n".join(change(file.read_text(encoding="utf-8-sig").splitlines())) + "\n", encoding="utf-8")


def first(value: str) -> Callable[[list[str]], list[str]]:
    return lambda held: [value, *held[1:]]


def second(value: str) -> Callable[[list[str]], list[str]]:
    return lambda held: [held[0], value, *held[2:]]


def cut(file: Path, less: int = 5) -> None:
    file.write_bytes(file.read_bytes()[:-less])


def array(root: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    np.save(root / name, change(np.load(root / name)))


def without_frames(root: Path) -> None:
    shutil.rmtree(root / cremad.FRAMES)


def pickled(root: Path) -> None:
    np.save(root / "labels_train.npy", np.array([{"a": 1}] * 40, dtype=object), allow_pickle=True)


def as_pointers(root: Path, pattern: str) -> None:
    for file in root.glob(pattern):
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", encoding="utf-8")


def python_version(root: Path) -> None:
    (root / luma.CIFAR10).rename(root / "cifar-10-batches-py")


def drawn_from_training(root: Path, modality: str) -> None:
    taken = (root / luma.INDICES[modality, "train"]).read_text(encoding="utf-8").splitlines()[0]
    lines(root / luma.INDICES[modality, "test"], first(taken))


def one_less(root: Path) -> None:
    lines(root / luma.INDICES["text", "train"], lambda held: held[1:])


def other_class(root: Path) -> None:
    lines(root / luma.SOUNDS, lambda held: [held[0], *(line.replace(",ship,", ",bee,") for line in held[1:])])


def without_a_recording(root: Path) -> None:
    path = (root / luma.SOUNDS).read_text(encoding="utf-8").split("\n")[1].split(",")[0]
    for file in (root / "audio").rglob("*.wav"):
        if path.split("/")[1] != file.name:
            file.unlink()


TRAIN, TEST = "train.csv", "test.csv"
AUDIO, TEXT = luma.INDICES["audio", "test"], luma.INDICES["text", "train"]
SPOILED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "list gone": ("cremad", lambda r: (r / TRAIN).unlink(), r"train\.csv is missing"),
    "list empty": ("cremad", lambda r: (r / TEST).write_text(""), r"test\.csv is empty"),
    "list cut": ("cremad", lambda r: lines(r / TEST, first("1001_IEO")), r"test\.csv, line 1: not 'clip,class'.*cut short"),
    "no clip": ("cremad", lambda r: lines(r / TRAIN, second("1001-IEO,NEU")), r"train\.csv, line 2: no name of a clip"),
    "no emotion": ("cremad", lambda r: lines(r / TRAIN, first("1001_IEO_NEU_XX,JOY")), "line 1: the class is none of NEU, HAP"),
    "other emotion": ("cremad", lambda r: lines(r / TRAIN, first("1001_IEO_NEU_XX,HAP")), "not the emotion of the clip's name"),
    "clip twice": ("cremad", lambda r: lines(r / TRAIN, lambda h: [*h, h[0]]), r"train\.csv, line \d+: a clip is listed twice"),
    "clip on both sides": (
        "cremad",
        lambda r: lines(r / TEST, first((r / TRAIN).read_text(encoding="utf-8-sig").splitlines()[0])),
        r"test\.csv, line 1: a clip is in train\.csv too",
    ),
    "no frames": ("cremad", without_frames, "Image-01-FPS is missing"),
    "frames of others": (
        "cremad",
        lambda r: [f.rename(f.with_name("x" + f.name)) for f in sorted((r / cremad.FRAMES).iterdir())],
        "Image-01-FPS has nothing of any listed clip",
    ),
    "pointers": ("cremad", lambda r: as_pointers(r, "AudioWAV/*.wav"), r"\.wav is a pointer of Git LFS.*git lfs pull"),
    "array gone": ("smnist", lambda r: (r / "data_sp_test.npy").unlink(), r"data_sp_test\.npy is missing"),
    "array cut": ("smnist", lambda r: cut(r / "data_wr_train.npy"), r"data_wr_train\.npy is no array, or is cut short"),
    "pickle": ("smnist", pickled, r"labels_train\.npy is no array"),
    "shape": ("smnist", lambda r: array(r, "data_sp_train.npy", lambda a: a[:, :500]), r"of shape \(N, 507\)"),
    "one-hot": ("smnist", lambda r: array(r, "labels_test.npy", lambda a: np.eye(10)[a]), r"of shape \(N,\)"),
    "lengths": ("smnist", lambda r: array(r, "labels_test.npy", lambda a: a[:-1]), "has 20 samples and .*labels_test.npy 19"),
    "no number": ("smnist", lambda r: array(r, "data_sp_train.npy", lambda a: a * np.nan), "holds values that are no numbers"),
    "no digit": (
        "smnist",
        lambda r: array(r, "labels_train.npy", lambda a: a + 9),
        r"labels_train\.npy, entry \d+: the label is no",
    ),
    "grey": ("smnist", lambda r: array(r, "data_wr_test.npy", lambda a: a.astype(float) - 300), "grey values outside 0 and 255"),
    "shuffled": (
        "smnist",
        lambda r: array(r, "labels_train.npy", lambda a: a[::-1]),
        "samples repeat a recording under another digit.*not in one order",
    ),
    "checksum": (
        "smnist",
        lambda r: (r / "SHA256SUMS").write_text(f"{'0' * 64}  labels_test.npy\n"),
        "differs from its checksum",
    ),
    "python version": ("luma", python_version, "cifar-10-batches-py holds pickles, which can run code.*binary versions"),
    "batch cut": ("luma", lambda r: cut(r / luma.CIFAR10 / "data_batch_3.bin"), r"data_batch_3\.bin does not hold rows of 3,073"),
    "names cut": ("luma", lambda r: lines(r / luma.NAMES100, lambda h: h[:5]), "a label beyond the 5 names"),
    "column gone": ("luma", lambda r: lines(r / luma.SOUNDS, first("file,label,tts_label")), r"lacks the column\(s\) path"),
    "no label": ("luma", lambda r: lines(r / luma.TEXTS, second("words\tcar")), "line 2: the label is none of LUMA's 50"),
    "no text": ("luma", lambda r: lines(r / luma.TEXTS, second(" \tship")), "line 2: 'text' is empty"),
    "outside": ("luma", lambda r: lines(r / luma.SOUNDS, second("../a.wav,ship,ship")), "line 2: 'path' leads out"),
    "index": ("luma", lambda r: lines(r / AUDIO, second("-1")), r"audio_test\.txt, line 2: no row's number"),
    "no index": ("luma", lambda r: lines(r / TEXT, second("many")), r"text_train_clean\.txt holds something that is no number"),
    "index beyond": ("luma", lambda r: lines(r / TEXT, first("99999")), "line 1: an index beyond the rows"),
    "drawn twice": ("luma", lambda r: lines(r / TEXT, lambda h: [*h, h[0]]), "a row is drawn twice"),
    "trains and tests": ("luma", lambda r: drawn_from_training(r, "audio"), "what it draws trains too"),
    "passage trains and tests": ("luma", lambda r: drawn_from_training(r, "text"), "what it draws trains too"),
    "unlike": ("luma", one_less, r"train samples of 1 class\(es\) differ between modalities, the first is"),
    "unseen class": ("luma", other_class, "the index leads to a class that is none of the 42"),
    "recordings gone": ("luma", without_a_recording, r"lacks \d+ drawn recordings, the first is"),
    "recordings are pointers": ("luma", lambda r: as_pointers(r, "audio/*/*.wav"), "is a pointer of Git LFS"),
}


@pytest.mark.parametrize(("name", "spoil", "message"), SPOILED.values(), ids=SPOILED)
def test_bad_input_is_refused_with_its_place_and_remedy(
    tiny: Path, tmp_path: Path, name: str, spoil: Callable[[Path], object], message: str
) -> None:
    root = Path(shutil.copytree(tiny / name, tmp_path / name))
    spoil(root)
    with pytest.raises(ConsiliumError, match=message) as refused:
        SETS[name].load(root)
    said = str(refused.value)
    assert str(root) in said
    assert HOME[name] in said or "again" in said


@pytest.mark.parametrize("name", SETS)
def test_a_set_as_small_as_it_can_be_is_read(tiny: Path, name: str) -> None:
    assert SETS[name].load(tiny / name).data == "generated"


def test_a_recording_that_is_tested_does_not_train(tiny: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny / "smnist", tmp_path / "smnist"))
    digits, spoken = np.load(root / "labels_train.npy"), np.load(root / "data_sp_train.npy")
    tested, heard = np.load(root / "labels_test.npy"), np.load(root / "data_sp_test.npy")
    same = np.flatnonzero(digits == tested[0])
    before = (spoken == spoken[same[0]]).all(1).sum()
    spoken[(spoken == spoken[same[0]]).all(1)] = heard[0]
    np.save(root / "data_sp_train.npy", spoken)
    samples = smnist.load(root)
    assert samples.exclusions["training samples whose recording is tested too (left out)"] == before > 0
    assert (samples.rows.groupby("patient")["part"].nunique() == 1).all()
    assert len(samples.rows) == 60 - before
