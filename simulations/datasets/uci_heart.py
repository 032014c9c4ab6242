"""UCI Heart Disease: four centres, one table each, by FLamby's protocol.

Reads the four ``processed.*.data`` files as UCI publishes them (Detrano et al., Am J Cardiol 1989; CC BY 4.0). From FLamby
(Ogier du Terrail et al., NeurIPS 2022, ``fed_heart_disease``): ``slope``, ``ca`` and ``thal`` are left out, because three centres
hardly recorded them, then every row with an empty cell (740 of 920 rows stay); the outcome is ``num > 0``; per centre 34 % of
the rows test, drawn once by seed 43 and balanced by outcome. So the test rows are FLamby's own 254.

Otherwise than there, a cholesterol or a resting blood pressure of 0 is an empty cell (Switzerland measured no cholesterol and
wrote 0), which removes no row, and numbers are scaled by the moments of all training sites together, not of each centre.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from common.errors import ConsiliumError
from simulations.datasets.files import finish_sites, new_sites, verified, write_site

FOLDER = "uci_heart"
ROWS = {"cleveland": 303, "hungarian": 294, "switzerland": 123, "va": 200}
FILES = {centre: f"processed.{centre}.data" for centre in ROWS}
HOW_TO_GET = (
    f"Download {', '.join(FILES.values())} of 'Heart Disease' from the UCI Machine Learning Repository "
    f"(https://archive.ics.uci.edu/dataset/45/heart+disease, CC BY 4.0) into a folder '{FOLDER}', and set CONSILIUM_DATA to the "
    f"folder that holds '{FOLDER}'; or run: consilium-bench fetch {FOLDER}"
)
COLUMNS = ["age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca", "thal", "num"]
LEFT_OUT = ["slope", "ca", "thal"]
NEVER_ZERO = ["trestbps", "chol"]
TRAIN_SHARE, SPLIT_SEED = 0.66, 43
UNITS = {"age": "a", "trestbps": "mm[Hg]", "chol": "mg/dL", "fbs": "", "thalach": "/min", "exang": "", "oldpeak": "mm"}
CODES = {
    "sex": {"0": "F", "1": "M"},
    "cp": {"1": "typical_angina", "2": "atypical_angina", "3": "non_anginal_pain", "4": "asymptomatic"},
    "restecg": {"0": "normal", "1": "st_t_abnormality", "2": "left_ventricular_hypertrophy"},
}


@dataclass(frozen=True)
class HeartRows:
    """The rows of the four centres.

    Attributes:
        rows: One row per patient: patient, visit, centre, split (``train`` or ``test``), disease (0/1), and the ten features.
        exclusions: What was left out -> how many.
        checksum: SHA-256 over the checksums of the files.
    """

    rows: pd.DataFrame
    exclusions: Mapping[str, int]
    checksum: str


@functools.cache
def load(root: Path) -> HeartRows:
    """Reads the data set; a second call with the same root answers from memory (do not change its frame).

    Args:
        root: Folder with the four files.

    Raises:
        ConsiliumError: If a file is missing, damaged or truncated, naming it and the public home of the data.
    """
    checksum = verified(root, FILES.values(), HOW_TO_GET)
    whole = pd.concat([_centre(root / file, centre) for centre, file in FILES.items()], ignore_index=True).drop(columns=LEFT_OUT)
    rows = whole.dropna()
    exclusions = {"rows with an empty cell": len(whole) - len(rows)}
    rows = rows.assign(disease=(rows["num"] > 0).astype(int)).drop(columns="num")
    split = pd.concat([_split(part) for _, part in rows.groupby("centre", sort=False)])
    rows = rows.assign(split=split, visit=rows["patient"])
    rows[NEVER_ZERO] = rows[NEVER_ZERO].where(rows[NEVER_ZERO] != 0)
    rows[list(CODES)] = rows[list(CODES)].astype(int)
    return HeartRows(rows.reset_index(drop=True), exclusions, checksum)


def write_sites(heart: HeartRows, folder: Path) -> dict[str, Any]:
    """Writes the four centres as sites that train and test; their tables fix the split. There is no reference set.

    Args:
        heart: What :func:`load` returned.
        folder: New or empty folder; it appears complete or not at all.

    Returns:
        ``data_checksum``, ``exclusions`` and ``n`` per role (patients, diseased, sites).

    Raises:
        ConsiliumError: If the folder is not empty.
    """
    partial = new_sites(folder)
    variables: dict[str, dict[str, Any]] = {name: {"column": name, "unit": unit} for name, unit in UNITS.items()}
    variables |= {name: {"column": name, "codes": codes} for name, codes in CODES.items()}
    manifest = {
        "labels": {"disease": "disease"},
        "split": "split",
        "modalities": {"table": {"kind": "table", "variables": variables}},
    }
    for centre, rows in heart.rows.groupby("centre"):
        write_site(partial / str(centre), rows.drop(columns="centre"), manifest, {})
    finish_sites(partial)
    n = {
        str(split): {"patients": len(rows), "diseased": int(rows["disease"].sum()), "sites": int(rows["centre"].nunique())}
        for split, rows in heart.rows.groupby("split")
    }
    return {"data_checksum": heart.checksum, "exclusions": dict(heart.exclusions), "n": n}


def _centre(file: Path, centre: str) -> pd.DataFrame:
    """Returns the rows of one centre, NaN where a cell is '?'."""
    try:
        rows = pd.read_csv(file, names=COLUMNS, na_values="?", dtype=np.float64)
    except ValueError as error:
        raise ConsiliumError(
            f"{file} is no table of {len(COLUMNS)} columns of numbers ({type(error).__name__}). {HOW_TO_GET}"
        ) from None
    if len(rows) != ROWS[centre]:
        raise ConsiliumError(f"{file} holds {len(rows)} rows, the official file has {ROWS[centre]}. {HOW_TO_GET}")
    if centre == "cleveland" and rows["num"].max() < 2:
        raise ConsiliumError(f"{file}: 'num' knows no grade above 1; recoded copies are about, some inverted. {HOW_TO_GET}")
    return rows.assign(centre=centre, patient=[f"{centre}-{number:03d}" for number in range(len(rows))])


def _split(rows: pd.DataFrame) -> pd.Series[str]:
    """Returns FLamby's split of a centre: the same call on the same rows in the same order."""
    balanced = rows["disease"].value_counts().min() > 2  # Switzerland has a single healthy patient
    train, _ = train_test_split(
        np.arange(len(rows)),
        test_size=1 - TRAIN_SHARE,
        train_size=TRAIN_SHARE,
        random_state=SPLIT_SEED,
        shuffle=True,
        stratify=rows["disease"] if balanced else None,
    )
    return pd.Series(["train" if at in train else "test" for at in range(len(rows))], index=rows.index)
