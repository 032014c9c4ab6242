"""PhysioNet / Computing in Cardiology Challenge 2012: 48 h of intensive care, the four kinds of unit as sites.

Reads sets a and b as PhysioNet publishes them (physionet.org/content/challenge-2012/1.0.0, ODC-By v1.0; Silva et al., Computing
in Cardiology 2012). A record is one stay of an adult who was in the unit for 48 h at least; whether two records are of one
patient is not told, so every record counts as a patient.

What a modality holds:

* ``series``: the variables that were charted over 48 h. Weight at admission is a descriptor and stands in the table; ``MechVent``
  is left out, because only its ones are charted: it is constant, and FiO2 is charted when it is.
* ``table``: the general descriptors of admission: age, sex, height, weight. The kind of unit is no feature: it is the site.

Values that no living adult has (a pH of 735, a blood pressure of 0, a temperature of -17.8 Cel, which is 0 Fahrenheit) are slips
of the keyboard or sensors that were off. A few of them move the mean and the deviation by which all sites are scaled, therefore
what lies outside :data:`POSSIBLE` is not read, and counted. What is rare but possible stays as it was charted.
"""

from __future__ import annotations

import functools
import io
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from common.data.manifest import REFERENCE_FOLDER
from common.errors import ConsiliumError
from simulations.datasets.files import TESTS, finish_sites, new_sites, verified, with_split, write_site

FOLDER = "cinc2012"
HOW_TO_GET = (
    "Download set-a.tar.gz, set-b.tar.gz, Outcomes-a.txt and Outcomes-b.txt of the 'PhysioNet/Computing in Cardiology Challenge "
    f"2012' (https://physionet.org/content/challenge-2012/1.0.0/, open access) into a folder '{FOLDER}', and set CONSILIUM_DATA "
    f"to the folder that holds '{FOLDER}'; or run: consilium-bench fetch {FOLDER}"
)
FILES = ("Outcomes-a.txt", "Outcomes-b.txt", "set-a.tar.gz", "set-b.tar.gz")
RECORDS = 4000  # of each set
HOURS = 48
UNITS = {1: "coronary", 2: "cardiac-surgery", 3: "medical", 4: "surgical"}
TRAINING, TEST = "a", "b"
LACKS = {"medical": "table", "cardiac-surgery": "series"}
REFERENCE_SHARE = 0.1
DESCRIPTORS = ["Age", "Gender", "Height", "ICUType", "Weight"]
SEX = {0.0: "F", 1.0: "M"}

# UCUM unit -> variables of the series, as the challenge's description has them.
SERIES_UNITS = {
    "g/dL": "Albumin",
    "U/L": "ALP ALT AST",
    "mg/dL": "Bilirubin BUN Cholesterol Creatinine Glucose",
    "mm[Hg]": "DiasABP MAP NIDiasABP NIMAP NISysABP PaCO2 PaO2 SysABP",
    "": "FiO2 GCS pH",
    "mmol/L": "HCO3 Lactate Mg",
    "%": "HCT SaO2",
    "/min": "HR RespRate",
    "meq/L": "K Na",
    "10*3/uL": "Platelets WBC",
    "Cel": "Temp",
    "ug/L": "TroponinI TroponinT",
    "mL": "Urine",
    "kg": "Weight",
}
SERIES = sorted(name for group in SERIES_UNITS.values() for name in group.split())
POSSIBLE = {
    "Albumin": (0.5, 8),
    "ALP": (1, 5000),
    "ALT": (1, 20000),
    "AST": (1, 40000),
    "Bilirubin": (0.05, 80),
    "BUN": (1, 300),
    "Cholesterol": (20, 1000),
    "Creatinine": (0.05, 40),
    "DiasABP": (10, 200),
    "FiO2": (0.2, 1),
    "GCS": (3, 15),
    "Glucose": (10, 2000),
    "HCO3": (1, 70),
    "HCT": (5, 75),
    "HR": (10, 300),
    "Height": (100, 230),
    "K": (1, 12),
    "Lactate": (0.1, 40),
    "MAP": (10, 250),
    "Mg": (0.2, 10),
    "NIDiasABP": (10, 200),
    "NIMAP": (10, 250),
    "NISysABP": (20, 300),
    "Na": (90, 200),
    "PaCO2": (5, 200),
    "PaO2": (10, 700),
    "Platelets": (1, 2500),
    "RespRate": (1, 80),
    "SaO2": (20, 100),
    "SysABP": (20, 300),
    "Temp": (25, 45),
    "TroponinI": (0, 1000),
    "TroponinT": (0, 100),
    "Urine": (0, 5000),
    "WBC": (0.05, 500),
    "Weight": (20, 350),
    "pH": (6.5, 8),
}
"""Variable -> least and largest value that is read: wide limits of what has been measured in living adults, urine per entry."""
LEAST, MOST = ({name: limits[k] for name, limits in POSSIBLE.items()} for k in (0, 1))


