"""MIMIC-IV ``hosp``: demographics, kind of admission, and laboratory values of the first 48 h of a stay.

Which values the pooled-bottleneck paper uses could not be read ("such as demographics and laboratory tests"): these are ours. The
care unit is the site, and no feature.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv

from common.errors import ConsiliumError
from simulations.datasets.files import UNREADABLE
from simulations.datasets.mimic.layout import HOSPITAL, find, incomplete, read, refuse, tell, times, unreadable

# Name -> itemid, its label in d_labitems, unit as charted, UCUM unit, least and largest value that is read.
LABS: dict[str, tuple[int, str, str, str, float, float]] = {
    "albumin": (50862, "Albumin", "g/dL", "g/dL", 0.5, 8),
    "anion_gap": (50868, "Anion Gap", "mEq/L", "meq/L", 1, 60),
    "bicarbonate": (50882, "Bicarbonate", "mEq/L", "meq/L", 2, 70),
    "bilirubin": (50885, "Bilirubin, Total", "mg/dL", "mg/dL", 0.05, 80),
    "chloride": (50902, "Chloride", "mEq/L", "meq/L", 60, 160),
    "creatinine": (50912, "Creatinine", "mg/dL", "mg/dL", 0.05, 40),
    "glucose": (50931, "Glucose", "mg/dL", "mg/dL", 10, 2000),
    "hemoglobin": (51222, "Hemoglobin", "g/dL", "g/dL", 2, 25),
    "inr": (51237, "INR(PT)", "", "", 0.5, 30),
    "lactate": (50813, "Lactate", "mmol/L", "mmol/L", 0.1, 40),
    "platelets": (51265, "Platelet Count", "K/uL", "10*3/uL", 1, 2500),
    "potassium": (50971, "Potassium", "mEq/L", "meq/L", 1, 12),
    "ptt": (51275, "PTT", "sec", "s", 10, 200),
    "rdw": (51277, "RDW", "%", "%", 8, 40),
    "sodium": (50983, "Sodium", "mEq/L", "meq/L", 90, 200),
    "urea_nitrogen": (51006, "Urea Nitrogen", "mg/dL", "mg/dL", 1, 300),
    "white_cells": (51301, "White Blood Cells", "K/uL", "10*3/uL", 0.05, 500),
}
SEX = ("F", "M")
ADMISSIONS = (
    "AMBULATORY OBSERVATION", "DIRECT EMER.", "DIRECT OBSERVATION", "ELECTIVE", "EU OBSERVATION", "EW EMER.",
    "OBSERVATION ADMIT", "SURGICAL SAME DAY ADMISSION", "URGENT",
)  # fmt: skip
HOURS = 48


def code(admission_type: str) -> str:
    """Returns the category that the task has for an ``admission_type``."""
    return re.sub(r"[^a-z]+", "_", admission_type.lower()).strip("_")


def sources() -> dict[str, dict[str, Any]]:
    """Returns the table's variables as they stand in a manifest."""
    return {
        "age": {"column": "age", "unit": "a"},
        "sex": {"column": "sex"},
        "admission_type": {"column": "admission_type"},
        **{name: {"column": name, "unit": lab[3]} for name, lab in LABS.items()},
    }


def read_tables(root: Path, stays: pd.DataFrame, counts: dict[str, int]) -> tuple[pd.DataFrame, int]:
    """Reads the tables of some stays.

    Args:
        root: Folder that holds ``mimic-iv``; ``patients`` and ``admissions`` are in ``hosp/``, in version 1.0 in ``core/``.
        stays: visit, patient, hadm_id, intime, y_true.
        counts: Where to add what was left out.

    Returns:
        One row per stay: visit, age at admission (a), sex, admission_type, and the mean of each laboratory value over the first
        48 h of the stay; and how many stays have another outcome in ``hospital_expire_flag`` than in the list.

    Raises:
        ConsiliumError: If a file is missing, cut short or lacks a column, or knows a listed stay's subject or admission not.
    """
    home = root / HOSPITAL
    module = "core" if (home / "core").is_dir() else "hosp"
    people, file = read(home, f"{module}/patients.csv", ["subject_id", "gender", "anchor_age", "anchor_year"])
    refuse(~people["gender"].isin(SEX), file, "'gender' is neither F nor M")
    for column in ("anchor_age", "anchor_year"):
        refuse(pd.to_numeric(people[column], errors="coerce").isna(), file, f"'{column}' is no number")
    refuse(people["subject_id"].duplicated(), file, "a subject_id is there twice")
    by_patient = people.set_index(people["subject_id"].astype(str))
    if not stays["patient"].isin(by_patient.index).all():
        incomplete(file, "a subject of the lists is missing")
    columns = ["hadm_id", "admittime", "admission_type", "hospital_expire_flag"]
    admissions, file = read(home, f"{module}/admissions.csv", columns)
    year = times(admissions, "admittime", file).dt.year
    refuse(~admissions["hospital_expire_flag"].isin([0, 1]), file, "'hospital_expire_flag' is neither 0 nor 1")
    refuse(admissions["hadm_id"].duplicated(), file, "a hadm_id is there twice")
    by_admission = admissions.assign(year=year).set_index("hadm_id")
    if not stays["hadm_id"].isin(by_admission.index).all():
        incomplete(file, "an admission of root/all_stays.csv is missing")
    kind = stays["hadm_id"].map(by_admission["admission_type"])
    known = kind.isin(ADMISSIONS)
    tell(counts, {"admission types that are not documented": (~known).sum()})
    # anchor_age is the age in anchor_year; both years are shifted alike.
    born = by_patient["anchor_year"] - by_patient["anchor_age"]
    age = stays["hadm_id"].map(by_admission["year"]) - stays["patient"].map(born)
    table = pd.DataFrame(
        {
            "visit": stays["visit"],
            "age": age.astype(np.float32),
            "sex": stays["patient"].map(by_patient["gender"]),
            "admission_type": kind.where(known).map(code, na_action="ignore"),
        }
    )
    values = _labs(home, stays, counts).reindex(columns=list(LABS))
    other = int((stays["hadm_id"].map(by_admission["hospital_expire_flag"]) != stays["y_true"]).sum())
    return table.merge(values, left_on="visit", right_index=True, how="left").reset_index(drop=True), other


