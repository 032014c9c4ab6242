"""LUMA: an image, a spoken word and a passage on one of 42 things (Bezirganyan et al., SIGIR 2025; CC BY-SA 4.0).

This reads what LUMA's compile_dataset.py reads, and takes the samples that it takes without added noise: those of
``split_indices/``. Three things differ, because they must (and images enter the networks grey, as all images do here):

* The tool keeps images as pickles, which can run code. Here they come from CIFAR's binary versions, which hold the same images;
  that the order is the same too is checked by the classes of the drawn images.
* Which image, word and passage make a sample, within a class, the tool draws. Here the order of the lists decides.
* A passage names its class. LUMA's baselines mask such words by a stemmer; here the word and its plural are masked.

The eight classes that LUMA keeps for what no model has seen are not read.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.errors import ConsiliumError
from simulations.datasets.files import differs, origin, place_file, refuse, verified, write_png
from simulations.datasets.mind.sites import Samples, Stored, digest, refuse_pointers

FOLDER = "luma"
TITLE = "LUMA without added noise"
SOUNDS, TEXTS = "audio/datalist.csv", "text_data.tsv"
CIFAR10, CIFAR100 = "cifar-10-batches-bin", "cifar-100-binary"
TEN = {"train": tuple(f"data_batch_{k}.bin" for k in range(1, 6)), "test": ("test_batch.bin",)}
NAMES10, NAMES100 = f"{CIFAR10}/batches.meta.txt", f"{CIFAR100}/fine_label_names.txt"
INDICES = {
    (modality, part): f"split_indices/{modality}_{ending}.txt"
    for modality in ("audio", "image", "text")
    for part, ending in (("train", "train_clean"), ("test", "test"))
}
CLASSES = (
    "man", "boy", "house", "woman", "girl", "table", "road", "horse", "dog", "ship", "bird", "mountain", "bed", "train", "bridge",
    "fish", "cloud", "chair", "cat", "baby", "castle", "forest", "television", "bear", "camel", "sea", "fox", "plain", "bus",
    "snake", "lamp", "clock", "lion", "tank", "palm", "rabbit", "pine", "cattle", "oak", "mouse", "frog", "ray",
)  # fmt: skip
UNSEEN = ("bicycle", "truck", "elephant", "roses", "wolf", "telephone", "bee", "whale")
RENAMED = {
    "aquarium_fish": "fish", "pickup_truck": "truck", "oak_tree": "oak", "rose": "roses", "pine_tree": "pine",
    "palm_tree": "palm",
}  # fmt: skip
PLURALS = {"man": "men", "woman": "women", "baby": "babies", "mouse": "mice"}
REPORTED = (21_000, 4_200)
EDGE = 32
HOW_TO_GET = (
    f"A folder '{FOLDER}' below CONSILIUM_DATA holds (or links to) {SOUNDS} with its recordings and {TEXTS} of "
    "https://huggingface.co/datasets/bezirganyan/LUMA (by Git LFS), split_indices/ of https://github.com/bezirganyan/LUMA, and "
    f"{CIFAR10}/ and {CIFAR100}/, the binary versions of CIFAR-10 and CIFAR-100 (https://www.cs.toronto.edu/~kriz/cifar.html). "
    "Without the folder a generated twin takes their place."
)
AGAIN = "Get the file again."
Indices = dict[str, NDArray[np.int64]]


@functools.cache
def load(root: Path) -> Samples:
    """Reads the lists and the images; a second call answers from memory (do not change its frame).

    Args:
        root: Folder of the set.

    Raises:
        ConsiliumError: If a file is missing or cannot be used, with file, line and remedy.
    """
    data, version = origin(root, TITLE, TITLE)
    for folder, python in ((CIFAR10, "cifar-10-batches-py"), (CIFAR100, "cifar-100-python")):
        if not (root / folder).is_dir() and (root / python).is_dir():
            raise ConsiliumError(f"{root / python} holds pickles, which can run code and are not read. {HOW_TO_GET}")
    ten = [f"{CIFAR10}/{name}" for names in TEN.values() for name in names]
    names = [*ten, NAMES10, f"{CIFAR100}/train.bin", f"{CIFAR100}/test.bin", NAMES100, TEXTS, SOUNDS, *INDICES.values()]
    checksum = verified(root, names, HOW_TO_GET)
    pixels, images = _images(root)
    tables = {"audio": _table(root / SOUNDS, ",", "path"), "text": _table(root / TEXTS, "\t", "text"), "image": images}
    _refuse_overlap(root, tables)
    rows = pd.concat([_samples(root, part, tables) for part in ("train", "test")], ignore_index=True)
    files = [root / "audio" / path for path in rows["audio"]]
    missing = np.array([not file.is_file() for file in files])
    if missing.any():
        first = rows["audio"][int(np.flatnonzero(missing)[0])]
        raise ConsiliumError(f"{root / 'audio'} lacks {missing.sum():,} drawn recordings, the first is {first}. {HOW_TO_GET}")
    refuse_pointers(files, HOW_TO_GET)
    rows["audio"] = files
    rows["text"], masked = _masked(rows)
    counts = [int((rows["part"] == part).sum()) for part in ("train", "test")]
    told = differs("Samples (train / test)", counts, REPORTED, "LUMA") if data == "real" else ""
    exclusions = {"passages that name their class (the word masked)": masked}
    checksum = digest(rows.drop(columns="audio"), files, checksum)
    return Samples(rows, _stored(pixels), exclusions, checksum, data, version, (told,) if told else ())


def _refuse_overlap(root: Path, tables: dict[str, pd.DataFrame]) -> None:
    """Refuses recordings and passages that train and are tested; images of training and test are other files."""
    for modality in ("audio", "text"):
        cells = tables[modality]["cell"] if modality == "audio" else tables[modality].index.to_series()
        train, test = (_indices(root / INDICES[modality, part]) for part in ("train", "test"))
        both = pd.Series(test).map(cells).isin(cells.reindex(train).dropna())
        refuse(both, root / INDICES[modality, "test"], f"what it draws trains too ({INDICES[modality, 'train']})", AGAIN)


def _samples(root: Path, part: str, tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Returns visit, patient, part, label and the three cells of the drawn samples of a part."""
    drawn: dict[str, pd.DataFrame] = {}
    for modality, table in tables.items():
        file = root / INDICES[modality, part]
        rows = table[table["part"] == part] if modality == "image" else table
        chosen = _indices(file)
        absent = ~np.isin(chosen, rows.index.to_numpy())
        refuse(absent, file, "an index beyond the rows that it counts", f"Files of two versions may be mixed. {HOW_TO_GET}")
        found = rows.loc[chosen]
        fault = "the index leads to a class that is none of the 42"
        refuse(~found["label"].isin(CLASSES).to_numpy(), file, fault, f"Files of two versions may be mixed. {HOW_TO_GET}")
        turn = found.groupby("label").cumcount().to_numpy()
        drawn[modality] = pd.DataFrame({"label": found["label"].to_numpy(), "turn": turn, modality: found["cell"].to_numpy()})
    counts = pd.DataFrame({m: frame["label"].value_counts() for m, frame in drawn.items()}).reindex(CLASSES).fillna(0).astype(int)
    unlike = counts[(counts.nunique(axis=1) > 1) | (counts.min(axis=1) == 0)]
    if len(unlike):
        said = ", ".join(f"{n} {m}" for m, n in unlike.iloc[0].items())
        raise ConsiliumError(
            f"{root / 'split_indices'}: the drawn {part} samples of {len(unlike)} class(es) differ between modalities, the first "
            f"is '{unlike.index[0]}' ({said}). Files of two versions may be mixed. {HOW_TO_GET}"
        )
    rows = drawn["audio"].merge(drawn["text"], on=["label", "turn"]).merge(drawn["image"], on=["label", "turn"])
    names = rows["label"] + rows["turn"].map("-{:03d}".format) + f"-{part}"
    return rows.drop(columns="turn").assign(visit=names, patient=names, part=part)


