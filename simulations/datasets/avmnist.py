"""AV-MNIST: written digits (MNIST) and spoken ones (Free Spoken Digit Dataset), as sites of which two have both.

The protocol is that of SMIL (Ma et al., AAAI 2021; its released code), on which MetaKD and ShaSpec report: 105 images and 105
recordings of each digit train, paired by digit alone. Recordings are of three speakers, index 15 and above train, the rest test.
Images come in the order of their numbers as text: the first 105 of MNIST's training set train, the last 45 of its test set are
tested. At the rate of 20 % all but 21 pairs of each digit lose one modality. One of 450 images is .22 points: we test all 10,000.
"""

from __future__ import annotations

import functools
import gzip
import math
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.data.manifest import REFERENCE_FOLDER
from common.errors import ConsiliumError
from simulations.datasets.files import UNREADABLE, finish_sites, new_sites, verified, with_split, write_png, write_site

FOLDER = "avmnist"
IMAGES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
SOUNDS = "free-spoken-digit-dataset.tar.gz"
HOW_TO_GET = (
    f"Put MNIST's four files ({', '.join(n for pair in IMAGES.values() for n in pair)}) and {SOUNDS}, the 'Free Spoken Digit "
    "Dataset' (https://github.com/Jakobovski/free-spoken-digit-dataset), packed as free-spoken-digit-dataset/recordings/*.wav, "
    f"into a folder '{FOLDER}', and set CONSILIUM_DATA to the folder that holds it; or run: consilium-bench fetch {FOLDER}"
)
RECORDING = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")
SPEAKERS = ("jackson", "nicolas", "theo")
TEST_RECORDINGS = 15
TRAIN_OF_A_DIGIT, TEST_OF_A_DIGIT = 105, 45
PAIRS_OF_A_DIGIT = {5: 6, 10: 9, 15: 15, 20: 21}
"""Rate in % -> pairs of each digit: the nearest multiple of three speakers, the smaller one where two are as near."""

SITES, SITES_WITH_BOTH, REFERENCE_SHARE = 10, 2, 0.1
FEW, REST = "test-450", "test-9550"
SUFFIX = {"image": ".png", "audio": ".wav"}
Missing = Literal["audio", "image"]


@dataclass(frozen=True)
class Digits:
    """Images and recordings.

    Attributes:
        train: One row per training pair: digit, image (number in MNIST's training set), audio (name of the recording).
        test: One row per test image: digit, image (number in its test set), audio (empty but for the 450).
        images: ``train`` and ``test`` -> uint8 [N, 28, 28].
        sounds: Name -> WAV file.
        checksum: SHA-256 over the checksums of the files.
    """

    train: pd.DataFrame
    test: pd.DataFrame
    images: Mapping[str, NDArray[np.uint8]]
    sounds: Mapping[str, bytes]
    checksum: str


@functools.cache
def load(root: Path) -> Digits:
    """Reads both data sets; a second call with the same root answers from memory (do not change what it holds).

    Raises:
        ConsiliumError: If a file is missing or damaged, naming it and where it comes from.
    """
    checksum = verified(root, [*(n for pair in IMAGES.values() for n in pair), SOUNDS], HOW_TO_GET)
    images, digits = {}, {}
    for part, (pixels, labels) in IMAGES.items():
        images[part], digits[part] = _idx(root / pixels, 3), _idx(root / labels, 1).astype(np.int64)
        if len(images[part]) != len(digits[part]):
            raise ConsiliumError(f"{root / pixels} and {root / labels} differ in length. Download both again. {HOW_TO_GET}")
    sounds = _recordings(root / SOUNDS)
    spoken = _spoken(sounds)
    train: list[pd.DataFrame] = []
    few: dict[int, str] = {}
    for digit in range(10):
        ours = spoken[spoken["digit"] == digit]
        said = ours.loc[ours["index"] >= TEST_RECORDINGS, "name"], ours.loc[ours["index"] < TEST_RECORDINGS, "name"]
        first = _as_text(digits["train"], digit)[:TRAIN_OF_A_DIGIT]
        last = _as_text(digits["test"], digit)[-TEST_OF_A_DIGIT:]
        if [len(first), len(last), *map(len, said)] != [TRAIN_OF_A_DIGIT, TEST_OF_A_DIGIT] * 2:
            raise ConsiliumError(f"{root} has too few images or recordings of the digit {digit}. {HOW_TO_GET}")
        train.append(pd.DataFrame({"digit": digit, "image": first, "audio": said[0].to_list()}))
        few |= dict(zip(last.tolist(), said[1], strict=True))
    test = pd.DataFrame({"digit": digits["test"], "image": np.arange(len(digits["test"]))})
    test["audio"] = test["image"].map(few)
    return Digits(pd.concat(train, ignore_index=True), test, images, sounds, checksum)