def _labs(home: Path, stays: pd.DataFrame, counts: dict[str, int]) -> pd.DataFrame:
    """Returns visit x laboratory value: means over the first 48 h."""
    _check_items(home)
    events, file = _events(home, stays["patient"])
    events["charttime"] = times(events, "charttime", file, first=None)
    pairs = events.merge(stays[["visit", "patient", "intime"]], on="patient")
    hours = (pairs["charttime"] - pairs["intime"]).dt.total_seconds() / 3600
    pairs = pairs[(hours >= 0) & (hours <= HOURS)]
    names = {lab[0]: name for name, lab in LABS.items()}
    lab = pairs["itemid"].map(names)
    unit = pairs["valueuom"].fillna("").str.replace(" ", "").str.lower()
    same = (unit == lab.map({name: each[2].lower() for name, each in LABS.items()})) | (unit == "")
    least, most = (lab.map({name: float(each[k]) for name, each in LABS.items()}) for k in (4, 5))
    possible = (pairs["valuenum"] >= least) & (pairs["valuenum"] <= most)
    tell(
        counts,
        {
            "laboratory values without a number": pairs["valuenum"].isna().sum(),
            "laboratory values in another unit": (pairs["valuenum"].notna() & ~same).sum(),
            "laboratory values that cannot be": (pairs["valuenum"].notna() & same & ~possible).sum(),
        },
    )
    kept = pairs[same & possible].assign(lab=lab)
    return kept.groupby(["visit", "lab"])["valuenum"].mean().unstack().astype(np.float32)


def _check_items(home: Path) -> None:
    """Refuses a dictionary in which an itemid means another value than here."""
    items, file = read(home, "hosp/d_labitems.csv", ["itemid", "label"], filled=["itemid"])
    labels = items.drop_duplicates("itemid").set_index("itemid")["label"]
    for itemid, label, *_ in LABS.values():
        if str(labels.get(itemid)).strip().lower() != label.lower():
            incomplete(file, f"itemid {itemid} is not '{label}'")


def _events(home: Path, patients: pd.Series[str]) -> tuple[pd.DataFrame, Path]:
    """Returns the laboratory values of some patients: patient, itemid, charttime, valuenum, valueuom.

    The table has more than a hundred million rows: it is read block by block.
    """
    file = find(home, "hosp/labevents.csv")
    kinds = {"subject_id": pa.int64(), "itemid": pa.int64(), "charttime": pa.string(), "valuenum": pa.float64()}
    convert = pv.ConvertOptions(include_columns=[*kinds, "valueuom"], column_types=kinds | {"valueuom": pa.string()})
    people, items = (
        pa.array(values, pa.int64()) for values in (patients.astype("int64").unique(), [v[0] for v in LABS.values()])
    )
    blocks = []
    try:
        parse = pv.ParseOptions(newlines_in_values=True)  # comments may have several lines
        with pv.open_csv(file, parse_options=parse, convert_options=convert) as reader:
            for block in reader:
                mine = pc.and_(pc.is_in(block["subject_id"], people), pc.is_in(block["itemid"], items))
                blocks.append(pa.Table.from_batches([block.filter(mine)]))
    except KeyError as error:
        raise ConsiliumError(f"{file} lacks the column {error} of its documentation. Download it again.") from None
    except (*UNREADABLE, pa.ArrowException) as error:
        raise unreadable(file, error) from None
    frame = pa.concat_tables(blocks).to_pandas()
    return frame.assign(patient=frame["subject_id"].astype(str)).drop(columns="subject_id"), file