@dataclass(frozen=True)
class CincStays:
    """The stays of sets a and b.

    Attributes:
        stays: One row per stay: visit, set (``a`` or ``b``), unit (name of the kind of unit), death (0/1).
        series: Long: visit, hour (0 to under 48), 36 variables; a stay without a charted value has no row.
        table: visit, age (a), sex (F, M or null), height (cm), weight (kg): one row per stay.
        exclusions: What was left out -> how many.
        checksum: SHA-256 over the checksums of the files.
    """

    stays: pd.DataFrame
    series: pd.DataFrame
    table: pd.DataFrame
    exclusions: Mapping[str, int]
    checksum: str


@functools.cache
def load(root: Path) -> CincStays:
    """Reads the data set; a second call with the same root answers from memory (do not change its frames).

    Args:
        root: Folder with ``set-a.tar.gz``, ``set-b.tar.gz``, ``Outcomes-a.txt`` and ``Outcomes-b.txt``.

    Raises:
        ConsiliumError: If a file is missing, damaged or truncated, naming it and the public home of the data.
    """
    checksum = verified(root, FILES, HOW_TO_GET)
    sets, charts = [], []
    for each in (TRAINING, TEST):
        charted = _charted(root / f"set-{each}.tar.gz")
        described = _descriptors(charted, root / f"set-{each}.tar.gz")
        sets.append(described.assign(set=each, death=_deaths(root / f"Outcomes-{each}.txt", described.index)))
        charts.append(charted)
    described, charted = pd.concat(sets).rename_axis("visit"), pd.concat(charts, ignore_index=True)
    values = _values(charted)
    possible = (values["value"] >= values["parameter"].map(LEAST)) & (values["value"] <= values["parameter"].map(MOST))
    series = _wide(values[possible])
    exclusions = {
        "values of the series that cannot be": int((~possible).sum()),
        "stays without a series (kept, with the table alone)": len(described) - series["visit"].nunique(),
    }
    stays = described.assign(unit=described["ICUType"].map(UNITS)).reset_index()[["visit", "set", "unit", "death"]]
    frames = (stays, series, _table(described))
    for frame in frames:
        frame["visit"] = frame["visit"].astype(str)
    return CincStays(*frames, exclusions=exclusions, checksum=checksum)


def write_sites(
    stays: CincStays, folder: Path, *, seed: int, masked: bool = True, reference: float = REFERENCE_SHARE
) -> dict[str, Any]:
    """Writes the four kinds of unit as sites, and ``reference``.

    Set a trains, but for a seeded share of it, balanced by unit and outcome, that is the labelled reference set. Set b tests,
    with all that it has, under names that begin with ``test-``.

    Args:
        stays: What :func:`load` returned.
        folder: New or empty folder; it appears complete or not at all.
        seed: Seed of the reference set.
        masked: Whether the medical unit lacks the table and cardiac surgery the series; without, every site has everything.
        reference: Share of set a that makes the reference set; with 0 there is none.

    Returns:
        ``data_checksum``, ``exclusions`` and ``n`` per role (stays, deaths, sites).

    Raises:
        ConsiliumError: If the folder is not empty.
    """
    partial = new_sites(folder)
    frame = stays.stays.assign(patient=stays.stays["visit"], table="table.parquet")
    frame["series"] = frame["visit"].isin(stays.series["visit"]).map({True: "series.parquet", False: None})
    pool = frame.index[frame["set"] == TRAINING]
    strata = frame.loc[pool, "unit"] + frame.loc[pool, "death"].astype(str)
    frame["role"] = np.where(frame["set"] == TRAINING, "train", "test")
    if reference:
        _, drawn = train_test_split(pool, test_size=reference, random_state=seed, stratify=strata)
        frame.loc[drawn, "role"] = "reference"
    named = frame["unit"].where(frame["role"] != "test", TESTS + frame["unit"])
    frame["site"] = named.where(frame["role"] != "reference", REFERENCE_FOLDER)
    for site, rows in frame.groupby("site"):
        held = [name for name in _sources() if not (masked and LACKS.get(str(site)) == name)]
        long = {"series": stays.series, "table": stays.table}
        write_site(
            partial / str(site),
            rows[["patient", "visit", "death", *held]],
            {
                "labels": {"death": "death"},
                "role": "evaluate" if (rows["role"] == "test").all() else "train",
                "modalities": {name: source for name, source in _sources().items() if name in held},
            },
            {f"{name}.parquet": long[name][long[name]["visit"].isin(rows["visit"])] for name in held},
        )
    finish_sites(partial)
    n = {
        str(role): {"stays": len(rows), "deaths": int(rows["death"].sum()), "sites": int(rows["site"].nunique())}
        for role, rows in frame.groupby("role")
    }
    return {"data_checksum": with_split(stays.checksum, frame[["visit", "site"]]), "exclusions": dict(stays.exclusions), "n": n}


