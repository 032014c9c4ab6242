"""Writes demonstration hospitals as real files: chest images (DICOM), labs (Parquet), notes (text), admission tables (CSV).

Everything is invented. Generator and seed (2026) were fixed before any method ran on the data, and nothing in them was chosen by
the result of a method; a change of the files is a new ``VERSION``. The task is ``configs/task/demo.yaml``.

Truth: a visit deteriorates (y = 1) with its hospital's prevalence, and each modality m shows a severity
``u_m = SHIFT[m] * y + sqrt(SHARED) * g + sqrt(1 - SHARED) * e_m``, where g belongs to the patient and e_m to the visit, both
N(0, 1). So the best AUROC from severity m alone is ``Phi(SHIFT[m] / sqrt(2))`` (.76 to .80), and from all four .92. Every sign
drawn from a severity (a wide heart, a rising lactate, a sentence, a heart rate) adds its own noise, so that the files hold about
three quarters of a severity's variance (``signs.py``): with that, some .72 to .77 alone and .88 together.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

from common.data.manifest import FILE_NAME
from common.errors import ConsiliumError, nearest
from simulations.signs import ADMISSION_UNITS, CATEGORIES, LABS, Array, draw_admission, draw_chest, draw_labs, draw_note

VERSION = 2
RECORD = "consortium.json"
SHIFT = {"admission": 1.0, "cxr": 1.15, "labs": 1.2, "notes": 1.1}
SHARED = 0.1
Written = tuple[pd.DataFrame, dict[str, Any]]  # part of the patient table, and what the manifest says of it


@dataclass(frozen=True)
class Scanner:
    """How a hospital's X-ray machine stores an image: size in pixels, bits per pixel, polarity, DICOM modality and encoding."""

    rows: int = 128
    columns: int = 128
    bits: int = 12
    photometric: str = "MONOCHROME2"
    modality: str = "DX"
    explicit: bool = True


@dataclass(frozen=True)
class Habits:
    """How a hospital names and codes things.

    Attributes:
        patient: Column that names the patient.
        visit: Column that names the visit.
        label: Column of the label.
        hour: Column of the time in the labs.
        names: Feature of the task -> the hospital's column, where they differ.
        codes: Category of the task -> the hospital's code, where they differ.
        patients: The patient table.
        labs_per_visit: One labs file per visit, or one for all visits.
        own_table: The admission table has its own file, or is part of the patient table.
        heading: First line of a note.
    """

    patient: str = "patient_id"
    visit: str = "visit_id"
    label: str = "deterioration_48h"
    hour: str = "hour"
    names: Mapping[str, str] = field(default_factory=dict)
    codes: Mapping[str, str] = field(default_factory=dict)
    patients: str = "patients.csv"
    labs_per_visit: bool = False
    own_table: bool = True
    heading: str = "Ward round."


@dataclass(frozen=True)
class Hospital:
    """One hospital of a consortium, or its reference set.

    Attributes:
        slug: Name of the site and of its folder.
        patients: Number of patients.
        prevalence: Share of visits with the outcome.
        holds: Modality -> share of visits that have it.
        repeats: Share of patients with two visits; a third of that share has three.
    """

    slug: str
    patients: int
    prevalence: float
    holds: Mapping[str, float]
    repeats: float = 0.15
    scanner: Scanner = field(default_factory=Scanner)
    habits: Habits = field(default_factory=Habits)


ABBREVIATED = {
    "age": "AGE_Y", "sex": "SEX", "admission_type": "ADM_TYPE", "comorbidities": "N_COMORB", "heart_rate": "HR",
    "systolic_bp": "SBP", "resp_rate": "RR", "temperature": "TEMP_C", "spo2": "SPO2", "mean_bp": "MAP", "creatinine": "CREA",
    "lactate": "LAC", "leukocytes": "WBC", "platelets": "PLT",
}  # fmt: skip
GERMAN = {
    "age": "alter", "sex": "geschlecht", "admission_type": "aufnahmeart", "comorbidities": "nebendiagnosen",
    "heart_rate": "puls", "systolic_bp": "rr_syst", "resp_rate": "atemfrequenz", "temperature": "temperatur",
    "spo2": "saettigung", "mean_bp": "rr_mittel", "creatinine": "kreatinin", "lactate": "laktat", "leukocytes": "leukozyten",
    "platelets": "thrombozyten",
}  # fmt: skip
LETTERS = {"male": "M", "female": "F", "elective": "EL", "urgent": "UR", "emergency": "EM"}
NUMBERS = {"male": "1", "female": "2", "elective": "1", "urgent": "2", "emergency": "3"}
GERMAN_CODES = {"male": "m", "female": "w", "elective": "geplant", "urgent": "dringend", "emergency": "Notfall"}

