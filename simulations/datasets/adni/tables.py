"""The tables of ADNI in the layout of Flex-MoE: who has which diagnosis, clinical and biospecimen values, brain regions.

The layout was read in Flex-MoE's public repository (UNITES-Lab/flex-moe, ``data/adni/README.md`` and its scripts): tables as LONI
gives them, with the day of the download in their names, in ``diagnosis``, ``clinical``, ``biospecimen`` and ``image``; there too:
a subject counts if every visit has a diagnosis and all are the same, of several records of a subject the latest one counts
(here the latest in which a value is known).
**Imaging is not that of the published figures**: their protocol read maps of grey matter (MUSE/RAVENS, 91x109x91) with a 3-D
convolutional network. The table of FreeSurfer 7 that is read here came into Flex-MoE's code in June 2025 only.

Otherwise than there: values stay in their units, an empty cell stays empty (there: min-max over all subjects, tests included, and
filled); read are the columns below, not every column that merging leaves (identifiers of visits, days, comments). **Left out,
because they tell the diagnosis**: PTCOGBEG, PTADDX, PTADBEG (there too), and RECCMEDS, whose drugs and reasons name the
disease (there it is in).
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from pathlib import Path

import pandas as pd

from common.errors import ConsiliumError
from simulations.datasets.files import UNREADABLE, refuse

FOLDER = "adni"
HOW_TO_GET = (
    f"A folder '{FOLDER}' below CONSILIUM_DATA is (or links to) Flex-MoE's data/adni (https://github.com/UNITES-Lab/flex-moe): "
    f"{FOLDER}/diagnosis/DXSUM*.csv, {FOLDER}/clinical/ (MEDHIST, NEUROEXM, PTDEMOG, VITALS), {FOLDER}/biospecimen/ (APOERES, "
    f"UPENNBIOMK_ROCHE_ELECSYS), {FOLDER}/image/UCSFFSX7_*.csv, {FOLDER}/genomic/liftovered/ADNI_final.bed, .bim and .fam as its "
    f"genomic_preprocess.ipynb makes them, and {FOLDER}/PTID_splits.json, if you have it. LONI (https://ida.loni.usc.edu) gives "
    "the tables to those whom ADNI admits: ARC Builder, Tables. Without the folder a generated twin takes their place."
)
_refuse = functools.partial(refuse, remedy=f"Get the file again. {HOW_TO_GET}", first=2)
PHASES = {"ADNI1": "adni1", "ADNIGO": "adnigo", "ADNI2": "adni2", "ADNI3": "adni3", "ADNI4": "adni4"}
"""Phase as DXSUM spells it, in the order of time -> its site."""
DIAGNOSES = {1.0: "CN", 2.0: "MCI", 3.0: "AD"}
"""DIAGNOSIS in DXSUM -> output of the task."""
SUBJECT = r"\d{3}_S_\d{4,5}"
UNKNOWN = (-1.0, -4.0)  # ADNI's codes for "not known" and "not asked"

Range = tuple[float, float]
MEDHIST = {
    name: (0.0, 1.0)
    for name in (
        "MHPSYCH", "MH2NEURL", "MH3HEAD", "MH4CARD", "MH5RESP", "MH6HEPAT", "MH7DERM", "MH8MUSCL", "MH9ENDO", "MH10GAST",
        "MH11HEMA", "MH12RENA", "MH13ALLE", "MH14ALCH", "MH15DRUG", "MH16SMOK", "MH17MALI", "MH18SURG", "MH19OTHR",
    )
}  # fmt: skip
NEUROEXM = {
    name: (1.0, 2.0)
    for name in (
        "NXVISUAL", "NXAUDITO", "NXTREMOR", "NXCONSCI", "NXNERVE", "NXMOTOR", "NXFINGER", "NXHEEL", "NXSENSOR", "NXTENDON",
        "NXPLANTA", "NXGAIT", "NXOTHER",
    )
}  # fmt: skip
PTDEMOG = {"PTDOBYY": (1890.0, 2000.0), "PTEDUCAT": (0.0, 30.0), "PTHAND": (1.0, 2.0), "PTNOTRT": (0.0, 1.0)}
CODES = {
    "PTGENDER": {1: "M", 2: "F"},
    "PTMARRY": {1: "married", 2: "widowed", 3: "divorced", 4: "never_married", 6: "partnership"},
}
"""Column of PTDEMOG -> its code -> category of the task; another code, such as 5 for unknown, is an empty cell."""
VITALS = {"VSBPSYS": (40.0, 300.0), "VSBPDIA": (20.0, 200.0), "VSPULSE": (20.0, 200.0), "VSRESP": (4.0, 60.0)}
IN_UNITS: Mapping[str, tuple[str, float, float, Range]] = {
    "VSWEIGHT": ("VSWTUNIT", 0.45359237, 0.0, (25.0, 250.0)),
    "VSHEIGHT": ("VSHTUNIT", 2.54, 0.0, (110.0, 220.0)),
    "VSTEMP": ("VSTMPUNT", 5 / 9, -32 * 5 / 9, (33.0, 42.0)),
}
"""Column of VITALS -> column of its unit (1: lb, inches, Fahrenheit; 2: kg, cm, Celsius), factor and offset of 1, range in 2."""
CLINICAL: Mapping[str, Mapping[str, Range]] = {"MEDHIST": MEDHIST, "NEUROEXM": NEUROEXM, "PTDEMOG": PTDEMOG, "VITALS": VITALS}
ALLELES = {"APOE2": "2", "APOE4": "4"}
"""Feature -> allele of APOERES' GENOTYPE (such as 3/4) that it counts."""
FLUID = {"ABETA40": (0.0, 1e6), "ABETA42": (0.0, 1e5), "TAU": (0.0, 1e4), "PTAU": (0.0, 1e4)}

