"""Generated twins of MIND's multi-class sets in their official layouts, for tests and for people without the data.

Truth: a modality shows any class in ``LOST`` of the samples. In the others it shows the sample's own or, in ``CONFUSED`` of them,
its partner, by ways that differ between modalities (:func:`partner`): what two of them show leaves one class in common. Whoever
knew all this would reach an accuracy of .62 (CREMA-D), .61 (S-MNIST) and .60 (LUMA) by one modality, .84, .83 and .82 by two,
.94 by LUMA's three. What is shown, shows as what belongs to its class alone, drawn once and for all twins (:func:`signature`): a
field of bright and dark patches, a tune of four tones, coefficients over time, a vocabulary. Every sample adds noise of its own;
an actor of CREMA-D has a background and a pitch.

What the readers must leave out or mend is there too: clips without sound or frames, samples that repeat a recording, classes that
LUMA keeps unseen and CIFAR's other ones, passages that name their class.

Another file is another ``VERSION``. The seed ``FINAL_SEED`` is kept for the tables that the benchmarks print; tests and
development use others.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter1d

from simulations.datasets.files import new_twin
from simulations.datasets.mind import cremad, luma, smnist

VERSION = 1
FINAL_SEED = 2026
CONFUSED, LOST = 0.3, 0.15
PATCHES, TONES, RATE = 6, 4, 16_000
SENTENCES = ("IEO", "TIE", "IOM", "IWW", "TAI", "MTI", "IWL", "ITH", "DFA", "ITS", "TSI", "WSI")
Array = NDArray[np.float64]
Classes = NDArray[np.int64]


def partner(label: Classes, way: int, classes: int) -> Classes:
    """Returns the class with which a modality confuses another; the three ways differ for every class.

    Args:
        label: Classes, from 0.
        way: 0, 1 or 2.
        classes: Number of classes: even, and at least six.
    """
    if way == 2:
        return (label + classes // 2) % classes
    return (label + np.where(label % 2 == way, 1, -1)) % classes


def shown(label: Classes, way: int, classes: int, rng: np.random.Generator) -> Classes:
    """Draws what a modality shows of each sample."""
    known = np.where(rng.random(len(label)) < CONFUSED, partner(label, way, classes), label)
    return np.where(rng.random(len(label)) < LOST, rng.integers(0, classes, len(label)), known)


def signature(what: str, label: int, size: int) -> Array:
    """Returns the ``size`` numbers of N(0, 1) by which a class is known."""
    return np.random.default_rng([*what.encode(), label]).standard_normal(size)


def draw_picture(label: int, edge: int, rng: np.random.Generator, background: float | Array = 0.0) -> NDArray[np.uint8]:
    """Draws a field of patches, a little out of place and noisy, as grey values [edge, edge]."""
    field = signature("picture", label, PATCHES**2).reshape(PATCHES, PATCHES) + background
    place = np.minimum(np.arange(edge) * PATCHES // edge, PATCHES - 1)
    slip = rng.integers(-1, 2, 2)
    picture = np.roll(field[np.ix_(place, place)], slip, axis=(0, 1)) + 0.7 * rng.standard_normal((edge, edge))
    return np.asarray(np.clip(128 + 40 * picture, 0, 255), dtype=np.uint8)


def write_tune(file: Path, label: int, seconds: float, rng: np.random.Generator, pitch: float = 0.0) -> None:
    """Writes a tune of four tones as a WAV file; ``pitch`` raises all of them, in units of a tenth of an octave."""
    octaves = 2 + signature("tune", label, TONES).clip(-2, 2)  # above 200 Hz
    length = int(seconds * rng.uniform(0.85, 1.15) * RATE)
    tone = np.minimum(np.arange(length) * TONES // length, TONES - 1)
    frequency = 200 * 2 ** (octaves + pitch / 10 + 0.03 * rng.standard_normal(TONES))
    wave = np.sin(2 * np.pi * np.cumsum(frequency[tone]) / RATE) + 0.1 * rng.standard_normal(length)
    buffer = io.BytesIO()  # to a file, soundfile would wait for the disk each time
    soundfile.write(buffer, 0.3 * wave * np.hanning(length), RATE, format="WAV", subtype="PCM_16")
    file.write_bytes(buffer.getvalue())


def draw_speech(label: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draws standardised coefficients over time, [507]."""
    steps, width = smnist.STEPS, len(smnist.FEATURES)
    clear = gaussian_filter1d(signature("speech", label, steps * width).reshape(steps, width), 4, axis=0)
    return np.asarray(2.5 * clear + rng.standard_normal((steps, width)), dtype=np.float32).ravel()


def draw_passage(label: int, name: str, rng: np.random.Generator) -> str:
    """Writes a passage of fourteen words that tells of the class ``label`` and names ``name``."""
    words = [_word(7 * abs(int(1000 * value)) % 997) for value in signature("text", label, 12)]
    said = [*rng.choice(words, 8), *(_word(int(k)) for k in rng.integers(0, 997, 5)), name]
    return " ".join(said[i] for i in rng.permutation(len(said))).capitalize() + "."