def _indices(file: Path) -> NDArray[np.int64]:
    """Returns the drawn rows, counted from 0, one per line."""
    try:
        found = np.loadtxt(file, ndmin=1)
    except (OSError, ValueError) as error:
        raise ConsiliumError(f"{file} holds something that is no number ({type(error).__name__}). {AGAIN}") from None
    refuse(~((found >= 0) & (found == np.floor(found))), file, "no row's number", AGAIN)
    chosen = found.astype(np.int64)
    refuse(pd.Series(chosen).duplicated(), file, "a row is drawn twice", AGAIN)
    return chosen


def _table(file: Path, separator: str, column: str) -> pd.DataFrame:
    """Returns label and cell of a table's rows, numbered as its file numbers them."""
    try:
        table = pd.read_csv(file, sep=separator, dtype=str, keep_default_na=False, usecols=lambda c: c in (column, "label"))
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise ConsiliumError(f"{file} cannot be read ({type(error).__name__}): it may be cut short. {AGAIN}") from None
    absent = [c for c in (column, "label") if c not in table]
    if absent:
        raise ConsiliumError(f"{file} lacks the column(s) {', '.join(absent)} of its documentation. {HOW_TO_GET}")
    refuse(~table["label"].isin((*CLASSES, *UNSEEN)), file, "the label is none of LUMA's 50", AGAIN, first=2)
    refuse(table[column].str.strip() == "", file, f"'{column}' is empty", AGAIN, first=2)
    if column == "path":
        outside = table[column].str.startswith("/") | table[column].str.contains(r"(?:^|/)\.\.(?:/|$)")
        refuse(outside, file, "'path' leads out of the folder", AGAIN, first=2)
    return table.rename(columns={column: "cell"})


