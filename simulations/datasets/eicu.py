"""eICU demo: real intensive-care stays of real hospitals, as sites.

Reads the tables of the *eICU Collaborative Research Database Demo* v2.0 (PhysioNet, doi:10.13026/4mxk-na84, ODbL v1.0) and the
hourly series that the YAIB benchmark derived from it. Everything is known within the first 24 h of the stay; columns that know
the outcome are left out. Values go into the files as they were charted: clipping and scaling belong to the standardisation.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from common.errors import ConsiliumError
from simulations.datasets.files import TESTS, UNREADABLE, finish_sites, new_sites, verified, with_split, write_site
from simulations.partition import assign_modalities, draw_sites, grouped_folds, linked_groups

FOLDER = "eicu_demo"
HOW_TO_GET = (
    "Download the 'eICU Collaborative Research Database Demo' v2.0 from PhysioNet (https://physionet.org/content/eicu-crd-demo/, "
    f"open access) into a folder '{FOLDER}', add YAIB's '{FOLDER}' cohorts (https://github.com/rvandewater/YAIB, demo_data/) as "
    f"its sub-folder 'yaib' (yaib/los/dyn.parquet), and set CONSILIUM_DATA to the folder that holds it; or run: "
    f"consilium-bench fetch {FOLDER}"
)
HOURS = 24
SERIES_FILE = "yaib/los/dyn.parquet"
FOLD_SEED, REFERENCE_SHARE, FULL_SHARE = 0, 0.2, 1 / 3

# UCUM unit -> variables of the hourly series.
SERIES_UNITS = {
    "g/dL": "alb hgb mchc",
    "U/L": "alp alt ast ck",
    "meq/L": "be bicar cl k na",
    "mg/dL": "bili bili_dir bun ca crea fgn glu mg phos",
    "%": "bnd fio2 lymph methb neut o2sat",
    "mmol/L": "cai lact",
    "ng/mL": "ckmb tnt",
    "mg/L": "crp",
    "mm[Hg]": "dbp map pco2 po2 sbp",
    "/min": "hr resp",
    "": "inr_pt ph",
    "pg": "mch",
    "fL": "mcv",
    "10*3/uL": "plt wbc",
    "s": "ptt",
    "Cel": "temp",
    "mL": "urine",
}
# UCUM unit -> variables of the admission table: the worst values of the first day and the history, as APACHE records them.
APACHE_UNITS = {
    "": "intubated vent dialysis eyes motor verbal meds ph thrombolytics hepaticfailure lymphoma metastaticcancer leukemia "
    "immunosuppression cirrhosis electivesurgery activetx readmit ima midur oobventday1 oobintubday1 diabetes",
    "mL": "urine",
    "10*3/uL": "wbc",
    "Cel": "temperature",
    "/min": "respiratoryrate heartrate",
    "meq/L": "sodium",
    "mm[Hg]": "meanbp pao2 pco2",
    "%": "hematocrit fio2 ejectfx",
    "mg/dL": "creatinine bun glucose bilirubin",
    "g/dL": "albumin",
}
# Not in the table, and why:
# - they know the outcome or the course of the stay: diedinhospital, dischargelocation, visitnumber, graftcount, amilocation;
# - they describe the hospital, not the patient: region, teachtype, bedcount;
# - they repeat another column: ventday1, day1*, apachepredvar's age, gender, meds, verbal, motor, eyes, pao2, fio2, creatinine;
# - they are constant: sicuday, saps3*, managementsystem, var03hspxlos, aids;
# - its time of entry is unknown: admitdiagnosis (239 codes). The text says the same from admissiondx, which has a time.
SEX = {"Female": "F", "Male": "M"}
ADMIT_SOURCE = {
    "1": "operating_room",
    "2": "recovery_room",
    "3": "chest_pain_center",
    "4": "floor",
    "5": "other_icu",
    "6": "other_hospital",
    "7": "direct",
    "8": "emergency",
}
# Text: table -> its time of entry, its column, what every entry begins with, and what separates its parts.
NOTES = {
    "admissiondx": ("admitdxenteredoffset", "admitdxpath", r"^admission diagnosis\|", r"\|"),
    "diagnosis": ("diagnosisoffset", "diagnosisstring", r"^$", r"\|"),
    "pasthistory": ("pasthistoryenteredoffset", "pasthistorypath", r"^notes/Progress Notes/Past History/(Organ Systems/)?", "/"),
}
STAY = "patientunitstayid"
WORST = (
    "intubated vent dialysis eyes motor verbal meds urine wbc temperature respiratoryrate sodium heartrate meanbp ph hematocrit "
    "creatinine albumin pao2 pco2 bun glucose bilirubin fio2"
)
NUMBERS = sorted(name for group in APACHE_UNITS.values() for name in group.split())
SERIES = sorted(name for group in SERIES_UNITS.values() for name in group.split())
TABLES = {
    "patient": [STAY, "uniquepid", "hospitalid", "hospitaldischargestatus", "unitdischargeoffset", "age", "gender"],
    "hospital": ["hospitalid", "region", "numbedscategory"],
    "apacheapsvar": [STAY, *WORST.split()],
    "apachepredvar": [STAY, "admitsource", *(name for name in NUMBERS if name not in WORST.split())],
    **{name: [STAY, *columns] for name, (*columns, _, _) in NOTES.items()},
}
"""Table -> columns that are read."""


@dataclass(frozen=True)
class EicuStays:
    """The stays of the eICU demo with a known outcome, first 24 h.

    Attributes:
        stays: One row per stay: visit, patient, hospital, network, death (0/1), los (days in the unit after the first 24 h,
            negative if it ended before), main (still in the unit at 24 h), text (null if nothing was entered).
        series: Long: visit, hour (0 to 23), 48 variables; hours without any value are left out.
        table: visit, admission table; a stay without an APACHE record has no row.
        exclusions: What was left out -> how many.
        checksum: SHA-256 over the checksums of the files used.
    """

    stays: pd.DataFrame
    series: pd.DataFrame
    table: pd.DataFrame
    exclusions: Mapping[str, int]
    checksum: str


@functools.cache
def load(root: Path) -> EicuStays:
    """Reads the data set; a second call with the same root answers from memory (do not change its frames).

    Args:
        root: Folder with the tables (``*.csv.gz``) and ``yaib/los/dyn.parquet``.

    Raises:
        ConsiliumError: If the folder or one of its files is missing or damaged, naming the path and the public home of the data.
    """
    files = _files(root)
    checksum = verified(root, files, HOW_TO_GET)
    tables = {name: _read(files[f"{name}.csv.gz"], columns) for name, columns in TABLES.items()}
    hourly = _read(files[SERIES_FILE], ["stay_id", "time", *SERIES]).rename(columns={"stay_id": "visit"})
    exclusions: dict[str, int] = {}
    stays = _stays(tables, hourly, exclusions)
    known = set(stays["visit"])
    series = _series(hourly[hourly["visit"].isin(known)], exclusions)
    text = _text({name: tables[name][tables[name][STAY].isin(known)] for name in NOTES}, exclusions)
    stays["text"] = stays["visit"].map(text)
    table = _table(tables, stays)
    for frame in (stays, series, table):
        frame["visit"] = frame["visit"].astype(str)
    stays = stays[["visit", "patient", "hospital", "network", "death", "los", "main", "text"]]
    return EicuStays(stays, series, table, exclusions, checksum)


def folds(stays: EicuStays, n: int = 5) -> NDArray[np.int64]:
    """Deals the hospitals into folds, balanced in stays and deaths of both cohorts.

    Hospitals that share a patient are in the same fold. The deal has a fixed seed: every run has the same test patients.

    Returns:
        [number of stays] fold of every row of ``stays.stays``.
    """
    frame = stays.stays
    return grouped_folds(_groups(frame), frame["death"] + 2 * frame["main"], folds=n, seed=FOLD_SEED)


def write_sites(
    stays: EicuStays,
    folder: Path,
    *,
    fold: int,
    seed: int,
    cohort: Literal["main", "all"] = "main",
    sites: Literal["network", "hospital"] = "network",
    masked: bool = True,
    reference: float = REFERENCE_SHARE,
    label: Literal["death", "los"] = "death",
) -> dict[str, Any]:
    """Writes one fold as a folder of sites with manifests, and ``reference``.

    The hospitals of the test fold only evaluate, with all modalities, under names that begin with ``test-``. A seeded share of
    the other hospitals is the labelled reference set. The rest are the training sites: a third of them, rounded up, hold all
    modalities, the others one or two.

    Args:
        stays: What :func:`load` returned.
        folder: New or empty folder; it appears complete or not at all.
        fold: The test fold.
        seed: Seed of the reference set and of who holds what.
        cohort: ``main``: stays still in the unit at 24 h; ``all``: every stay.
        sites: A site is a network of hospitals (region x bed size; unknown is its own) or a single hospital.
        masked: Whether training sites lack modalities; without, the same patients are at the same sites with everything.
        reference: Share of the training hospitals that make the reference set; with 0 there is none.
        label: What is predicted: death in hospital, or the remaining days in the unit (of the main cohort).

    Returns:
        ``data_checksum``, ``exclusions``, ``n`` per role and ``sites`` (role, modalities and counts per site).

    Raises:
        ConsiliumError: If there is no such fold or the folder is not empty.
    """
    frame = stays.stays.assign(fold=folds(stays), group=_groups(stays.stays))
    if fold not in frame["fold"].values:
        raise ConsiliumError(f"The eICU demo has no fold {fold}. Ask for one of 0 to {frame['fold'].max()}.")
    partial = new_sites(folder)
    exclusions = dict(stays.exclusions)
    if cohort == "main":
        exclusions["stays that left the unit before 24 h"] = int((~frame["main"]).sum())
        frame = frame[frame["main"]]
    frame = _roles(frame, fold, seed, sites, reference)
    modalities = sorted(_sources())
    training = frame.loc[frame["role"] == "train", "site"]
    held = {site: tuple(modalities) for site in frame["site"]}
    if masked:
        held |= assign_modalities(training, modalities, full_share=FULL_SHARE, seed=(seed, fold, 1))
    place = frame.set_index("visit")["site"]
    values: dict[str, dict[Any, pd.DataFrame]] = {}
    for name, long in (("series", stays.series), ("table", stays.table)):
        frame[name] = frame["visit"].isin(long["visit"]).map({True: f"{name}.parquet", False: None})
        values[name] = dict(iter(long.groupby(long["visit"].map(place))))
    for site, rows in frame.groupby("site"):
        mine = {f"{name}.parquet": v[site] for name, v in values.items() if name in held[str(site)] and site in v}
        _write(partial / str(site), rows, mine, held[str(site)], label)
    finish_sites(partial)
    return {
        "data_checksum": with_split(stays.checksum, frame[["visit", "site"]]),
        "exclusions": exclusions,
        "n": {str(role): _counts(rows) | {"sites": rows["site"].nunique()} for role, rows in frame.groupby("role")},
        "sites": {
            site: {"role": rows["role"].iloc[0], "modalities": list(held[site])} | _counts(rows)
            for site, rows in frame.groupby("site")
        },
    }


def _files(root: Path) -> dict[str, Path]:
    """Name in lower case -> file; PhysioNet writes ``admissionDx.csv.gz``, other distributions ``admissiondx.csv.gz``."""
    found = {path.name.lower(): path for path in root.glob("*.csv.gz")}
    return {name: found.get(name, root / name) for name in (*(f"{table}.csv.gz" for table in TABLES), SERIES_FILE)}


def _read(file: Path, columns: list[str]) -> pd.DataFrame:
    """Returns the columns of a table."""
    try:
        frame = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file, low_memory=False)
    except (*UNREADABLE, pa.ArrowException) as error:
        fault = f"cannot be read ({type(error).__name__}): it is cut short, damaged or no {file.name.split('.', 1)[1]} file"
        raise ConsiliumError(f"{file} {fault}. Download it again. {HOW_TO_GET}") from None
    absent = [name for name in columns if name not in frame]
    if absent:
        raise ConsiliumError(f"{file} lacks the column(s) {', '.join(absent)}. Download it again. {HOW_TO_GET}")
    return frame[columns]


def _stays(tables: Mapping[str, pd.DataFrame], hourly: pd.DataFrame, exclusions: dict[str, int]) -> pd.DataFrame:
    """Returns the stays with a series and a known outcome, sorted by visit."""
    patient = tables["patient"].rename(columns={STAY: "visit", "uniquepid": "patient"})
    charted = patient["visit"].isin(hourly["visit"])
    known = patient["hospitaldischargestatus"].isin(["Alive", "Expired"])
    exclusions["stays without an hourly series"] = int((~charted).sum())
    exclusions["stays with unknown hospital outcome"] = int((charted & ~known).sum())
    stays = (
        patient[charted & known].merge(tables["hospital"], on="hospitalid", how="left").sort_values("visit", ignore_index=True)
    )
    stays["hospital"] = stays["hospitalid"].map("hospital-{:03d}".format)
    beds = {"<100": "under-100", "100 - 249": "100-249", "250 - 499": "250-499", ">= 500": "500-up"}
    network = stays["region"].str.lower() + "-" + stays["numbedscategory"].map(beds)
    stays["network"] = network.fillna("unknown")
    stays["death"] = (stays["hospitaldischargestatus"] == "Expired").astype(int)
    stays["los"] = (stays["unitdischargeoffset"] / 60 - HOURS) / 24
    stays["main"] = stays["los"] >= 0
    return stays


def _series(hourly: pd.DataFrame, exclusions: dict[str, int]) -> pd.DataFrame:
    """Returns the hours of the first day that have a value."""
    hour = hourly["time"].dt.total_seconds() / 3600
    early = (hour >= 0) & (hour < HOURS)
    exclusions["hours of the series after 24 h"] = int((~early).sum())
    series: pd.DataFrame = hourly.assign(hour=hour).loc[early, ["visit", "hour", *SERIES]].dropna(how="all", subset=SERIES)
    return series.sort_values(["visit", "hour"], ignore_index=True)


def _text(tables: Mapping[str, pd.DataFrame], exclusions: dict[str, int]) -> pd.Series[str]:
    """Returns visit -> everything entered before 24 h, each entry once, in order of entry within its table."""
    parts = []
    for name, (time, column, prefix, between) in NOTES.items():
        table = tables[name]
        early = table[time] < HOURS * 60
        exclusions[f"entries of {name} after 24 h"] = int((~early).sum())
        kept = table[early].sort_values([time, column], kind="stable")
        entry = kept[column].str.replace(prefix, "", regex=True).str.replace(between, ", ", regex=True)
        parts.append(pd.DataFrame({"visit": kept[STAY], "entry": entry}))
    entries = pd.concat(parts).drop_duplicates()
    return entries.groupby("visit")["entry"].agg(". ".join)


def _table(tables: Mapping[str, pd.DataFrame], stays: pd.DataFrame) -> pd.DataFrame:
    """Returns the admission table of the stays that have an APACHE record; -1 means that a value is missing."""
    apache = tables["apacheapsvar"].merge(tables["apachepredvar"], on=STAY, how="outer").replace(-1, np.nan)
    people = pd.DataFrame(
        {
            STAY: stays["visit"],
            "age": stays["age"].replace("> 89", "90").astype(float),
            "sex": stays["gender"].where(stays["gender"].isin(SEX)),
        }
    )
    table = people.merge(apache, on=STAY, how="inner").rename(columns={STAY: "visit"})
    table["admitsource"] = table["admitsource"].map("{:.0f}".format, na_action="ignore")
    return table[["visit", "age", "sex", "admitsource", *NUMBERS]].sort_values("visit", ignore_index=True)


def _groups(frame: pd.DataFrame) -> NDArray[np.int64]:
    return linked_groups(frame["hospital"], frame["patient"])


def _roles(frame: pd.DataFrame, fold: int, seed: int, sites: Literal["network", "hospital"], share: float) -> pd.DataFrame:
    """Adds ``role`` (train, reference, test) and ``site``."""
    test = frame["fold"] == fold
    training = frame[~test].groupby("hospital")["group"].first()
    drawn = draw_sites({str(k): int(v) for k, v in training.items()}, share=share, seed=(seed, fold, 0))
    reference = frame["hospital"].isin(drawn)
    site = frame[sites].mask(reference, "reference").mask(test, TESTS + frame[sites])
    role = np.select([test, reference], ["test", "reference"], "train")
    return frame.assign(site=site, role=role)


def _sources() -> dict[str, dict[str, Any]]:
    """Returns the modalities as they stand in a manifest."""
    series = {name: {"column": name, "unit": unit} for unit, group in SERIES_UNITS.items() for name in group.split()}
    table: dict[str, dict[str, Any]] = {
        "age": {"column": "age", "unit": "a"},
        "sex": {"column": "sex", "codes": SEX},
        "admitsource": {"column": "admitsource", "codes": ADMIT_SOURCE},
    }
    table |= {name: {"column": name, "unit": unit} for unit, group in APACHE_UNITS.items() for name in group.split()}
    return {
        "series": {"kind": "series", "column": "series", "key": "visit", "time": "hour", "variables": series},
        "table": {"kind": "table", "column": "table", "key": "visit", "variables": table},
        "text": {"kind": "text", "column": "text", "inline": True},
    }


def _write(folder: Path, rows: pd.DataFrame, files: Mapping[str, pd.DataFrame], held: tuple[str, ...], label: str) -> None:
    """Writes one site: patient table, manifest and the files of its values."""
    manifest = {
        "labels": {label: label},
        "label_units": {"los": "d"} if label == "los" else {},
        "role": "evaluate" if (rows["role"] == "test").all() else "train",
        "modalities": {name: source for name, source in _sources().items() if name in held},
    }
    write_site(folder, rows[["patient", "visit", label, *held]], manifest, files)


def _counts(rows: pd.DataFrame) -> dict[str, int]:
    return {
        "stays": len(rows),
        "patients": int(rows["patient"].nunique()),
        "deaths": int(rows["death"].sum()),
        "hospitals": int(rows["hospital"].nunique()),
    }
