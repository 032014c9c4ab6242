"""A generated twin of MIMIC in its official layout, for tests and for people without access. No patient in it is real.

Truth: a stay has six severities of N(0, 1), 30 % of their variance the patient's: heart, lungs, circulation, metabolism,
brain, frailty. A patient dies in hospital if ``STEEP * (their sum) / sqrt(6) + N(0, 1)`` is in the upper ``DEATHS`` of its
distribution, and has each of the 25 conditions if ``STEEP * (the severity of its organ) + N(0, 1)`` is in the upper share of
``ORGANS``. No modality shows all six: the series lungs, circulation, metabolism and brain; the X-ray heart and lungs; the history
heart, brain and frailty; the table circulation, metabolism and frailty. So each tells something, and all together more than the
best. Whoever knew the severities would reach an AUROC of .92 for death; from those of the series alone .84, of history or table
.79, of the X-ray .74; from its organ's .91 for a condition. Every sign adds noise of its own.

What the readers must leave out is there too: X-rays of another view, of before the last one, of after 48 h and outside the stay
(noise), stays under 48 h, slips of the keyboard, values in other units and after 48 h, summaries without the section or with a
word of death in it, addenda, and a hospital course that tells the outcome.

Another file is another ``VERSION``. In the first one the X-ray was so noisy that a network learned little from a few hundred;
that was seen with another seed, and ``CLEAR`` is the answer. In the second one fewer summaries were absent. In the third one
``patients.csv`` had no ``anchor_year``, so that nobody grew older between two stays. The seed
``FINAL_SEED`` is kept for the table that the benchmark prints; tests and development use others.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import norm

from common.errors import ConsiliumError
from simulations.datasets.files import new_twin
from simulations.datasets.mimic import twin_signs as signs
from simulations.datasets.mimic.cxr import METADATA
from simulations.datasets.mimic.extraction import CONDITIONS, MORTALITY, PARTS, PHENOTYPING
from simulations.datasets.mimic.layout import CXR, EXTRACTED, HOSPITAL, NOTES
from simulations.datasets.mimic.tables import ADMISSIONS, HOURS, LABS
from simulations.signs import draw_chest

VERSION = 4
DRAWS = 3
"""Version whose random numbers are drawn: the fourth one only adds ``anchor_year``."""
FINAL_SEED = 2026
PATIENTS = 2000
SHARES = (6, 2, 2)  # of ten patients train, validate, test: with fewer a handful of deaths would choose the rounds
PIXELS = 64
STEEP, DEATHS, OWN, CLEAR = 1.5, 0.2, 0.3, 1.6
SEVERITIES = ("heart", "lungs", "circulation", "metabolism", "brain", "frailty")
UNITS = {
    "Medical Intensive Care Unit (MICU)": 0.3,
    "Surgical Intensive Care Unit (SICU)": 0.2,
    "Cardiac Vascular Intensive Care Unit (CVICU)": 0.2,
    "Coronary Care Unit (CCU)": 0.12,
    "Trauma SICU (TSICU)": 0.1,
    "Neuro Surgical Intensive Care Unit (Neuro SICU)": 0.08,
}
ORGANS = {
    "heart": (0.25, (2, 3, 7, 8, 9, 12, 13, 16)),
    "lungs": (0.2, (5, 18, 19, 20, 21, 22)),
    "circulation": (0.2, (6, 15, 23, 24)),
    "metabolism": (0.25, (0, 4, 10, 11, 14, 17)),
    "brain": (0.15, (1,)),
}
"""Severity -> share of stays with each of its conditions, and their places in ``CONDITIONS``."""
START = pd.Timestamp("2150-01-01")
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """What the files are drawn from.

    Attributes:
        stays: One row per stay: subject_id, hadm_id, stay_id, episode, part, unit, intime, outtime, hours, y_true, conditions.
        severity: Name -> severity of each stay (n,).
    """

    stays: pd.DataFrame
    severity: Mapping[str, Array]


def write_twin(root: Path, *, seed: int, patients: int = PATIENTS) -> Truth:
    """Writes the twin; equal arguments give equal files.

    Args:
        root: New folder, which will hold the folders of the data sets and the mark of generated patients.
        seed: Seed of everything random; ``FINAL_SEED`` is the table's.
        patients: Number of patients; a sixth of them has two stays.

    Returns:
        What the files were drawn from.

    Raises:
        ConsiliumError: If the folder exists, or there are too few patients for three parts with both outcomes.
    """
    if patients < 60:
        raise ConsiliumError(f"A twin of {patients} patients has too few deaths to learn from. Ask for at least 60.")
    rng = np.random.default_rng([DRAWS, seed])
    truth = draw_truth(patients, rng)
    with new_twin(root, version=VERSION, seed=seed, patients=patients) as partial:
        _write_extraction(partial / EXTRACTED, truth, rng)
        _write_images(partial / CXR, truth, rng)
        _write_hospital(partial / HOSPITAL, truth, rng)
        _write_notes(partial / NOTES, truth, rng)
    return truth


def draw_truth(patients: int, rng: np.random.Generator) -> Truth:
    """Draws who is how ill, dies of it, and lies where."""
    person = np.sort(np.concatenate([np.arange(patients), rng.permutation(patients)[: patients // 6]]))
    n = len(person)
    severity = {
        name: np.sqrt(OWN) * rng.standard_normal(patients)[person] + np.sqrt(1 - OWN) * rng.standard_normal(n)
        for name in SEVERITIES
    }
    whole = np.sum(list(severity.values()), axis=0) / np.sqrt(len(SEVERITIES))
    spread = np.sqrt(STEEP**2 + 1)

    def ill(strength: Array, share: float) -> NDArray[np.int64]:
        return np.asarray(STEEP * strength + rng.standard_normal(n) > spread * norm.isf(share), dtype=np.int64)

    conditions = {CONDITIONS[k]: ill(severity[organ], share) for organ, (share, places) in ORGANS.items() for k in places}
    part = rng.permutation(np.resize(np.repeat(PARTS, SHARES), patients))[person]
    hours = np.clip(24 + rng.gamma(2.0, 30.0, n) + 6 * whole, 8, 300).round(2)
    days = rng.integers(0, 3000, n) + 400.0 * (pd.Series(person).groupby(person).cumcount().to_numpy() * 10)
    start = START + pd.to_timedelta(days, "D") + pd.to_timedelta(rng.integers(0, 86400, n), "s")
    subject = 10_000_000 + rng.choice(9_999_999, patients, replace=False)[person]
    stays = pd.DataFrame(
        {
            "subject_id": subject,
            "hadm_id": 20_000_000 + rng.choice(9_999_999, n, replace=False),
            "stay_id": 30_000_000 + rng.choice(9_999_999, n, replace=False),
            "episode": pd.Series(person).groupby(person).cumcount() + 1,
            "part": part,
            "unit": rng.choice(list(UNITS), n, p=list(UNITS.values())),
            "intime": start,
            "outtime": start + pd.to_timedelta((hours * 3600).round(), "s"),
            "hours": hours,
            "y_true": ill(whole, DEATHS),
            **{name: conditions[name] for name in CONDITIONS},
        }
    )
    return Truth(stays, severity)


def _write_extraction(folder: Path, truth: Truth, rng: np.random.Generator) -> None:
    """Writes ``all_stays.csv``, and lists and series of both tasks."""
    stays = truth.stays
    (folder / "root").mkdir(parents=True)
    listed = stays[["subject_id", "hadm_id", "stay_id"]].assign(
        last_careunit=stays["unit"], intime=stays["intime"], outtime=stays["outtime"], los=stays["hours"] / 24
    )
    transferred = listed.iloc[:3].assign(stay_id=listed["stay_id"].iloc[:3] + 10_000_000)  # stays without an event
    pd.concat([listed, transferred]).to_csv(folder / "root" / "all_stays.csv", index=False)
    series = signs.draw_series(truth.severity, stays["hours"].to_numpy(), rng)
    first = np.searchsorted(series.pop("stay"), np.arange(len(stays) + 1))
    early = series["Hours"].to_numpy() <= HOURS
    header, *lines = series.to_csv(index=False).splitlines(keepends=True)
    names = [f"{s}_episode{e}_timeseries.csv" for s, e in zip(stays["subject_id"], stays["episode"], strict=True)]
    for task, columns in ((MORTALITY, ["y_true"]), (PHENOTYPING, list(CONDITIONS))):
        dies = task == MORTALITY
        long_enough = stays["hours"] >= (HOURS if dies else 0)
        period = 0 if dies else stays["hours"].map("{:.6f}".format)
        table = pd.DataFrame({"stay": names, "period_length": period, "stay_id": stays["stay_id"]}).join(stays[columns])
        for place in ("train", "test"):
            (folder / task / place).mkdir(parents=True)
            here = long_enough & ((stays["part"] == "test") == (place == "test"))
            table[here].to_csv(folder / task / place / "listfile.csv", index=False)
            for row in np.flatnonzero(here):
                mine = slice(first[row], first[row] + int(early[first[row] : first[row + 1]].sum()) if dies else first[row + 1])
                (folder / task / place / names[row]).write_text(header + "".join(lines[mine]), encoding="utf-8")
        for part in PARTS:
            table[long_enough & (stays["part"] == part)].to_csv(folder / task / f"{part}_listfile.csv", index=False)


def _write_images(folder: Path, truth: Truth, rng: np.random.Generator) -> None:
    """Writes the metadata and ``resized/``: three stays of four have an X-ray, some of them other ones too."""
    (folder / "resized").mkdir(parents=True)
    stays = truth.stays
    rows: list[tuple[Any, ...]] = []
    strength = CLEAR * (truth.severity["heart"] + truth.severity["lungs"]) / np.sqrt(2)
    for row, (subject, start, hours) in enumerate(zip(stays["subject_id"], stays["intime"], stays["hours"], strict=True)):
        if rng.random() < 0.25:
            continue
        within = min(hours, 48.0)
        taken = [(within * rng.uniform(0.5, 1), "AP", True)]
        taken += [(within * rng.uniform(0, 0.5), "AP", False)] if rng.random() < 0.3 else []
        taken += [(within * rng.uniform(0, 1), rng.choice(["PA", "LATERAL"]), False)] if rng.random() < 0.15 else []
        taken += [(-rng.uniform(1, 500), "AP", False)] if rng.random() < 0.15 else []
        taken += [(hours + rng.uniform(1, 50), "AP", False)] if rng.random() < 0.1 else []
        for hour, view, real in taken:
            dicom = "-".join(f"{v:08x}" for v in rng.integers(0, 2**32, 5))
            size = (PIXELS, PIXELS)
            image = draw_chest(float(strength[row]), size, rng) if real else rng.random(size)
            buffer = io.BytesIO()
            Image.fromarray((255 * image).astype(np.uint8)).save(buffer, format="jpeg", quality=92)
            (folder / "resized" / f"{dicom}.jpg").write_bytes(buffer.getvalue())
            when = start + pd.Timedelta(hours=hour)
            clock = f"{int(when.strftime('%H%M%S'))}.{rng.integers(0, 1000):03d}"
            rows.append((dicom, subject, 50_000_000 + len(rows), view, when.strftime("%Y%m%d"), clock))
    names = ["dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime"]
    metadata = pd.DataFrame(rows, columns=names)
    metadata.loc[metadata["ViewPosition"] == "LATERAL", "ViewPosition"] = None
    _gzip(metadata.assign(Rows=PIXELS, Columns=PIXELS), folder / f"{METADATA}.gz")


def _write_hospital(folder: Path, truth: Truth, rng: np.random.Generator) -> None:
    """Writes patients, admissions and laboratory values."""
    (folder / "hosp").mkdir(parents=True)
    stays, severity = truth.stays, truth.severity
    age = (62 + 13 * (0.8 * severity["frailty"] + rng.standard_normal(len(stays)))).clip(18, 91).round().astype(int)
    admitted = stays["intime"] - pd.Timedelta(hours=5)
    people = stays[["subject_id"]].assign(gender=rng.choice(["F", "M"], len(stays)), anchor_age=age, anchor_year=admitted.dt.year)
    _gzip(people.drop_duplicates("subject_id"), folder / "hosp" / "patients.csv.gz")
    kind = np.where(severity["frailty"] + rng.standard_normal(len(stays)) > 0.8, "EW EMER.", rng.choice(ADMISSIONS, len(stays)))
    admissions = stays[["subject_id", "hadm_id"]].assign(
        admittime=admitted, admission_type=kind, hospital_expire_flag=stays["y_true"]
    )
    _gzip(admissions, folder / "hosp" / "admissions.csv.gz")
    items = [(lab[0], lab[1], "Blood", "Chemistry") for lab in LABS.values()] + [
        (signs.OTHER_ITEM, "Triglycerides", "Blood", "Chemistry")
    ]
    _gzip(pd.DataFrame(items, columns=["itemid", "label", "fluid", "category"]), folder / "hosp" / "d_labitems.csv.gz")
    events = signs.draw_labs(severity, rng)
    at = stays.iloc[events.pop("row")].reset_index(drop=True)
    time = at["intime"] + pd.to_timedelta((events.pop("hour") * 3600).round(), "s")
    events = events.assign(labevent_id=np.arange(len(events)), subject_id=at["subject_id"], hadm_id=at["hadm_id"], charttime=time)
    events["comments"] = pd.Series("HEMOLYZED.\nINTERPRET WITH CARE.", events.index).where(events.index % 50 == 0)
    _gzip(events.sort_values("subject_id", kind="stable"), folder / "hosp" / "labevents.csv.gz")


def _write_notes(folder: Path, truth: Truth, rng: np.random.Generator) -> None:
    """Writes discharge summaries; one admission of four has none, as in MIMIC-IV, and some have an addendum."""
    (folder / "note").mkdir(parents=True)
    rows = []
    for row, (subject, admission, died) in enumerate(
        zip(truth.stays["subject_id"], truth.stays["hadm_id"], truth.stays["y_true"], strict=True)
    ):
        if rng.random() < 1 / 4:
            continue
        text = signs.draw_summary({name: float(values[row]) for name, values in truth.severity.items()}, bool(died), rng)
        rows.append((f"{subject}-DS-{2 + row}", subject, admission, "DS", 2 + row, text))
        if rng.random() < 0.05:
            rows.append((f"{subject}-AD-{2 + row}", subject, admission, "AD", 2 + row, "History of Present Illness:\nnone"))
    _gzip(
        pd.DataFrame(rows, columns=["note_id", "subject_id", "hadm_id", "note_type", "note_seq", "text"]),
        folder / "note" / "discharge.csv.gz",
    )


def _gzip(frame: pd.DataFrame, file: Path) -> None:
    """Writes a CSV file, packed without the time of day, so that equal frames give equal files."""
    file.write_bytes(gzip.compress(frame.to_csv(index=False).encode(), 1, mtime=0))