def _images(root: Path) -> tuple[NDArray[np.uint8], pd.DataFrame]:
    """Returns the images [N, 32, 32, 3], and per image its label, part and, as the cell, its place.

    Rows are numbered as the tool numbers them: CIFAR-10 then CIFAR-100; in training those of all 50 classes, in the test those of
    the 42.
    """
    pixels: list[NDArray[np.uint8]] = []
    tables, held = [], 0
    for part, known in (("train", (*CLASSES, *UNSEEN)), ("test", CLASSES)):
        labels = []
        for folder, files, names, skipped in (
            (CIFAR10, TEN[part], root / NAMES10, 0),
            (CIFAR100, (f"{part}.bin",), root / NAMES100, 1),
        ):
            for file in files:
                found, label = _binary(root / folder / file, _names(names), skipped)
                kept = np.isin(label, known)
                pixels.append(found[kept])
                labels.append(label[kept])
        label = np.concatenate(labels)
        tables.append(pd.DataFrame({"label": label, "part": part, "cell": held + np.arange(len(label))}))
        held += len(label)
    return np.concatenate(pixels), pd.concat(tables)


def _names(file: Path) -> NDArray[np.str_]:
    """Returns the names of classes by number, as LUMA calls them."""
    names = file.read_text(encoding="ascii", errors="replace").split()
    return np.array([RENAMED.get(name, name) for name in names])


def _binary(file: Path, names: NDArray[np.str_], skipped: int) -> tuple[NDArray[np.uint8], NDArray[np.str_]]:
    """Returns images and labels of one of CIFAR's binary files, whose rows are label byte(s) and three planes of an image."""
    raw, width = np.frombuffer(file.read_bytes(), dtype=np.uint8), skipped + 1 + 3 * EDGE**2
    if not len(raw) or len(raw) % width:
        raise ConsiliumError(f"{file} does not hold rows of {width:,} bytes: it is cut short, or no binary version. {AGAIN}")
    rows = raw.reshape(-1, width)
    if rows[:, skipped].max() >= len(names):
        raise ConsiliumError(f"{file} has a label beyond the {len(names)} names of its classes. {HOW_TO_GET}")
    images = rows[:, skipped + 1 :].reshape(-1, 3, EDGE, EDGE).transpose(0, 2, 3, 1)
    return images, names[rows[:, skipped]]


def _masked(rows: pd.DataFrame) -> tuple[list[str], int]:
    """Returns the passages without the name of their class, and how many named it."""
    said = {label: re.compile(rf"\b(?:{label}(?:e?s)?|{PLURALS.get(label, label)})\b", re.IGNORECASE) for label in CLASSES}
    told = [said[label].subn("[MASK]", text) for label, text in zip(rows["label"], rows["text"], strict=True)]
    return [text for text, _ in told], sum(times > 0 for _, times in told)


def _stored(pixels: NDArray[np.uint8]) -> dict[str, Stored]:
    def write_image(place: Any, file: Path) -> None:
        write_png(np.ascontiguousarray(pixels[int(place)]), file)

    return {
        "image": Stored({"kind": "image"}, ".png", write_image),
        "audio": Stored({"kind": "audio"}, ".wav", place_file),
        "text": Stored({"kind": "text", "inline": True}),
    }
