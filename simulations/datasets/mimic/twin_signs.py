"""What the severities of the twin look like in series, laboratory values and discharge summaries; see ``twin``."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulations.datasets.mimic.extraction import EYE, MOTOR, VERBAL
from simulations.datasets.mimic.tables import LABS

Array = NDArray[np.float64]
SHARP = 0.8  # of a sign's strength, its severity's part; the rest is its own

OTHER_ITEM = 51000  # triglycerides, which nobody reads

# Variable -> typical value, spread between stays, change per unit of strength, severity (if any), share of hours, decimals.
CHARTED = {
    "Capillary refill rate": (-1.2, 0.3, 0.8, "circulation", 0.05, 0),
    "Diastolic blood pressure": (62, 8, -6, "circulation", 0.5, 1),
    "Fraction inspired oxygen": (0.45, 0.06, 0.08, "lungs", 0.15, 2),
    EYE: (3.6, 0.3, -0.7, "brain", 0.25, 0),
    MOTOR: (5.6, 0.4, -0.9, "brain", 0.25, 0),
    "Glascow coma scale total": (13.5, 1, -2, "brain", 0.02, 0),
    VERBAL: (4.4, 0.5, -1, "brain", 0.25, 0),
    "Glucose": (135, 25, 22, "metabolism", 0.2, 1),
    "Heart Rate": (85, 12, 8, "circulation", 0.6, 1),
    "Height": (170, 9, 0, "", 0.01, 1),
    "Mean blood pressure": (78, 8, -6, "circulation", 0.5, 1),
    "Oxygen saturation": (96.5, 1, -1.2, "lungs", 0.5, 1),
    "Respiratory rate": (19, 3, 2.5, "lungs", 0.5, 1),
    "Systolic blood pressure": (121, 14, -8, "circulation", 0.5, 1),
    "Temperature": (36.9, 0.4, 0.25, "circulation", 0.2, 1),
    "Weight": (82, 17, 0, "", 0.02, 1),
    "pH": (7.38, 0.04, -0.05, "metabolism", 0.1, 2),
}
ANSWERS = {
    EYE: ("None", "To Pain", "To Speech", "Spontaneously"),
    MOTOR: ("No response", "Abnormal extension", "Abnormal Flexion", "Flex-withdraws", "Localizes Pain", "Obeys Commands"),
    VERBAL: ("No Response-ETT", "Incomprehensible sounds", "Inappropriate Words", "Confused", "Oriented"),
}
LIMITS = {"Capillary refill rate": (0, 1), "Fraction inspired oxygen": (0.21, 1), "Oxygen saturation": (60, 100)}

# Laboratory value -> typical value, spread of its logarithm, change of its logarithm per unit of strength, severity (if any).
LEVELS = {
    "albumin": (3.3, 0.15, -0.12, "frailty"),
    "anion_gap": (14, 0.15, 0.12, "metabolism"),
    "bicarbonate": (24, 0.12, -0.1, "metabolism"),
    "bilirubin": (0.8, 0.6, 0.2, "metabolism"),
    "chloride": (103, 0.04, 0, ""),
    "creatinine": (1.1, 0.4, 0.35, "metabolism"),
    "glucose": (130, 0.25, 0.15, "metabolism"),
    "hemoglobin": (10.5, 0.15, -0.12, "frailty"),
    "inr": (1.3, 0.2, 0.1, "frailty"),
    "lactate": (1.7, 0.35, 0.35, "circulation"),
    "platelets": (200, 0.4, -0.2, "circulation"),
    "potassium": (4.1, 0.1, 0.04, "metabolism"),
    "ptt": (33, 0.25, 0.1, "circulation"),
    "rdw": (14.5, 0.1, 0.09, "frailty"),
    "sodium": (139, 0.03, 0, ""),
    "urea_nitrogen": (20, 0.4, 0.35, "metabolism"),
    "white_cells": (10.5, 0.35, 0.25, "circulation"),
}

# A finding of the history, said of an ill patient or of a well one.
FINDINGS = {
    "heart": (
        ("presented with substernal chest pressure", "denies chest pain or pressure"),
        ("reports orthopnea and leg swelling", "no orthopnea, no leg swelling"),
        ("known ischemic cardiomyopathy with reduced EF", "no cardiac history"),
        ("found in rapid atrial fibrillation", "was in sinus rhythm"),
    ),
    "brain": (
        ("found unresponsive at home", "was alert and oriented"),
        ("family noted new confusion", "at his baseline mental status"),
        ("had slurred speech and weakness", "no focal weakness"),
        ("intubated for airway protection", "protecting the airway"),
    ),
    "frailty": (
        ("lives in a nursing facility, bed bound", "lives independently and walks daily"),
        ("metastatic malignancy on palliative chemotherapy", "no history of malignancy"),
        ("significant weight loss over months", "weight stable"),
        ("several recent admissions", "first admission in years"),
    ),
}
FILLERS = (
    "Seen in the ED, initial vitals were stable for transfer.", "Labs were sent.", "EKG was obtained.", "Given fluids.",
    "Transferred from ___.", "His mother died of stroke.", "Cultures were drawn.", "In the ED:\nreceived antibiotics.",
)  # fmt: skip
VARIANTS, OF_VARIANTS = ("whole", "no section", "no end", "death", "verdict"), (0.9, 0.03, 0.02, 0.025, 0.025)


def draw_series(severity: Mapping[str, Array], hours: Array, rng: np.random.Generator) -> pd.DataFrame:
    """Draws charted values, about one row per hour, levels and a slow drift by severity.

    Args:
        severity: Name -> severity of each stay (n,).
        hours: Length of each stay (n,).
        rng: Source of randomness.

    Returns:
        stay (number), Hours and the 17 variables, empty where nothing was charted; sorted.
    """
    n, rows = len(hours), hours.astype(int)
    stay = np.repeat(np.arange(n), rows)
    hour = np.arange(len(stay)) - np.repeat(np.cumsum(rows) - rows, rows)
    time = hour + rng.uniform(0.02, 0.98, len(stay))
    columns: dict[str, object] = {"stay": stay, "Hours": time.round(6)}
    for name, (level, spread, gain, cause, share, digits) in CHARTED.items():
        start = level + spread * rng.standard_normal(n)
        value = start[stay] + gain * _strength(severity, cause, n, rng)[stay] * (0.75 + 0.5 * time / 48)
        value = (value + 0.4 * spread * rng.standard_normal(len(stay))).clip(*LIMITS.get(name, (-np.inf, np.inf)))
        seen = rng.random(len(stay)) < share
        if name == "Heart Rate":
            seen |= hour == 0
            value[np.flatnonzero(hour == 1)[::40]] = 8500  # a slip of the keyboard
        if name in ANSWERS:
            answers = np.array(ANSWERS[name], dtype=object)
            columns[name] = np.where(seen, answers[np.clip(np.rint(value), 1, len(answers)).astype(int) - 1], None)
        else:
            columns[name] = np.where(seen, value.round(digits), np.nan)
    return pd.DataFrame(columns)


def _strength(severity: Mapping[str, Array], cause: str, n: int, rng: np.random.Generator) -> Array:
    """Returns how strongly each of n stays shows a sign: a severity, and the sign's own."""
    own = rng.standard_normal(n)
    return np.asarray(SHARP * severity[cause] + np.sqrt(1 - SHARP**2) * own if cause else own)