# Harbour General and St Brigid hold everything, Lindenhof two modalities, the other three one.
DEMO = (
    Hospital(
        "st-brigid", 300, 0.12, {"admission": 0.95, "cxr": 0.85, "labs": 0.95, "notes": 0.90},
        habits=Habits(names=ABBREVIATED, codes=LETTERS, visit="ENC_ID", patient="MRN_PSEUDO", label="DETERIORATED", hour="T_H"),
    ),
    Hospital(
        "harbour-general", 250, 0.28, {"admission": 0.90, "cxr": 0.80, "labs": 0.90, "notes": 0.85},
        scanner=Scanner(112, 96, 14, modality="CR"),
        habits=Habits(codes=NUMBERS, labs_per_visit=True, heading="PROGRESS NOTE:"),
    ),
    Hospital(
        "lindenhof", 220, 0.20, {"admission": 1.0, "cxr": 0.90}, scanner=Scanner(96, 96, 8, modality="CR", explicit=False),
        habits=Habits("patient", "fall", "verschlechterung", "stunde", GERMAN, GERMAN_CODES, own_table=False),
    ),
    Hospital(
        "kestrel-radiology", 280, 0.16, {"cxr": 1.0}, scanner=Scanner(bits=10, photometric="MONOCHROME1"),
        habits=Habits(patient="subject", visit="study", label="event"),
    ),
    Hospital(
        "ostwall-clinic", 200, 0.45, {"labs": 1.0},
        habits=Habits("patient", "fall", "verschlechterung", "stunde", GERMAN, GERMAN_CODES, patients="patients.parquet"),
    ),
    Hospital("marsh-lane", 40, 0.30, {"notes": 1.0}, habits=Habits(heading="Community hospital, nursing and medical entry.")),
    Hospital("reference", 200, 0.25, {"admission": 0.97, "cxr": 0.97, "labs": 0.97, "notes": 0.97}, repeats=0.0),
)  # fmt: skip
SMALL = Scanner(16, 16)
TINY = (
    Hospital("birch", 60, 0.40, {"admission": 0.9, "cxr": 0.9, "labs": 0.9, "notes": 0.9}, scanner=SMALL),
    Hospital("alder", 60, 0.30, {"labs": 1.0, "notes": 0.9}, habits=Habits(names=ABBREVIATED, labs_per_visit=True)),
    Hospital("reference", 60, 0.35, {"admission": 1.0, "cxr": 1.0, "labs": 1.0, "notes": 1.0}, repeats=0.0, scanner=SMALL),
)


@dataclass(frozen=True)
class Cohort:
    """The truth about a hospital's visits, from which its files are drawn.

    Attributes:
        patient: Number of the patient, ascending (n,).
        label: Outcome, 0 or 1 (n,).
        severity: Modality -> severity (n,), also of modalities that the hospital does not hold.
        present: Modality that the hospital holds -> whether the visit has it (n,). Every visit has at least one.
    """

    patient: NDArray[np.int64]
    label: NDArray[np.int64]
    severity: dict[str, Array]
    present: dict[str, NDArray[np.bool_]]


