"""CREMA-D: emotions in acted clips, by sound and by face, with the lists of OGM-GE (Peng et al., CVPR 2022).

OGM-GE's code takes one to some frames per second and three seconds of sound. Here the sound is what a task asks for, and of the
frames the middle one, in grey. The lists are drawn by clip: an actor has clips in both. Where whole actors are tested
(``new_actors``), the lists are not used.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import ConsiliumError
from simulations.datasets.files import differs, origin, place_file, refuse
from simulations.datasets.mind.sites import Samples, Stored, digest, refuse_pointers

FOLDER = "cremad"
TITLE = "CREMA-D with OGM-GE's lists"
LISTS = {"train": "train.csv", "test": "test.csv"}
SOUNDS, FRAMES = "AudioWAV", "Image-01-FPS"
REPORTED = (6698, 744)
CLASSES = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")
CLIP = r"\d{4}_[A-Z]{3}_[A-Z]{3}_(?:LO|MD|HI|XX|X)"
HOW_TO_GET = (
    f"A folder '{FOLDER}' below CONSILIUM_DATA holds (or links to) {SOUNDS}/<clip>.wav of CREMA-D "
    "(https://github.com/CheyneyComputerScience/CREMA-D, by Git LFS), and from OGM-GE "
    f"(https://github.com/GeWu-Lab/OGM-GE_CVPR2022) its lists {' and '.join(LISTS.values())} (data/CREMAD/, lines 'clip,class') "
    f"and {FRAMES}/<clip>/<frame>.jpg, what its data/CREMAD/video_preprocessing.py makes of VideoFlash/. Without the folder a "
    "generated twin takes their place."
)
AGAIN = "Get OGM-GE's lists again."
NEW_ACTORS = 0.2


@functools.cache
def load(root: Path) -> Samples:
    """Reads the lists and finds sounds and frames; a second call answers from memory (do not change its frame).

    A clip that has no sound or no frame lacks that modality; one that has neither is left out. Both are counted (OGM-GE leaves
    out both).

    Args:
        root: Folder of the set.

    Raises:
        ConsiliumError: If a file or folder is missing or cannot be used, with file, line and remedy.
    """
    data, version = origin(root, TITLE, TITLE)
    lists = {part: _read_list(root / name) for part, name in LISTS.items()}
    twice = lists["test"]["clip"].isin(lists["train"]["clip"])
    refuse(twice, root / LISTS["test"], f"a clip is in {LISTS['train']} too", AGAIN)
    rows = pd.concat([rows.assign(part=part) for part, rows in lists.items()], ignore_index=True)
    for place in (SOUNDS, FRAMES):
        if not (root / place).is_dir():
            raise ConsiliumError(f"The data are not complete: {root / place} is missing. {HOW_TO_GET}")
    sounds = {file.stem: file for file in sorted((root / SOUNDS).glob("*.wav"))}
    rows["audio"] = rows["clip"].map(sounds)
    rows["image"] = rows["clip"].map(lambda clip: _middle_frame(root / FRAMES / clip))
    for modality, place in (("audio", SOUNDS), ("image", FRAMES)):
        if rows[modality].isna().all():
            raise ConsiliumError(f"{root / place} has nothing of any listed clip. {HOW_TO_GET}")
    files = [*rows["audio"].dropna(), *rows["image"].dropna()]
    refuse_pointers(files, HOW_TO_GET)
    neither = rows["audio"].isna() & rows["image"].isna()
    exclusions = {
        "clips without sound (the face alone)": int((rows["audio"].isna() & ~neither).sum()),
        "clips without frames (the sound alone)": int((rows["image"].isna() & ~neither).sum()),
        "clips with neither (left out)": int(neither.sum()),
    }
    rows = rows[~neither].reset_index(drop=True)
    counts = [len(lists[part]) for part in LISTS]
    told = differs("Clips listed (train / test)", counts, REPORTED, "OGM-GE") if data == "real" else ""
    rows = rows.rename(columns={"clip": "visit"}).assign(patient=rows["clip"].str[:4])
    samples = rows[["visit", "patient", "part", "label", "audio", "image"]]
    checksum = digest(samples.drop(columns=["audio", "image"]), files)
    return Samples(samples, _stored(), exclusions, checksum, data, version, (told,) if told else ())


def new_actors(samples: Samples, seed: int) -> Samples:
    """Returns the same clips with a fifth of the actors, drawn by the seed, as the test and the others in training."""
    actors = np.array(sorted(samples.rows["patient"].unique()))
    drawn = np.random.default_rng([seed, len(actors)]).permutation(actors)[: round(NEW_ACTORS * len(actors))]
    part = samples.rows["patient"].isin(drawn).map({True: "test", False: "train"})
    return replace(samples, rows=samples.rows.assign(part=part))


def _read_list(file: Path) -> pd.DataFrame:
    """Returns clip and label of one list, which has no header."""
    try:
        lines = list(csv.reader(file.read_text(encoding="utf-8-sig").splitlines()))
    except FileNotFoundError:
        raise ConsiliumError(f"The data are not complete: {file} is missing. {HOW_TO_GET}") from None
    except (OSError, ValueError, csv.Error) as error:
        raise ConsiliumError(f"{file} cannot be read ({type(error).__name__}). {AGAIN}") from None
    refuse(np.array([len(line) != 2 for line in lines]), file, "not 'clip,class'; the file may be cut short", AGAIN)
    rows = pd.DataFrame(lines, columns=["clip", "label"])
    if rows.empty:
        raise ConsiliumError(f"{file} is empty. {AGAIN}")
    refuse(~rows["clip"].str.fullmatch(CLIP), file, "no name of a clip (actor_sentence_emotion_level)", AGAIN)
    refuse(~rows["label"].isin(CLASSES), file, f"the class is none of {', '.join(CLASSES)}", AGAIN)
    refuse(rows["clip"].str.split("_").str[2] != rows["label"], file, "the class is not the emotion of the clip's name", AGAIN)
    refuse(rows["clip"].duplicated(), file, "a clip is listed twice", AGAIN)
    return rows


def _middle_frame(folder: Path) -> Path | None:
    """Returns the middle one of a clip's frames, which are named by their number."""
    frames = sorted(folder.glob("*.jpg"))
    return frames[len(frames) // 2] if frames else None


def _stored() -> dict[str, Stored]:
    return {
        "audio": Stored({"kind": "audio"}, ".wav", place_file),
        "image": Stored({"kind": "image"}, ".jpg", place_file),
    }