LEFT = (13, 14, 15, 23, 24, 25, 26, 31, 32, 34, 35, 36, 38, 39, 40, *range(43, 53), *range(54, 61), 62, 129)
RIGHT = (72, 73, 74, 82, 83, 84, 85, 90, 91, 93, 94, 95, 97, 98, 99, *range(102, 112), 113, *range(114, 120), 121, 130)
DEEP_LEFT = (1, 2, 3, 4, 5, 6, 7, 9, 11, 12, 16, 17, 18, 21, 29, 30, 37, 42, 53, 61, 65)  # with those of the midline
DEEP_RIGHT = (70, 71, 75, 76, 77, 80, 88, 89, 96, 101, 112, 120, 124, 127, 128)
REGIONS = (
    "ST10CV",
    *(f"ST{n}{what}" for n in (*LEFT, *RIGHT) for what in ("CV", "TA")),
    *(f"ST{n}SV" for n in (*DEEP_LEFT, *DEEP_RIGHT)),
)
"""Columns of UCSFFSX7: volume within the skull, volume (CV) and mean thickness (TA) of the cortex, volume of deep parts (SV)."""
FEATURES: Mapping[str, tuple[str, ...]] = {
    "biospecimen": (*ALLELES, *FLUID),
    "clinical": (*CODES, *PTDEMOG, *MEDHIST, *NEUROEXM, *VITALS, *IN_UNITS),
    "imaging": REGIONS,
}
"""Modality -> its features, named like ADNI's columns."""


def read_subjects(root: Path, counts: dict[str, int]) -> pd.DataFrame:
    """Reads who has one diagnosis, and in which phase each subject was enrolled.

    Args:
        root: Folder of the layout.
        counts: Where to add who was left out.

    Returns:
        One row per subject, sorted: patient (PTID), rid, phase (site of the first phase), diagnosis (output of the task).

    Raises:
        ConsiliumError: If DXSUM is missing, cut short, of an older layout, or holds what is no subject, phase or diagnosis.
    """
    frame, file = _read(root, "diagnosis", "DXSUM", ["PTID", "RID", "PHASE", "DIAGNOSIS"])
    frame["PTID"] = frame["PTID"].fillna("").str.strip()
    _refuse(~frame["PTID"].str.fullmatch(SUBJECT), file, "'PTID' is no subject like 002_S_0413")
    _refuse(~frame["PHASE"].isin(list(PHASES)), file, f"'PHASE' is none of {', '.join(PHASES)}")
    code = pd.to_numeric(frame["DIAGNOSIS"], errors="coerce").astype(float)
    _refuse(~code.isin(list(DIAGNOSES)) & frame["DIAGNOSIS"].notna(), file, "'DIAGNOSIS' is neither 1 (CN), 2 (MCI) nor 3 (AD)")
    order = {phase: k for k, phase in enumerate(PHASES)}
    visits = frame.assign(code=code, order=frame["PHASE"].map(order), rid=pd.to_numeric(frame["RID"], errors="coerce"))
    by = visits.groupby("PTID")
    kinds, unknown = by["code"].nunique(), by["code"].agg(lambda codes: bool(codes.isna().any()))
    counts["subjects with a visit without a diagnosis"] = int(unknown.sum())
    counts["subjects whose diagnosis changed"] = int((kinds > 1)[~unknown].sum())
    kept = kinds.index[(kinds == 1) & ~unknown]
    if kept.empty:
        raise ConsiliumError(f"{file}: no subject has one diagnosis at every visit. {HOW_TO_GET}")
    phase = by["order"].min().map(dict(enumerate(PHASES.values())))
    found = {"rid": by["rid"].first(), "phase": phase, "diagnosis": by["code"].first().map(DIAGNOSES)}
    return pd.DataFrame(found).loc[kept].rename_axis("patient").reset_index().sort_values("patient", ignore_index=True)