def write_demo(folder: Path, *, seed: int = 2026, patients: Mapping[str, int] | None = None) -> None:
    """Writes six hospitals and a labelled reference set, each with its manifest.

    Equal arguments give identical bytes. A folder that already holds this very consortium is left as it is.

    Args:
        folder: Where; must be new, empty, or hold this consortium.
        seed: Seed of everything random.
        patients: Hospital (or ``reference``) -> number of patients, where it is to differ from the default.

    Raises:
        ConsiliumError: If the folder holds anything else, or ``patients`` names an unknown hospital or a number below 1.
    """
    changed = dict(patients or {})
    for slug, count in changed.items():
        if slug not in {h.slug for h in DEMO}:
            raise ConsiliumError(f"The demonstration consortium has no hospital '{slug}'{nearest(slug, [h.slug for h in DEMO])}")
        if count < 1:
            raise ConsiliumError(f"Hospital '{slug}' cannot have {count} patients. Ask for at least 1.")
    _write([replace(h, patients=changed.get(h.slug, h.patients)) for h in DEMO], folder, seed)


def write_tiny(folder: Path, *, seed: int = 2026) -> None:
    """Writes two hospitals and a reference set of 60 patients each with 16 x 16 images: a run on them takes seconds.

    Args:
        folder: Where; must be new, empty, or hold this consortium.
        seed: Seed of everything random.

    Raises:
        ConsiliumError: If the folder holds anything else.
    """
    _write(TINY, folder, seed)


def draw_cohort(hospital: Hospital, seed: int) -> Cohort:
    """Draws who is ill, how severely in every modality, and which modalities each visit has."""
    rng = _rng(seed, hospital, "cohort")
    draw = rng.random(hospital.patients)
    visits = 1 + (draw < hospital.repeats).astype(np.int64) + (draw < hospital.repeats / 3)
    patient = np.repeat(np.arange(hospital.patients), visits)
    n = len(patient)
    label = np.zeros(n, dtype=np.int64)
    label[rng.permutation(n)[: round(hospital.prevalence * n)]] = 1
    shared = np.sqrt(SHARED) * rng.standard_normal(hospital.patients)[patient]
    severity = {m: d * label + shared + np.sqrt(1 - SHARED) * rng.standard_normal(n) for m, d in SHIFT.items()}
    present = {m: rng.random(n) < share for m, share in sorted(hospital.holds.items())}
    nothing = ~np.any(list(present.values()), axis=0)
    best = max(present, key=lambda m: hospital.holds[m])
    return Cohort(patient, label, severity, {**present, best: present[best] | nothing})


def _rng(seed: int, hospital: Hospital, what: str) -> np.random.Generator:
    return np.random.default_rng([seed, crc32(f"{hospital.slug}/{what}".encode())])


def _write(hospitals: tuple[Hospital, ...] | list[Hospital], folder: Path, seed: int) -> None:
    cohorts = {h.slug: draw_cohort(h, seed) for h in hospitals}
    counts = {
        slug: {
            "patients": int(c.patient.max()) + 1,
            "visits": len(c.patient),
            "events": int(c.label.sum()),
            "present": {m: int(p.sum()) for m, p in c.present.items()},
        }
        for slug, c in cohorts.items()
    }
    record = {"generator": "simulations.consortium", "version": VERSION, "seed": seed, "folders": counts}
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        file = folder / RECORD
        if file.is_file() and file.read_text(encoding="utf-8") == _json(record):
            return
        raise ConsiliumError(
            f"{folder} already holds other files than this consortium (version {VERSION}, seed {seed}). "
            "Name another folder, or remove this one."
        )
    partial = folder.with_name(f"{folder.name}.partial")  # renamed when whole, so that a consortium is never half written
    shutil.rmtree(partial, ignore_errors=True)
    for hospital in hospitals:
        _write_hospital(partial / hospital.slug, hospital, cohorts[hospital.slug], seed)
    (partial / RECORD).write_bytes(_json(record).encode())
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)


def _json(record: object) -> str:
    return json.dumps(record, indent=2, sort_keys=True) + "\n"