def write_sites(
    digits: Digits,
    folder: Path,
    *,
    seed: int,
    rate: int = 20,
    missing: Missing = "audio",
    both_at_test: bool = False,
    masked: bool = True,
    reference: float = REFERENCE_SHARE,
) -> dict[str, Any]:
    """Writes ten training sites, of which two have both modalities, a reference set and the test sites.

    The test sites hold what all training sites hold: 10,000 images, of which the 450 of the protocol are a site of their own, or
    450 recordings.

    Args:
        digits: What :func:`load` returned.
        folder: New or empty folder; it appears complete or not at all.
        seed: Of which pairs keep both modalities, and of who is where.
        rate: Percent of the training pairs that keep both modalities.
        missing: The modality that the others lack.
        both_at_test: Whether the 450 are tested with both modalities instead, and nobody else.
        masked: Without, every training pair keeps both.
        reference: Share of the training pairs, of both kinds alike, that are the labelled reference set.

    Returns:
        ``data_checksum`` and ``n`` per role.
    """
    rng = np.random.default_rng(seed)
    train = _in_turn(digits.train.iloc[rng.permutation(len(digits.train))])
    train["audio"] = train.groupby("digit")["audio"].transform(lambda names: rng.permutation(names.to_numpy()))
    both = (train.groupby("digit").cumcount() < PAIRS_OF_A_DIGIT[rate]).to_numpy()
    held = "image" if missing == "audio" else "audio"
    train["site"] = _places(train["digit"].to_numpy(), both, reference, held)
    if masked:
        train[missing] = train[missing].astype(object).where(both, None)
    partial = new_sites(folder)
    for site, rows in train.groupby("site"):
        _write(partial / str(site), rows, digits.images["train"], digits.sounds, "train")
    known = digits.test["audio"].notna()
    tests = {FEW: digits.test[known]}
    if not both_at_test:
        tests = {FEW: digits.test[known].assign(**{missing: None})}
        tests |= {REST: digits.test[~known]} if missing == "audio" else {}
    for site, rows in tests.items():
        _write(partial / site, rows, digits.images["test"], digits.sounds, "evaluate")
    finish_sites(partial)
    is_reference = train["site"] == REFERENCE_FOLDER
    places = {"train": train[~is_reference], "reference": train[is_reference], "test": pd.concat(tests.values())}
    return {
        "data_checksum": with_split(digits.checksum, train),
        "exclusions": {},
        "n": {role: _counts(rows) for role, rows in places.items() if len(rows)},
    }


def _idx(file: Path, dimensions: int) -> NDArray[np.uint8]:
    """Returns the content of an IDX file of bytes."""
    try:
        raw = gzip.decompress(file.read_bytes())
    except UNREADABLE as error:
        fault = f"cannot be unpacked ({type(error).__name__}): it is cut short, damaged or no gzip file"
        raise ConsiliumError(f"{file} {fault}. Download it again. {HOW_TO_GET}") from None
    head = 4 + 4 * dimensions
    shape = [int.from_bytes(raw[at : at + 4], "big") for at in range(4, head, 4)]
    if raw[:4] != bytes([0, 0, 8, dimensions]) or len(raw) != head + math.prod(shape):
        raise ConsiliumError(f"{file} is no IDX file of {dimensions} dimension(s). Download it again. {HOW_TO_GET}")
    return np.frombuffer(raw, dtype=np.uint8, offset=head).reshape(shape)