def _word(number: int) -> str:
    """Returns a made-up word."""
    return "".join("bdfgklmnprstvz"[number // 5**k % 14] + "aeiou"[number // 14**k % 5] for k in range(3))


def write_cremad(root: Path, *, seed: int, actors: int = 60, sentences: int = 4) -> pd.DataFrame:
    """Writes the twin of CREMA-D: every actor says some sentences with every emotion; a tenth of the clips is tested.

    Args:
        root: New folder.
        seed: Seed of everything random; ``FINAL_SEED`` is the table's.
        actors: How many.
        sentences: How many each of them says.

    Returns:
        Per clip: clip, label, part, and what each modality shows.

    Raises:
        ConsiliumError: If the folder exists.
    """
    rng = np.random.default_rng([VERSION, seed])
    names = [f"{1001 + actor}_{SENTENCES[s]}" for actor in range(actors) for s in range(sentences)]
    label = np.tile(np.arange(len(cremad.CLASSES)), len(names))
    emotion = np.array(cremad.CLASSES)[label]
    clips = np.char.add(np.repeat(names, len(cremad.CLASSES)), np.char.add(np.char.add("_", emotion), "_XX"))
    truth = pd.DataFrame({"clip": clips, "label": emotion, "part": "train"})
    truth.loc[rng.permutation(len(truth))[: len(truth) // 10], "part"] = "test"
    for way, modality in enumerate(("audio", "image")):
        truth[modality] = shown(label, way, len(cremad.CLASSES), rng)
    silent, unseen = rng.permutation(len(truth))[:6].reshape(2, 3)
    with new_twin(root, version=VERSION, seed=seed) as partial:
        for part, name in cremad.LISTS.items():
            listed = truth.loc[truth["part"] == part, ["clip", "label"]].sample(frac=1, random_state=seed)
            listed.to_csv(partial / name, header=False, index=False, lineterminator="\r\n", encoding="utf-8-sig")
        (partial / cremad.SOUNDS).mkdir()
        for row, (clip, audio, image) in enumerate(zip(truth["clip"], truth["audio"], truth["image"], strict=True)):
            actor = int(clip[:4])
            if row not in silent:
                pitch = float(signature("pitch", actor, 1)[0])
                write_tune(partial / cremad.SOUNDS / f"{clip}.wav", audio, 0.8, rng, pitch)
            folder = partial / cremad.FRAMES / clip
            folder.mkdir(parents=True)
            for number in (0, 30, 60) if row not in unseen else ():  # the other frames show nothing
                face = 0.5 * signature("face", actor, PATCHES**2).reshape(PATCHES, PATCHES)
                drawn = draw_picture(image, 64, rng, face) if number == 30 else rng.integers(0, 256, (64, 64), dtype=np.uint8)
                Image.fromarray(drawn).save(folder / f"{number:05d}.jpg", quality=90)
    return truth


def write_smnist(root: Path, *, seed: int, train: int = 3000, test: int = 1000) -> pd.DataFrame:
    """Writes the twin of S-MNIST; two samples in five repeat the recording of another one of their digit.

    Args:
        root: New folder.
        seed: Seed of everything random; ``FINAL_SEED`` is the table's.
        train: Training samples.
        test: Test samples.

    Returns:
        Per sample: label, part, recording, and what each modality shows.

    Raises:
        ConsiliumError: If the folder exists.
    """
    rng = np.random.default_rng([VERSION, seed])
    told: list[pd.DataFrame] = []
    with new_twin(root, version=VERSION, seed=seed) as partial:
        for part, n in (("train", train), ("test", test)):
            label = rng.permutation(np.arange(n) % 10)
            recording = np.arange(n)
            for digit in range(10):
                mine = np.flatnonzero(label == digit)
                first = mine[: max(1, round(0.6 * len(mine)))]
                recording[mine[len(first) :]] = rng.choice(first, len(mine) - len(first))
            image, spoken = shown(label, 0, 10, rng), shown(label, 1, 10, rng)[recording]
            speech = np.stack([draw_speech(int(k), rng) for k in spoken])[recording]
            written = np.stack([draw_picture(int(k), smnist.EDGE, rng).ravel() for k in image])
            for name, array in ((smnist.WRITTEN, written), (smnist.SPOKEN, speech), (smnist.LABELS, label.astype(np.uint8))):
                np.save(partial / name.format(part), array)
            about = {"label": label, "part": part, "recording": recording, "image": image, "speech": spoken}
            told.append(pd.DataFrame(about))
    return pd.concat(told, ignore_index=True)


def write_luma(root: Path, *, seed: int, train: int = 40, test: int = 10) -> pd.DataFrame:
    """Writes the twin of LUMA.

    Args:
        root: New folder.
        seed: Seed of everything random; ``FINAL_SEED`` is the table's.
        train: Training samples of a class.
        test: Test samples of a class.

    Returns:
        Per sample, in the order of the lists: label, part, and what each modality shows.

    Raises:
        ConsiliumError: If the folder exists.
    """
    rng = np.random.default_rng([VERSION, seed])
    classes = len(luma.CLASSES)
    parts = [pd.DataFrame({"label": np.repeat(np.arange(classes), n), "part": p}) for p, n in (("train", train), ("test", test))]
    truth = pd.concat(parts, ignore_index=True)
    for way, modality in enumerate(("image", "audio", "text")):
        truth[modality] = shown(truth["label"].to_numpy(), way, classes, rng)
    with new_twin(root, version=VERSION, seed=seed) as partial:
        (partial / "split_indices").mkdir()
        _write_words(partial, truth, rng)
        _write_cifar(partial, truth, rng)
    names = np.array(luma.CLASSES)
    return truth.assign(label=names[truth["label"]])


def _draw_indices(root: Path, modality: str, place: NDArray[np.int64], part: pd.Series[str], as_float: bool = True) -> None:
    """Writes the numbers of the rows in which the samples of each part lie, in the order of the samples."""
    for name in ("train", "test"):
        np.savetxt(root / luma.INDICES[modality, name], place[part == name], fmt="%f" if as_float else "%d")


def _write_words(root: Path, truth: pd.DataFrame, rng: np.random.Generator) -> None:
    """Writes recordings and passages; among them are some of the unseen classes."""
    n, more = len(truth), len(luma.UNSEEN)
    label = np.array([*np.array(luma.CLASSES)[truth["label"]], *luma.UNSEEN])
    place = rng.permutation(n + more)  # row of the file in which sample k lies
    turn = np.argsort(place)
    for folder in ("cv_audio", "sw_audio", "ls_audio", "re_audio"):
        (root / "audio" / folder).mkdir(parents=True)
    paths = np.array([f"{('cv', 'sw', 'ls', 're')[k % 4]}_audio/{label[k]}_{k}.wav" for k in range(n + more)])
    for k, path in enumerate(paths):
        write_tune(root / "audio" / path, int(truth["audio"].iloc[k]) if k < n else 0, 0.45, rng)
    listed = pd.DataFrame({"path": paths, "label": label, "tts_label": label}).iloc[turn]
    listed.to_csv(root / luma.SOUNDS, index=False)
    texts = [draw_passage(int(truth["text"].iloc[k]) if k < n else 0, label[k], rng) for k in range(n + more)]
    pd.DataFrame({"text": texts, "label": label}).iloc[turn].to_csv(root / luma.TEXTS, sep="\t", index=False)
    for modality in ("audio", "text"):
        _draw_indices(root, modality, place[:n], truth["part"])


def _write_cifar(root: Path, truth: pd.DataFrame, rng: np.random.Generator) -> None:
    """Writes the binary files of CIFAR-10 and CIFAR-100; images that no list draws show nothing."""
    ten = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    known = {ours: theirs for theirs, ours in luma.RENAMED.items()}
    hundred = sorted({known.get(name, name) for name in (*luma.CLASSES, *luma.UNSEEN)} - set(ten) | {"apple", "skunk"})
    for folder, file, names in ((luma.CIFAR10, luma.NAMES10, ten), (luma.CIFAR100, luma.NAMES100, hundred)):
        (root / folder).mkdir()
        (root / file).write_text("\n".join(names) + "\n", encoding="ascii")
    name = np.array([known.get(each, each) for each in np.array(luma.CLASSES)[truth["label"]]])
    place = np.empty(len(truth), dtype=np.int64)
    for part in ("train", "test"):
        counted = 0
        for names, files in (
            (ten, [f"{luma.CIFAR10}/{file}" for file in luma.TEN[part]]),
            (hundred, [f"{luma.CIFAR100}/{part}.bin"]),
        ):
            mine = rng.permutation(np.flatnonzero((truth["part"] == part) & np.isin(name, names)))
            for file, rows in zip(files, np.array_split(mine, len(files)), strict=True):
                held = rng.permutation([*rows, *(-1 - k for k in range(len(names)))])  # one of every class beside
                images = [_binary_row(int(k), names, name, truth, rng) for k in held]
                (root / file).write_bytes(b"".join(images))
                told = [name[k] if k >= 0 else names[-1 - k] for k in held]
                ours = [luma.RENAMED.get(each, each) for each in told]
                counts = np.isin(ours, luma.CLASSES if part == "test" else (*luma.CLASSES, *luma.UNSEEN))
                place[held[held >= 0]] = counted + (np.cumsum(counts) - 1)[held >= 0]
                counted += int(counts.sum())
    _draw_indices(root, "image", place, truth["part"], as_float=False)


def _binary_row(k: int, names: list[str], name: NDArray[np.str_], truth: pd.DataFrame, rng: np.random.Generator) -> bytes:
    """Returns one row of a binary file: label byte(s) and three planes; CIFAR-100 has a coarse label first."""
    label = names.index(name[k]) if k >= 0 else -1 - k
    edge = luma.EDGE
    grey = draw_picture(int(truth["image"].iloc[k]), edge, rng) if k >= 0 else rng.integers(0, 256, (edge, edge))
    planes = (grey * rng.uniform(0.8, 1, (3, 1, 1))).astype(np.uint8)
    return bytes([label] if len(names) == 10 else [0, label]) + planes.tobytes()
