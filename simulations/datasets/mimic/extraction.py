"""MedFuse's extraction of MIMIC-IV: lists of stays with labels and split, care units, and the 17 charted variables.

The layout was read in the public code of MedFuse (nyuad-cai/MedFuse, mimic4extract, after YerevaNN/mimic3-benchmarks):
``{task}/{train,val,test}_listfile.csv`` with ``stay,period_length,stay_id`` and the labels, a series
``{subject}_episode{n}_timeseries.csv`` per stay in ``{task}/train`` (validation too) or ``{task}/test``, and
``root/all_stays.csv``. The lists decide who trains, validates and tests, by subject.

MedFuse feeds its network 76 channels: 12 numbers, 47 categories one-hot, 17 masks. Here the same 17 variables enter as numbers:
an answer on the Glasgow coma scale is its grade (two spellings of one grade are one value), and the masks are the project's own.
Nothing is imputed. A stay counts with its ``last_careunit``: the extraction keeps stays with one care unit only, so that it is
the first one too.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.errors import ConsiliumError
from simulations.datasets.files import UNREADABLE
from simulations.datasets.mimic.layout import EXTRACTED, incomplete, read, refuse, tell, times, unreadable

MORTALITY, PHENOTYPING = "in-hospital-mortality", "phenotyping"
PARTS = ("train", "val", "test")
REPORTED = {MORTALITY: (18845, 2138, 5243)}
"""Task -> stays that MedFuse lists for training, validation and test."""
STAY = r"(\d+)_episode\d+_timeseries\.csv"
CHUNK = 2000  # files that are read at once
LAST_MOMENT = 1 / 60  # hours

CONDITIONS = (
    "Acute and unspecified renal failure", "Acute cerebrovascular disease", "Acute myocardial infarction",
    "Cardiac dysrhythmias", "Chronic kidney disease", "Chronic obstructive pulmonary disease and bronchiectasis",
    "Complications of surgical procedures or medical care", "Conduction disorders",
    "Congestive heart failure; nonhypertensive", "Coronary atherosclerosis and other heart disease",
    "Diabetes mellitus with complications", "Diabetes mellitus without complication", "Disorders of lipid metabolism",
    "Essential hypertension", "Fluid and electrolyte disorders", "Gastrointestinal hemorrhage",
    "Hypertension with complications and secondary hypertension", "Other liver diseases", "Other lower respiratory disease",
    "Other upper respiratory disease", "Pleurisy; pneumothorax; pulmonary collapse",
    "Pneumonia (except that caused by tuberculosis or sexually transmitted disease)",
    "Respiratory failure; insufficiency; arrest (adult)", "Septicemia (except in labor)", "Shock",
)  # fmt: skip
LABELS = {MORTALITY: ("y_true",), PHENOTYPING: CONDITIONS}

EYE, MOTOR, VERBAL = (f"Glascow coma scale {part}" for part in ("eye opening", "motor response", "verbal response"))
VARIABLES = {
    "Capillary refill rate": ("", 0, 1),
    "Diastolic blood pressure": ("mm[Hg]", 10, 200),
    "Fraction inspired oxygen": ("", 0.2, 1),
    EYE: ("", 1, 4),
    MOTOR: ("", 1, 6),
    "Glascow coma scale total": ("", 3, 15),
    VERBAL: ("", 1, 5),
    "Glucose": ("mg/dL", 10, 2000),
    "Heart Rate": ("/min", 10, 300),
    "Height": ("cm", 100, 230),
    "Mean blood pressure": ("mm[Hg]", 10, 250),
    "Oxygen saturation": ("%", 20, 100),
    "Respiratory rate": ("/min", 1, 80),
    "Systolic blood pressure": ("mm[Hg]", 20, 300),
    "Temperature": ("Cel", 25, 45),
    "Weight": ("kg", 20, 350),
    "pH": ("", 6.5, 8),
}
"""Column of a series, in the file's order -> unit, and the least and largest value that is read: the extraction removes no slip
of the keyboard, and a few of them move the mean and the deviation by which all sites are scaled."""
GRADES = {
    EYE: {"None": 1, "1 No Response": 1, "To Pain": 2, "2 To pain": 2, "To Speech": 3, "3 To speech": 3,
          "Spontaneously": 4, "4 Spontaneously": 4},
    MOTOR: {"No response": 1, "1 No Response": 1, "Abnormal extension": 2, "2 Abnorm extensn": 2, "Abnormal Flexion": 3,
            "3 Abnorm flexion": 3, "Flex-withdraws": 4, "4 Flex-withdraws": 4, "Localizes Pain": 5, "5 Localizes Pain": 5,
            "Obeys Commands": 6, "6 Obeys Commands": 6},
    VERBAL: {"No Response": 1, "1 No Response": 1, "No Response-ETT": 1, "1.0 ET/Trach": 1, "Incomprehensible sounds": 2,
             "2 Incomp sounds": 2, "Inappropriate Words": 3, "3 Inapprop words": 3, "Confused": 4, "4 Confused": 4,
             "Oriented": 5, "5 Oriented": 5},
}  # fmt: skip
"""Variable -> answer as charted -> grade of the Glasgow coma scale."""
HEADER = ",".join(["Hours", *VARIABLES]).encode()


def read_stays(root: Path, task: str, counts: dict[str, int]) -> pd.DataFrame:
    """Reads the lists of a task, and of their stays what ``all_stays.csv`` knows.

    Args:
        root: Folder that holds ``mimic-iv-extracted``.
        task: ``in-hospital-mortality`` or ``phenotyping``.
        counts: Where to add how many stays of ``all_stays.csv`` the lists leave out.

    Returns:
        One row per stay, sorted by visit: visit (stay_id), patient (subject_id), hadm_id, unit, part (train, val, test), line
        (of its list), stay (name of the series' file), intime, outtime, and the labels (0/1).

    Raises:
        ConsiliumError: If a file or column is missing or cut short, a label is neither 0 nor 1, a stay or a subject is in two
            lists, or the lists and ``all_stays.csv`` do not belong together.
    """
    folder = root / EXTRACTED
    columns = ["subject_id", "hadm_id", "stay_id", "last_careunit", "intime", "outtime"]
    stays, file = read(folder, "root/all_stays.csv", columns)
    refuse(stays["stay_id"].duplicated(), file, "a stay_id is there twice")
    stays = stays.assign(intime=times(stays, "intime", file), outtime=times(stays, "outtime", file))
    listed = pd.concat([_listed(folder, task, part) for part in PARTS], ignore_index=True)
    _refuse_overlap(listed, folder / task)
    frame = listed.merge(stays, on="stay_id", how="left", validate="one_to_one")
    unknown = int(frame["subject_id"].isna().sum())
    if unknown:
        incomplete(folder / task, f"{unknown:,} of {len(frame):,} listed stays are not in root/all_stays.csv")
    if (frame["subject"] != frame["subject_id"].astype("int64")).any():
        incomplete(folder / task, "the file name of a listed stay names another subject than root/all_stays.csv")
    tell(counts, {f"stays that the lists of {task} leave out": len(stays) - len(frame)})
    frame = frame.rename(columns={"last_careunit": "unit"}).assign(
        visit=frame["stay_id"].astype(str), patient=frame["subject"].astype(str), hadm_id=frame["hadm_id"].astype("int64")
    )
    columns = ["visit", "patient", "hadm_id", "unit", "part", "line", "stay", "intime", "outtime", *LABELS[task]]
    return frame[columns].sort_values("visit", ignore_index=True)


def _listed(folder: Path, task: str, part: str) -> pd.DataFrame:
    """Returns the stays of one list."""
    labels = list(LABELS[task])
    frame, file = read(folder, f"{task}/{part}_listfile.csv", ["stay", "period_length", "stay_id", *labels])
    subject = frame["stay"].astype(str).str.extract(f"^{STAY}$", expand=False)
    refuse(subject.isna(), file, "'stay' is no name like SUBJECT_episode1_timeseries.csv")
    for label in labels:
        refuse(~frame[label].isin([0, 1]), file, f"the label '{label}' is neither 0 nor 1")
    refuse(frame["stay_id"].duplicated(), file, "a stay is listed twice")
    return frame.assign(subject=subject.astype("int64"), part=part, line=frame.index + 2)


def _refuse_overlap(listed: pd.DataFrame, folder: Path) -> None:
    """Refuses lists that share a subject: its test stays would have trained."""
    lists = listed[["subject", "part"]].drop_duplicates()
    shared = lists[lists["subject"].duplicated(keep=False)].sort_values("subject", kind="stable")
    if len(shared):
        names = " and ".join(f"{part}_listfile.csv" for part in shared["part"].iloc[:2])
        raise ConsiliumError(
            f"{folder}: {shared['subject'].nunique():,} subject(s) are in two lists, the first in {names}. A subject belongs to "
            "one part: make the lists again with mimic3models.split_train_val, from one train/listfile.csv and one "
            "test/listfile.csv."
        )


def read_series(root: Path, task: str, stays: pd.DataFrame, hours: int, counts: dict[str, int]) -> pd.DataFrame:
    """Reads the charted values of the first hours of some stays.

    Args:
        root: Folder that holds ``mimic-iv-extracted``.
        task: Whose series.
        stays: Rows of :func:`read_stays`.
        hours: From ``intime``; what was charted later is left out. What was charted in their last instant belongs to them.
        counts: Where to add what was left out.

    Returns:
        Long: visit, hour, the 17 variables (float32), sorted; rows without a value are left out.

    Raises:
        ConsiliumError: If a series is missing, cut short, or has other columns.
    """
    chunks, lost = [], dict.fromkeys(("late", "no number", "impossible"), 0)
    for start in range(0, len(stays), CHUNK):
        lines: list[bytes] = []
        some = stays.iloc[start : start + CHUNK]
        for visit, part, line, name in zip(some["visit"], some["part"], some["line"], some["stay"], strict=True):
            file = root / EXTRACTED / task / ("test" if part == "test" else "train") / str(name)
            # The file's own name is the subject's: an error tells the line of the list instead.
            listed = f"{root / EXTRACTED / task}/{part}_listfile.csv, line {line}: its series"
            lines += [visit.encode() + b"," + charted for charted in _lines(file, listed)]
        chunks.append(_values(lines, root / EXTRACTED / task, hours, lost))
    tell(
        counts,
        {
            f"rows of the series after {hours} h": lost["late"],
            "values of the series that are no number or grade": lost["no number"],
            "values of the series that cannot be": lost["impossible"],
        },
    )
    return pd.concat(chunks, ignore_index=True)


def _lines(file: Path, listed: str) -> Sequence[bytes]:
    """Returns the lines of a series behind its header; all of them whole."""
    if not file.is_file():
        raise ConsiliumError(f"{listed} is missing. Make the extraction again; a copy of it may be incomplete.")
    text = file.read_bytes()
    header, *lines = text.splitlines() or [b""]
    if header != HEADER:
        columns = header.decode(errors="replace").split(",")
        absent = [name for name in VARIABLES if name not in columns]
        fault = (
            f"lacks the column(s) {', '.join(absent)}" if absent else "has other columns than Hours and the 17, or another order"
        )
        raise ConsiliumError(f"{listed} {fault}. Extract it again, with MedFuse's itemid_to_variable_map.csv.")
    for number, line in enumerate(lines, 2):
        if line.count(b",") != len(VARIABLES):
            fault = f"has {line.count(b',') + 1} fields instead of {len(VARIABLES) + 1} in its line {number}"
            raise ConsiliumError(f"{listed} {fault}: it is cut short. Extract it again.")
    if not lines or not text.endswith(b"\n"):
        raise ConsiliumError(f"{listed} has no end in its line {len(lines) + 1}: it is cut short. Extract it again.")
    return lines


def _values(lines: list[bytes], folder: Path, hours: int, lost: dict[str, int]) -> pd.DataFrame:
    """Returns the lines of some series as numbers; adds to ``lost`` what is none."""
    names = ["visit", "hour", *VARIABLES]
    try:
        kinds: dict[Any, Any] = {"visit": str, **dict.fromkeys(GRADES, "category")}
        # 'None' is an answer on the coma scale, and no missing value.
        text = io.BytesIO(b"\n".join(lines))
        frame = pd.read_csv(text, names=names, dtype=kinds, keep_default_na=False, na_values=[""], low_memory=False)
        frame["hour"] = frame["hour"].astype(float)
    except UNREADABLE as error:
        raise unreadable(folder, error) from None
    late = frame["hour"] > hours + 1e-6
    lost["late"] += int(late.sum())
    frame = frame[~late]
    values = {"visit": frame["visit"], "hour": frame["hour"].clip(0, hours - LAST_MOMENT)}
    for name, (_, least, most) in VARIABLES.items():
        charted = frame[name]
        number = charted.astype(object).map(GRADES[name]) if name in GRADES else charted
        value = pd.to_numeric(number, errors="coerce").astype(np.float64)
        possible = value.between(least, most)
        lost["no number"] += int((charted.notna() & value.isna()).sum())
        lost["impossible"] += int((value.notna() & ~possible).sum())
        values[name] = value.where(possible).astype(np.float32)
    found = pd.DataFrame(values)
    return found.dropna(how="all", subset=list(VARIABLES)).sort_values(["visit", "hour"], ignore_index=True)