def _recordings(file: Path) -> dict[str, bytes]:
    """Returns name -> WAV file of the three speakers."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(file) as archive:
            for member in archive:
                name = Path(member.name).name
                match = RECORDING.fullmatch(name)
                content = archive.extractfile(member) if match and match[2] in SPEAKERS else None
                if content is not None:
                    found[name] = content.read()
    except (*UNREADABLE, tarfile.TarError) as error:
        fault = f"cannot be unpacked ({type(error).__name__}): it is cut short, damaged or no archive"
        raise ConsiliumError(f"{file} {fault}. Download it again. {HOW_TO_GET}") from None
    return found


def _spoken(sounds: Mapping[str, bytes]) -> pd.DataFrame:
    """Returns digit, speaker, index and name of every recording, by speaker and name."""
    parts = [(int(m[1]), m[2], int(m[3]), name) for name in sounds if (m := RECORDING.fullmatch(name))]
    return pd.DataFrame(parts, columns=["digit", "speaker", "index", "name"]).sort_values(["speaker", "name"])


def _as_text(digits: NDArray[np.int64], digit: int) -> NDArray[np.int64]:
    """Returns the numbers of a digit's images, sorted as text: the released code lists exported files."""
    return np.array(sorted(np.flatnonzero(digits == digit).tolist(), key=str), dtype=np.int64)


def _in_turn(train: pd.DataFrame) -> pd.DataFrame:
    """Returns the pairs one digit after the other in turn, so that any run of rows holds all of them."""
    turn = train.groupby("digit").cumcount()
    return train.iloc[np.lexsort((train["digit"], turn))].reset_index(drop=True)


def _places(digit: NDArray[np.int64], both: NDArray[np.bool_], reference: float, held: str) -> NDArray[np.str_]:
    """Returns the site of every pair (digits in turn), balanced: a share of both kinds is the reference set, then come the sites.

    Two sites take the pairs that keep both modalities, and as many of the others as make them as large as the rest.
    """
    place = np.full(len(both), REFERENCE_FOLDER, dtype="<U20")
    full, rest = (mine[round(reference * len(mine)) :] for mine in (np.flatnonzero(both), np.flatnonzero(~both)))
    fill = max(0, round((len(full) + len(rest)) * SITES_WITH_BOTH / SITES) - len(full))
    names = [f"both-{k + 1}" for k in range(SITES_WITH_BOTH)], [f"{held}-{k + 1}" for k in range(SITES - SITES_WITH_BOTH)]
    for rows, sites in zip((np.concatenate([full, rest[:fill]]), rest[fill:]), names, strict=True):
        dealt = rows[np.argsort(digit[rows], kind="stable")]  # in turn, every second site would get every second digit
        place[dealt] = np.resize(sites, len(dealt))
    return place


def _write(
    folder: Path, rows: pd.DataFrame, images: NDArray[np.uint8], sounds: Mapping[str, bytes], role: Literal["train", "evaluate"]
) -> None:
    """Writes one site: PNG and WAV files, the patient table and the manifest."""
    held = [m for m in SUFFIX if rows[m].notna().any()]
    names = [f"{folder.name}-{n:04d}" for n in range(len(rows))]
    patients = pd.DataFrame({"patient": names, "visit": names, "class": rows["digit"].astype(str).to_numpy()})
    for kind in held:
        patients[kind] = [f"{n}{SUFFIX[kind]}" if known else None for n, known in zip(names, rows[kind].notna(), strict=True)]
    sources = {kind: {"kind": kind, "column": kind} for kind in held}
    write_site(folder, patients, {"labels": {"class": "class"}, "role": role, "modalities": sources}, {})
    for kind in held:
        for cell, source in zip(patients[kind], rows[kind], strict=True):
            if pd.notna(cell):
                if kind == "image":
                    write_png(images[int(source)], folder / cell)
                else:
                    (folder / cell).write_bytes(sounds[str(source)])


def _counts(rows: pd.DataFrame) -> dict[str, int]:
    held = {f"with {m}": int(rows[m].notna().sum()) for m in SUFFIX}
    return {"digits": len(rows), **held} | ({"sites": int(rows["site"].nunique())} if "site" in rows else {})