def draw_labs(severity: Mapping[str, Array], rng: np.random.Generator) -> pd.DataFrame:
    """Draws laboratory values of the first 48 h, with others that nobody may read.

    Returns:
        row (number of the stay), hour, itemid, valuenum, valueuom.
    """
    n = len(next(iter(severity.values())))
    parts = []
    for name, (level, spread, gain, cause) in LEVELS.items():
        itemid, _, unit, _, least, most = LABS[name]
        row = np.repeat(np.arange(n), rng.integers(0, 4, n))
        logarithm = 0.6 * spread * rng.standard_normal(n) + gain * _strength(severity, cause, n, rng)
        value = (level * np.exp(logarithm[row] + 0.05 * rng.standard_normal(len(row)))).clip(least, most).round(2)
        hour = rng.uniform(0.5, 47.5, len(row))
        parts.append(pd.DataFrame({"row": row, "hour": hour, "itemid": itemid, "valuenum": value, "valueuom": unit}))
    events = pd.concat(parts, ignore_index=True)
    some = [events.sample(n // 6, random_state=rng) for _ in range(4)]
    late = some[0].assign(hour=some[0]["hour"] + 60, valuenum=0.7)
    foreign = some[1][some[1]["valueuom"] != ""].assign(valueuom="arb", valuenum=999.0)
    slip = some[2].assign(valuenum=99999.0)
    other = some[3].assign(itemid=OTHER_ITEM)
    blank = some[3].assign(valuenum=np.nan)
    return pd.concat([events, late, foreign, slip, other, blank], ignore_index=True)


def draw_summary(severity: Mapping[str, float], died: bool, rng: np.random.Generator) -> str:
    """Writes a discharge summary; the history tells of three severities, the hospital course of the outcome.

    Args:
        severity: Name -> severity of the stay.
        died: Whether the patient died in hospital.
        rng: Source of randomness.
    """
    variant = rng.choice(VARIANTS, p=OF_VARIANTS)
    said = [str(s) for s in rng.choice(FILLERS, size=2, replace=False)]
    for name, findings in FINDINGS.items():
        for ill, well in findings:
            affirmed = rng.random() < 1 / (1 + np.exp(0.5 - 1.8 * severity[name]))
            if rng.random() < 0.85:
                said.append(f"The patient {ill if affirmed else well}.")
    said = [said[i] for i in rng.permutation(len(said))]
    said += ["The patient died in the ICU."] if variant == "death" else ["\nEXPIRED\n"] if variant == "verdict" else []
    history = "" if variant == "no section" else " \nHistory of Present Illness:\n" + "\n".join(said) + "\n"
    rest = (
        " \nPast Medical History:\nHypertension\n \nSocial History:\n___\n \nPhysical Exam:\nstable\n"
        if variant != "no end"
        else ""
    )
    course = "expired on ___" if died else "was discharged home"
    heading = "Brief Hospital Course" if variant != "no end" else "Course"
    return f" \nName:  ___\n \nChief Complaint:\nillness\n{history}{rest} \n{heading}:\nThe patient {course}.\n"