def _write_hospital(folder: Path, hospital: Hospital, cohort: Cohort, seed: int) -> None:
    folder.mkdir(parents=True)
    habits = hospital.habits
    rng = _rng(seed, hospital, "names")
    prefix = "".join(word[0] for word in hospital.slug.split("-")).upper()
    people = rng.permutation(9 * len(cohort.patient))[: cohort.patient.max() + 1] + 10_000
    stays = np.sort(rng.permutation(9 * len(cohort.patient))[: len(cohort.patient)]) + 100_000
    visits = [f"{prefix}{n}" for n in stays]
    table = pd.DataFrame({habits.patient: [f"P{n}" for n in people[cohort.patient]], habits.visit: visits})
    sources = {}
    for modality in cohort.present:
        part, sources[modality] = WRITERS[modality](folder, hospital, cohort, visits, _rng(seed, hospital, modality))
        table = table.merge(part, on=habits.visit, how="left", validate="1:1")
    table[habits.label] = cohort.label
    _save(table, folder / habits.patients)
    manifest = {
        "schema_version": 1,
        "site": hospital.slug,
        "data": "generated",
        "patients": habits.patients,
        "patient": habits.patient,
        "visit": habits.visit,
        "labels": {"deterioration": habits.label},
        "modalities": sources,
    }
    (folder / FILE_NAME).write_bytes(yaml.safe_dump(manifest, sort_keys=False, width=120).encode())


def _save(table: pd.DataFrame, path: Path) -> None:
    if path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    else:
        table.to_csv(path, index=False, lineterminator="\n")


def _write_admission(folder: Path, hospital: Hospital, cohort: Cohort, visits: list[str], rng: np.random.Generator) -> Written:
    habits, present = hospital.habits, cohort.present["admission"]
    table = draw_admission(cohort.severity["admission"], cohort.patient, rng)
    variables: dict[str, dict[str, Any]] = {}
    for name, unit in ADMISSION_UNITS.items():
        variables[name] = {"column": habits.names.get(name, name)} | ({"unit": unit} if unit else {})
        if name in CATEGORIES:
            variables[name]["codes"] = {habits.codes.get(c, c): c for c in CATEGORIES[name]}
            table[name] = [habits.codes.get(c, c) for c in table[name]]
    table = table.rename(columns=habits.names)[present]
    table.insert(0, habits.visit, np.asarray(visits)[present])
    if not habits.own_table:
        return table, {"kind": "table", "variables": variables}
    _save(table, folder / "admission.csv")
    source = {"kind": "table", "column": "admission", "key": habits.visit, "variables": variables}
    return _pointers("admission", habits.visit, visits, present, "admission.csv"), source


def _write_labs(folder: Path, hospital: Hospital, cohort: Cohort, visits: list[str], rng: np.random.Generator) -> Written:
    habits, present, n = hospital.habits, cohort.present["labs"], len(visits)
    hours = np.tile(np.arange(24.0), (n, 1))
    if habits.labs_per_visit:
        hours += rng.integers(0, 60, hours.shape) / 60
    values = draw_labs(cohort.severity["labs"], hours, rng)
    frame = pd.DataFrame({habits.visit: np.repeat(visits, 24), habits.hour: hours.ravel().round(2)})
    frame = frame.assign(**{habits.names.get(name, name): v.ravel() for name, v in values.items()})
    charted = rng.random(24 * n) > 0.06
    frame = frame[np.repeat(present, 24) & charted & frame.iloc[:, 2:].notna().any(axis=1)]
    variables = {name: {"column": habits.names.get(name, name), "unit": sign.unit} for name, sign in LABS.items()}
    source = {"kind": "series", "column": "labs", "time": habits.hour, "variables": variables}
    if not habits.labs_per_visit:
        _save(frame, folder / "labs.parquet")
        return _pointers("labs", habits.visit, visits, present, "labs.parquet"), source | {"key": habits.visit}
    (folder / "labs").mkdir()
    for visit, rows in frame.groupby(habits.visit):
        _save(rows.drop(columns=habits.visit), folder / "labs" / f"{visit}.parquet")
    return _pointers("labs", habits.visit, visits, present, "labs/{}.parquet"), source