def read_values(root: Path, subjects: pd.DataFrame, counts: dict[str, int], warnings: list[str]) -> pd.DataFrame:
    """Reads clinical and biospecimen values and brain regions.

    Args:
        root: Folder of the layout.
        subjects: What :func:`read_subjects` returned.
        counts: Where to add what was left out.
        warnings: Where to add what people should know.

    Returns:
        Indexed by patient, with every feature of ``FEATURES`` (categories as codes 1, 2, ...), NaN where not known.

    Raises:
        ConsiliumError: If a file is missing, cut short or lacks a column of its documentation.
    """
    records = functools.partial(_records, root, subjects=subjects, counts=counts)
    parts: list[pd.DataFrame] = []
    for name, ranges in CLINICAL.items():
        extra = (
            [*CODES] if name == "PTDEMOG" else [*IN_UNITS, *(unit for unit, *_ in IN_UNITS.values())] if name == "VITALS" else []
        )
        found = records("clinical", name, [*ranges, *extra])
        values = {c: _numbers(found[c], name, counts, r) for c, r in ranges.items()}
        if name == "PTDEMOG":
            values |= {c: _numbers(found[c], name, counts, among=codes) for c, codes in CODES.items()}
        if name == "VITALS":
            values |= {c: _in_units(found, c, counts) for c in IN_UNITS}
        parts.append(_last_known(found, values))
    apoe = records("biospecimen", "APOERES", ["GENOTYPE"])
    genotype = apoe["GENOTYPE"].str.strip()
    genotype = genotype.where(genotype.str.fullmatch("[234]/[234]"))
    parts.append(_last_known(apoe, {name: genotype.str.count(allele).astype(float) for name, allele in ALLELES.items()}))
    fluid = records("biospecimen", "UPENNBIOMK_ROCHE_ELECSYS", list(FLUID))
    values = {c: _numbers(fluid[c], "UPENNBIOMK_ROCHE_ELECSYS", counts, r) for c, r in FLUID.items()}
    parts.append(_last_known(fluid, values))
    parts.append(_regions(root, subjects, counts, warnings))
    every = [feature for features in FEATURES.values() for feature in features]
    return pd.concat([part.reindex(subjects["patient"]) for part in parts], axis=1)[every]


def _regions(root: Path, subjects: pd.DataFrame, counts: dict[str, int], warnings: list[str]) -> pd.DataFrame:
    """Returns the regions of the scan that was updated last, whole: regions of two scans are never mixed."""
    frame, file = _read(root, "image", "UCSFFSX7", ["RID", "UPDATE_STAMP"], optional=["PTID", *REGIONS])
    absent = [region for region in REGIONS if region not in frame]
    if len(absent) > len(REGIONS) / 2:
        raise ConsiliumError(
            f"{file} lacks {len(absent)} of {len(REGIONS)} columns such as {absent[0]}: it is no UCSFFSX7. {HOW_TO_GET}"
        )
    if absent:
        warnings.append(f"{file.name} lacks {len(absent)} of {len(REGIONS)} regions, which stay empty: {', '.join(absent)}.")
    frame = _in_time(_of_subjects(frame, file, subjects, counts), file).drop_duplicates("PTID", keep="last").set_index("PTID")
    return pd.DataFrame(
        {r: _numbers(frame[r], "UCSFFSX7", counts, (0.0, 1e7)) for r in REGIONS if r in frame}, columns=[*REGIONS]
    )


def _records(
    root: Path, folder: str, name: str, columns: list[str], *, subjects: pd.DataFrame, counts: dict[str, int]
) -> pd.DataFrame:
    """Returns the records of subjects with one diagnosis, as they stand in a table, by ``UPDATE_STAMP``."""
    frame, file = _read(root, folder, name, ["RID", "UPDATE_STAMP", *columns], optional=["PTID"])
    return _in_time(_of_subjects(frame, file, subjects, counts), file)


def _last_known(records: pd.DataFrame, values: Mapping[str, pd.Series[float]]) -> pd.DataFrame:
    """Returns the last value of every column that is known of a subject, indexed by subject.

    Args:
        records: What :func:`_records` returned.
        values: Column -> what the records say, in units of the task, empty where not known. Units and codes belong to a record:
            of raw cells the last value and the last unit may be of two.
    """
    return pd.DataFrame(dict(values), index=records.index).groupby(records["PTID"]).last()