def _charted(archive: Path) -> pd.DataFrame:
    """Returns every line of a set: visit, hour, parameter, value, in the order of the files."""
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                content = tar.extractfile(member) if member.name.endswith(".txt") else None
                if content is not None:
                    files[PurePosixPath(member.name).stem] = content.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ConsiliumError(f"{archive} cannot be read ({type(error).__name__}). {HOW_TO_GET}") from None
    if len(files) != RECORDS:
        raise ConsiliumError(f"{archive} holds {len(files)} records, the official set has {RECORDS}. {HOW_TO_GET}")
    lines = (record.encode() + b"," + line for record, text in sorted(files.items()) for line in text.splitlines()[1:] if line)
    columns = {"visit": "int64", "time": "category", "parameter": "category", "value": "float64"}
    try:
        frame = pd.read_csv(io.BytesIO(b"\n".join(lines)), names=list(columns), dtype=columns)
        minutes = {str(t): int(str(t)[:-3]) * 60 + int(str(t)[-2:]) for t in frame["time"].cat.categories}
    except ValueError as error:
        raise ConsiliumError(
            f"{archive}: a record is no list of Time,Parameter,Value ({type(error).__name__}). {HOW_TO_GET}"
        ) from None
    hour = frame["time"].map(minutes).astype(float) / 60
    if (hour.groupby(frame["visit"]).max() >= HOURS - 12).mean() < 0.9:
        raise ConsiliumError(f"{archive}: most records end before {HOURS - 12} h; truncated copies are about. {HOW_TO_GET}")
    # What was charted at 48:00 belongs to the last hour.
    frame = frame.assign(hour=hour.clip(upper=HOURS - 1 / 60), parameter=frame["parameter"].astype(str))
    return frame[["visit", "hour", "parameter", "value"]]


def _descriptors(charted: pd.DataFrame, archive: Path) -> pd.DataFrame:
    """Returns the general descriptors, one row per visit: the first line of each."""
    first = charted[charted["parameter"].isin(DESCRIPTORS)].drop_duplicates(["visit", "parameter"])
    frame = first.pivot(index="visit", columns="parameter", values="value").reindex(columns=DESCRIPTORS)
    if len(frame) != RECORDS or not frame["ICUType"].isin(UNITS).all():
        raise ConsiliumError(f"{archive}: a record names no ICUType of 1 to 4. {HOW_TO_GET}")
    return frame


def _deaths(file: Path, visits: pd.Index[int]) -> pd.Series[int]:
    """Returns the outcome of the visits."""
    try:
        death = pd.read_csv(file).set_index("RecordID")["In-hospital_death"]
    except (KeyError, ValueError) as error:
        raise ConsiliumError(f"{file} has no RecordID and In-hospital_death ({type(error).__name__}). {HOW_TO_GET}") from None
    if sorted(death.index) != sorted(visits) or not death.isin([0, 1]).all():
        raise ConsiliumError(f"{file} does not hold one outcome of 0 or 1 for every record of its set. {HOW_TO_GET}")
    return death


def _values(charted: pd.DataFrame) -> pd.DataFrame:
    """Returns the lines of the series; the first weight of a visit is a descriptor."""
    described = charted["parameter"].eq("Weight") & ~charted.duplicated(["visit", "parameter"])
    return charted[charted["parameter"].isin(SERIES) & ~described]


def _wide(values: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per visit and time; values charted twice at one time are averaged."""
    whole = values.groupby(["visit", "hour", "parameter"])["value"].mean().unstack()
    return whole.reindex(columns=SERIES).astype(np.float32).rename_axis(columns=None).reset_index()


def _table(described: pd.DataFrame) -> pd.DataFrame:
    """Returns the admission table; -1 means that a value is missing, and so is what cannot be."""
    possible = {name: described[name].where(described[name].between(*POSSIBLE[name])) for name in ("Height", "Weight")}
    frame = described.assign(**possible, sex=described["Gender"].map(SEX)).reset_index()
    frame = frame.rename(columns={"Age": "age", "Height": "height", "Weight": "weight"})
    return frame[["visit", "age", "sex", "height", "weight"]].rename_axis(columns=None)


def _sources() -> dict[str, dict[str, Any]]:
    """Returns the modalities as they stand in a manifest."""
    series = {name: {"column": name, "unit": unit} for unit, group in SERIES_UNITS.items() for name in group.split()}
    table = {
        "age": {"column": "age", "unit": "a"},
        "sex": {"column": "sex"},
        "height": {"column": "height", "unit": "cm"},
        "weight": {"column": "weight", "unit": "kg"},
    }
    return {
        "series": {"kind": "series", "column": "series", "key": "visit", "time": "hour", "variables": series},
        "table": {"kind": "table", "column": "table", "key": "visit", "variables": table},
    }