def _write_notes(folder: Path, hospital: Hospital, cohort: Cohort, visits: list[str], rng: np.random.Generator) -> Written:
    (folder / "notes").mkdir()
    present, visit = cohort.present["notes"], hospital.habits.visit
    for i in np.flatnonzero(present):
        note = draw_note(cohort.severity["notes"][i], hospital.habits.heading, rng)
        (folder / "notes" / f"{visits[i]}.txt").write_bytes(note.encode())
    return _pointers("notes", visit, visits, present, "notes/{}.txt"), {"kind": "text", "column": "notes"}


def _write_images(folder: Path, hospital: Hospital, cohort: Cohort, visits: list[str], rng: np.random.Generator) -> Written:
    (folder / "cxr").mkdir()
    present, scanner = cohort.present["cxr"], hospital.scanner
    for i in np.flatnonzero(present):
        picture = draw_chest(cohort.severity["cxr"][i], (scanner.rows, scanner.columns), rng)
        image = _dicom(picture, hospital, visits[i], rng)
        image.save_as(folder / "cxr" / f"{visits[i]}.dcm", enforce_file_format=True)
    return _pointers("cxr", hospital.habits.visit, visits, present, "cxr/{}.dcm"), {"kind": "image", "column": "cxr"}


def _pointers(column: str, visit: str, visits: list[str], present: NDArray[np.bool_], file: str) -> pd.DataFrame:
    """Returns the part of the patient table that points at files."""
    held = [v for v, there in zip(visits, present, strict=True) if there]
    return pd.DataFrame({visit: held, column: [file.format(v) for v in held]})


def _dicom(picture: Array, hospital: Hospital, visit: str, rng: np.random.Generator) -> Dataset:
    """Wraps a picture, bright where dense, as a de-identified image; the pseudonym is the visit's, as each study gets its own."""
    scanner = hospital.scanner
    inverted, radiography = scanner.photometric == "MONOCHROME1", scanner.modality == "CR"
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if scanner.explicit else ImplicitVRLittleEndian
    image.SOPClassUID = ComputedRadiographyImageStorage if radiography else DigitalXRayImageStorageForPresentation
    image.SOPInstanceUID, image.SeriesInstanceUID, image.StudyInstanceUID = (
        generate_uid(entropy_srcs=[hospital.slug, visit, str(rng.integers(2**62))]) for _ in range(3)
    )
    image.ImageType = ["DERIVED", "PRIMARY"]
    image.StudyDate = f"2101{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}"
    image.StudyTime = image.AccessionNumber = image.ReferringPhysicianName = image.StudyID = image.PatientBirthDate = ""
    image.LongitudinalTemporalInformationModified = "MODIFIED"
    image.Modality, image.Manufacturer, image.InstitutionName = scanner.modality, "Schematic", hospital.slug
    image.PatientName = image.PatientID = visit
    image.PatientSex, image.PatientIdentityRemoved, image.DeidentificationMethod = "O", "YES", "Invented patient"
    image.BodyPartExamined, image.ViewPosition, image.PatientOrientation = "CHEST", "PA", ["L", "F"]
    image.SeriesNumber = image.InstanceNumber = 1
    if not radiography:
        image.PresentationIntentType, image.PixelIntensityRelationship = "FOR PRESENTATION", "LOG"
        image.PixelIntensityRelationshipSign = 1 if inverted else -1
    spacing = round(400 / scanner.rows, 3)
    image.ImagerPixelSpacing = image.PixelSpacing = [spacing, spacing]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, scanner.photometric
    image.Rows, image.Columns = picture.shape
    image.BitsAllocated = 8 if scanner.bits <= 8 else 16
    image.BitsStored, image.HighBit, image.PixelRepresentation = scanner.bits, scanner.bits - 1, 0
    image.WindowCenter, image.WindowWidth = 2 ** (scanner.bits - 1), 2**scanner.bits
    image.RescaleIntercept, image.RescaleSlope, image.RescaleType = 0, 1, "US"
    stored = np.rint((1 - picture if inverted else picture) * (2**scanner.bits - 1))
    image.PixelData = stored.astype("<u1" if scanner.bits <= 8 else "<u2").tobytes()
    return image


WRITERS = {"admission": _write_admission, "cxr": _write_images, "labs": _write_labs, "notes": _write_notes}