def _read(
    root: Path, folder: str, name: str, columns: Collection[str], optional: Collection[str] = ()
) -> tuple[pd.DataFrame, Path]:
    """Reads columns of the one file ``{folder}/{name}*.csv`` as text; names of columns are upper case, as LONI changed theirs."""
    files = sorted((root / folder).glob(f"{name}*.csv"))
    if len(files) != 1:
        which = f"{', '.join(f.name for f in files)} are all there: leave the newest." if files else "it is missing."
        raise ConsiliumError(f"One file {root / folder / name}_DATE.csv is expected; {which} {HOW_TO_GET}")
    try:
        frame = pd.read_csv(files[0], dtype=str, skipinitialspace=True)
    except UNREADABLE as error:
        raise ConsiliumError(
            f"{files[0]} cannot be read ({type(error).__name__}): it is cut short or no CSV file. {HOW_TO_GET}"
        ) from None
    frame.columns = frame.columns.str.strip().str.upper()
    absent = [c for c in columns if c not in frame]
    if absent:
        older = " DXCURREN and DXCHANGE stand in downloads before 2022." if {"DXCURREN", "DXCHANGE"} & set(frame) else ""
        raise ConsiliumError(f"{files[0]} lacks the column(s) {', '.join(absent)} of ADNI's data dictionary.{older} {HOW_TO_GET}")
    if frame.empty:
        raise ConsiliumError(f"{files[0]} has no rows: it is cut short. {HOW_TO_GET}")
    return frame[[c for c in (*columns, *optional) if c in frame]].copy(), files[0]


def _of_subjects(frame: pd.DataFrame, file: Path, subjects: pd.DataFrame, counts: dict[str, int]) -> pd.DataFrame:
    """Returns the rows of subjects with one diagnosis, with ``PTID``, by ``RID`` where a table names no subject."""
    rid = pd.to_numeric(frame["RID"], errors="coerce")
    by_rid = rid.map(subjects.dropna(subset="rid").drop_duplicates("rid").set_index("rid")["patient"])
    named = frame["PTID"].str.strip() if "PTID" in frame else pd.Series(None, index=frame.index, dtype=object)
    frame = frame.assign(PTID=named.where(named.notna(), by_rid))
    mine = frame["PTID"].isin(subjects["patient"])
    if not mine.any():
        raise ConsiliumError(f"{file} holds none of the {len(subjects):,} subjects of DXSUM. Are both of ADNI? {HOW_TO_GET}")
    counts[f"rows of {file.name.rsplit('_', 1)[0]} of other subjects"] = int((~mine).sum())
    return frame[mine]


def _in_time(frame: pd.DataFrame, file: Path) -> pd.DataFrame:
    """Returns rows by the moment of their last change; rows of one moment in the order of the file."""
    moment = pd.to_datetime(frame["UPDATE_STAMP"], format="mixed", errors="coerce", utc=True)
    _refuse(moment.isna() & frame["UPDATE_STAMP"].notna(), file, "'UPDATE_STAMP' is no time")
    return frame.assign(moment=moment).sort_values("moment", kind="stable", na_position="first")


def _numbers(
    cells: pd.Series, table: str, counts: dict[str, int], within: Range | None = None, among: Collection[int] = ()
) -> pd.Series[float]:
    """Returns a column as numbers; what is none, not known, or cannot be, is empty. Beyond a limit of detection: the limit."""
    text = cells.fillna("").str.strip().str.lstrip("<>")
    value = pd.to_numeric(text, errors="coerce").astype(float)
    value = value.mask(value.isin(UNKNOWN))
    possible = value.between(*within) if within else value.isin(list(among))
    lost = int((value.notna() & ~possible).sum()) + int((pd.to_numeric(text, errors="coerce").isna() & (text != "")).sum())
    reason = f"values of {table} that are unknown codes or cannot be"
    if lost:
        counts[reason] = counts.get(reason, 0) + lost
    return value.where(possible)


def _in_units(vitals: pd.DataFrame, column: str, counts: dict[str, int]) -> pd.Series[float]:
    """Returns a measurement in kg, cm or degrees Celsius; without a unit it is empty."""
    unit_column, factor, offset, within = IN_UNITS[column]
    unit = pd.to_numeric(vitals[unit_column], errors="coerce")
    value = pd.to_numeric(vitals[column], errors="coerce").astype(float)
    value = value.mask(value.isin(UNKNOWN))
    metric = value.where(unit == 2, (value * factor + offset).where(unit == 1))
    return _numbers(metric.astype(str).replace("nan", ""), "VITALS", counts, within)
