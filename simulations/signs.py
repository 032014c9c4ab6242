"""What a severity looks like: the signs of an invented patient in an admission table, labs, a note and a chest image.

Part of the demonstration consortium, whose module says what a severity is. Every sign adds noise of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sign:
    """A variable of the labs.

    Attributes:
        unit: Its unit.
        mean: Typical value at the start.
        spread: Standard deviation of the start between visits; of its logarithm with ``log``.
        trend: Change in 24 h per unit of strength; of the logarithm with ``log``.
        every: Hours between two measurements.
        log: Whether the variable is log-normal.
        digits: Decimals that the laboratory reports.
        most: Largest possible value.
    """

    unit: str
    mean: float
    spread: float
    trend: float
    every: int = 1
    log: bool = False
    digits: int = 0
    most: float = np.inf


LABS = {
    "heart_rate": Sign("/min", 84, 12, 13),
    "mean_bp": Sign("mm[Hg]", 82, 9, -9),
    "resp_rate": Sign("/min", 18, 3, 4),
    "spo2": Sign("%", 95.5, 1.5, -2.2, most=100),
    "creatinine": Sign("mg/dL", 1.1, 0.30, 0.30, every=8, log=True, digits=2),
    "lactate": Sign("mmol/L", 1.7, 0.30, 0.45, every=4, log=True, digits=1),
    "leukocytes": Sign("10*9/L", 9.5, 0.30, 0.25, every=8, log=True, digits=1),
    "platelets": Sign("10*9/L", 220, 0.30, -0.25, every=8, log=True),
}
ADMISSION_UNITS = {
    "age": "a", "sex": "", "admission_type": "", "comorbidities": "", "heart_rate": "/min", "systolic_bp": "mm[Hg]",
    "resp_rate": "/min", "temperature": "Cel", "spo2": "%",
}  # fmt: skip
CATEGORIES = {"sex": ("female", "male"), "admission_type": ("elective", "urgent", "emergency")}


def draw_labs(severity: Array, hours: Array, rng: np.random.Generator) -> dict[str, Array]:
    """Draws labs and vital signs; severity is in the trends, the level at the start says nothing.

    Args:
        severity: Severity of each visit (n,).
        hours: Hours since the start of the visit (n, steps).
        rng: Source of randomness.

    Returns:
        Variable -> values in its unit (n, steps); NaN where nothing was measured.
    """
    n, steps = hours.shape
    result: dict[str, Array] = {}
    for name, sign in LABS.items():
        start = (np.log(sign.mean) if sign.log else sign.mean) + sign.spread * rng.standard_normal((n, 1))
        strength = 0.6 * severity[:, None] + rng.standard_normal((n, 1))
        value = start + sign.trend * strength * hours / 24 + 0.25 * sign.spread * rng.standard_normal((n, steps))
        value = np.minimum(np.exp(value) if sign.log else value, sign.most).round(sign.digits)
        due = (np.arange(steps) + rng.integers(0, sign.every, (n, 1))) % sign.every == 0
        never = rng.random((n, 1)) < (0.08 if sign.every > 1 else 0.01)
        value[~due | never | (rng.random((n, steps)) < 0.12)] = np.nan
        result[name] = value
    return result


def draw_admission(severity: Array, patient: NDArray[np.int64], rng: np.random.Generator) -> pd.DataFrame:
    """Draws admission tables; blood pressure and temperature leave their middle to either side, the rest moves one way.

    Args:
        severity: Severity of each visit (n,).
        patient: Number of each visit's patient, from 0 (n,). Age and sex are the patient's.
        rng: Source of randomness.

    Returns:
        A row per visit, a column per key of ``ADMISSION_UNITS``; some first measurements are missing.
    """
    n, people = len(severity), int(patient.max()) + 1

    def strength(gain: float = 0.65) -> Array:
        return np.asarray(gain * severity + rng.standard_normal(n))

    def away(middle: float, scale: float, low: float) -> Array:
        side = np.where(rng.random(n) < low, -1, 1)
        return np.asarray(middle + side * scale * np.logaddexp(0, 1.5 * strength(0.8)))

    average = np.bincount(patient, severity) / np.bincount(patient)
    age = 66 + 11 * (0.5 * average + rng.standard_normal(people))
    sex = np.asarray(CATEGORIES["sex"])[(rng.random(people) < 0.54).astype(int)]
    table = pd.DataFrame(
        {
            "age": age.clip(18, 97).round().astype(int)[patient],
            "sex": sex[patient],
            "admission_type": np.asarray(CATEGORIES["admission_type"])[np.digitize(strength(), [-0.4, 0.6])],
            "comorbidities": rng.poisson(np.exp(0.5 + 0.35 * strength())).clip(0, 12),
            "heart_rate": (85 + 13 * strength()).clip(35, 190).round(),
            "systolic_bp": away(126, 11, 0.65).clip(55, 230).round(),
            "resp_rate": (17 + 3.5 * strength()).clip(8, 45).round(),
            "temperature": away(36.9, 0.45, 0.35).clip(33, 41.5).round(1),
            "spo2": (96 - 2 * strength()).clip(70, 100).round(),
        }
    )
    for name in ("heart_rate", "systolic_bp", "resp_rate", "temperature", "spo2"):
        table.loc[rng.random(n) < 0.05, name] = np.nan
    return table


# A finding, said of an ill patient or of a well one.
FINDINGS = (
    (("short of breath at rest", "dyspnoeic on minimal exertion", "increased work of breathing"),
     ("no shortness of breath", "denies dyspnoea", "breathing comfortably, no increased work of breathing")),
    (("newly confused overnight", "disorientated to place", "drowsy but rousable"),
     ("alert, not confused", "orientated x3", "no drowsiness")),
    (("passing very little urine", "oliguric", "urine output < 0.5 mL/kg/h"),
     ("good urine output", "not oliguric", "passing urine freely")),
    (("peripheries cool and mottled", "capillary refill 4 s", "skin clammy"),
     ("warm peripheries, no mottling", "capillary refill < 2 s", "skin dry, not clammy")),
    (("febrile with rigors", "spiking to 39 °C", "fever persists"), ("afebrile", "no fever or rigors", "temperature settling")),
    (("needs more oxygen than yesterday", "oxygen requirement rising", "FiO₂ turned up again"),
     ("weaned to room air", "oxygen requirement falling", "no supplemental oxygen")),
    (("bibasal crackles", "coarse crepitations on both sides"), ("chest clear", "no crackles or crepitations")),
    (("chest pain on breathing", "pleuritic pain"), ("denies chest pain", "pain free")),
    (("not eating", "poor oral intake", "nauseated, refuses meals"), ("eating and drinking", "oral intake good, no nausea")),
    (("bed-bound, too weak to stand", "unable to mobilise"), ("mobilising to the bathroom", "walks on the ward without help")),
    (("looks unwell, team worried", "gut feeling: worse than yesterday"),
     ("looks well, no concerns", "clinically better than yesterday")),
)  # fmt: skip
FRAMES = ("Patient {}.", "On review {}.", "Pt {}.", "O/E {}.", "This morning: {}.", "Nurse reports: {}.", "Exam: {}.")
FILLERS = (
    "Family updated at the bedside.", "Allergies: none known.", "Father died of heart failure.", "Line site clean.",
    "Awaiting physiotherapy.", "Lives alone, two flights of stairs.", "Medication chart reviewed.", "Discussed with Dr on call.",
    "Bloods sent.", "Sister had pneumonia last year.", "Plan: continue, review tomorrow.", "VTE prophylaxis given.",
)  # fmt: skip


def draw_note(severity: float, heading: str, rng: np.random.Generator) -> str:
    """Writes a note; severity is in what is affirmed and what denied, in other words each time, and some are misspelt.

    Args:
        severity: Severity of the visit.
        heading: First line.
        rng: Source of randomness.
    """
    sentences = [str(s) for s in rng.choice(FILLERS, size=rng.integers(2, 5), replace=False)]
    for ill, well in FINDINGS:
        affirmed = rng.random() < 1 / (1 + np.exp(0.8 - 1.5 * severity))
        if rng.random() < 0.75:
            sentences.append(str(rng.choice(FRAMES)).format(rng.choice(ill if affirmed else well)))
    words = " ".join(sentences[i] for i in rng.permutation(len(sentences))).split(" ")
    for i in np.flatnonzero(rng.random(len(words)) < 0.02):  # two letters change places
        k, word = int(rng.integers(0, len(words[i]))), words[i]
        words[i] = word[:k] + word[k + 1 : k + 2] + word[k] + word[k + 2 :]
    return f"{heading}\n{' '.join(words)}\n"


def draw_chest(severity: float, size: tuple[int, int], rng: np.random.Generator) -> Array:
    """Draws a schematic frontal chest radiograph; severity widens the heart and clouds the lower lung zones.

    Args:
        severity: Severity of the visit.
        size: Rows and columns.
        rng: Source of position, build, exposure, texture and noise.

    Returns:
        Brightness in [0, 1], bright where dense (rows, columns). The patient's left is on the right.
    """
    rows, columns = size
    heart, opacity = 0.75 * severity + 0.6 * rng.standard_normal(2)
    v, h = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    turn, scale, build = rng.normal(0, 0.035), rng.normal(1.0, 0.04), rng.normal(0, 0.04)
    x = (h * np.cos(turn) + v * np.sin(turn)) / (scale + build) + rng.normal(0, 0.03)
    y = (v * np.cos(turn) - h * np.sin(turn)) / scale + rng.normal(0, 0.03)
    grain = gaussian_filter(rng.standard_normal(size), rows / 40)
    grain /= grain.std()

    body = _mask(0.30 + 0.63 * _mask(y + 0.84, 0.05) - np.abs(x), 0.02)
    effusion = 0.35 * max(0.0, opacity - 0.5) * np.clip(np.abs(x) - 0.35, 0, None)
    dome = np.where(x > 0, 0.50, 0.42) + 0.22 * ((np.abs(x) - 0.40) / 0.33) ** 2 - effusion + rng.normal(0, 0.03)
    lung = _mask(1 - (np.abs(np.abs(x) - 0.38 - 0.09 * y) / 0.33) ** 2.3 - (np.abs(y + 0.02) / 0.76) ** 2.8, 0.09)
    air = lung * _mask(dome - y, 0.02) * (1 - _heart(x, y, max(0.12, 0.30 * (1 + 0.16 * heart))))

    hilum = np.exp(-(((np.abs(x) - 0.20) / 0.13) ** 2) - ((y - 0.02) / 0.2) ** 2)
    picture = body * (0.62 + 0.09 * _mask(y - dome, 0.05) - 0.12 * _mask(np.abs(x) - 0.78, 0.05) + _bones(x, y))
    picture -= body * air * (0.42 - 0.16 * hilum - 0.03 * grain * (0.4 + hilum))
    zone = np.exp(-(((np.abs(x) - 0.44) / 0.26) ** 2) - ((y - 0.34) / 0.26) ** 2)
    zone *= np.where(x > 0, *rng.uniform(0.5, 1.0, 2))
    picture += np.minimum(0.14 * np.logaddexp(0, 1.3 * opacity) * zone * (1 + 0.25 * grain), 0.34) * air
    picture -= 0.13 * rng.random() * np.exp(-(((x - 0.42) / 0.13) ** 2) - ((y - 0.66) / 0.06) ** 2)  # gas in the stomach
    if rng.random() < 0.25:  # a central line, unrelated to the outcome
        picture += 0.16 * np.exp(-(((x + 0.07 + 0.1 * (y + 0.3) ** 2) / 0.012) ** 2)) * _mask(0.05 - y, 0.02)
    picture = gaussian_filter(picture, rows / 220)
    picture = np.clip(picture * rng.normal(1.0, 0.06) + rng.normal(0.06, 0.02), 0, 1) ** rng.normal(1.0, 0.08)
    upright, foot = (h > 0.80) & (h < 0.84) & (v > -0.92), (h > 0.80) & (h < 0.92) & (v > -0.78)
    picture[(upright | foot) & (v < -0.74)] = 0.95  # the marker "L"
    return np.asarray(np.clip(picture + 0.015 * rng.standard_normal(size), 0, 1))


def _mask(distance: Array, softness: float) -> Array:
    """Returns a soft mask: 1 where ``distance`` is well above zero."""
    return np.asarray(1 / (1 + np.exp(np.clip(-distance / softness, -60, 60))))


def _heart(x: Array, y: Array, width: float) -> Array:
    """Returns the mask of heart, mediastinum and aortic knob."""
    heart = _mask(1 - ((x - 0.08 - 0.3 * (width - 0.3) - 0.25 * (y - 0.30)) / width) ** 2 - ((y - 0.30) / 0.30) ** 2, 0.12)
    mediastinum = _mask(0.13 + 0.05 * y**2 - np.abs(x - 0.01), 0.02)
    knob = _mask(0.09 - np.hypot(x - 0.13, y + 0.26), 0.02)
    return np.asarray(np.maximum(np.maximum(heart, mediastinum), knob))


def _bones(x: Array, y: Array) -> Array:
    """Returns the brightness that ribs, clavicles and spine add."""
    posterior = np.clip(np.cos(2 * np.pi * 5.2 * (y - 0.30 * np.abs(x) ** 1.4)), 0, 1) ** 3
    anterior = np.clip(np.cos(2 * np.pi * 3.8 * (y + 0.42 * np.abs(x) + 0.1)), 0, 1) ** 3
    ribs = (posterior + 0.5 * anterior) * np.exp(-((x / 0.8) ** 6)) * _mask(0.5 - y, 0.1)
    clavicle = np.exp(-(((y + 0.58 + 0.20 * (np.abs(x) - 0.1)) / 0.035) ** 2)) * _mask(np.abs(x) - 0.08, 0.02)
    spine = np.exp(-((x / 0.075) ** 2)) * (1 + 0.35 * np.cos(2 * np.pi * 6 * y))
    return np.asarray(0.06 * ribs + 0.10 * clavicle * _mask(0.75 - np.abs(x), 0.03) + 0.05 * spine)
