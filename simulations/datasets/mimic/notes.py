"""MIMIC-IV-Note: the history of present illness of an admission, without what tells its end.

MIMIC-IV has no note of admission: the section is cut out of the discharge summary (``note/discharge.csv``, type DS), which was
typed at or after discharge. Two things follow. A section that no known heading ends would run on into the hospital course, and is
not used. And what tells of death is filtered by the rules of van Aken et al. (EACL 2021; bvanaken/clinical-outcome-prediction),
read in its code: a line that is nothing but "deceased" or "expired" is deleted; a stay whose section says that the patient died
leaves the cohort, because a prediction makes no sense there. Their other rules are for sections that are not read here.
Their rules let pass "he passed away" or "pt was pronounced dead": what :data:`OUR_DEATH`, a rule of ours, finds beside them
leaves the cohort too, and is counted apart. A pronoun may stand for a relative: then a stay is left out in vain, which costs less
than an outcome that is told.
Addenda (type AD) are not read. A summary may be absent because the patient died elsewhere: its absence is not random.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from simulations.datasets.mimic.layout import NOTES, read, refuse, tell

SUMMARY = "DS"
TYPES = (SUMMARY, "AD")
HEADING = re.compile(
    r"^[ \t]*(?:CC/HPI|HPI|HISTORY OF (?:THE )?(?:PRESENT |PHYSICAL )?ILLNESS)(?: \(HPI[^)\n]*\))?[ \t]*:", re.I | re.M
)
NEXT = re.compile(
    r"^[ \t]*(?:PAST (?:MEDICAL|SURGICAL)|PMHX?|PSHX?|SOCIAL|FAMILY|MEDICAL) ?(?:(?:MEDICAL |/ ?SURGICAL )?HISTORY|HX)?[ \t]*:"
    r"|^[ \t]*(?:REVIEW OF SYSTEMS|ROS|ALLERGIES|(?:ADMISSION |DISCHARGE )?PHYSICAL EXAM(?:INATION)?|PERTINENT RESULTS"
    r"|(?:BRIEF )?HOSPITAL COURSE|(?:HOME )?MEDICATIONS?(?: ON ADMISSION)?|(?:ADMISSION |DISCHARGE )LABS?|DEATH EXAM"
    r"|DISCHARGE [A-Z]+|FOLLOW-?UP INSTRUCTIONS|MAJOR SURGICAL OR INVASIVE PROCEDURE)[ \t]*:",
    re.I | re.M,
)
COURSE = re.compile(
    r"^[ \t]*(?:(?:(?:BRIEF|SUMMARY OF) )?(?:HOSPITAL|[A-Z]{0,4}ICU|CCU|FLOOR|WARD|INPATIENT) COURSE\b|COURSE[ \t]*:)",
    re.I | re.M,
)
"""A line that begins with the course in the hospital or in a unit, with a colon or without. That of the emergency department is
known at admission."""
VERDICT = re.compile(r"^[ \t]*(?:deceased|expired)[ \t]*\.?[ \t]*$\n?", re.I | re.M)
DEATH = re.compile(
    r"\b(?:patient|pt)\s+(?:had\s|has\s)?(?:expired|died|passed away|deceased)|\bs?he expired|pronounced expired|time of death",
    re.I,
)
"""The rule of van Aken et al."""

PATIENT = r"\b(?:patient|pt\.?|s?he|(?:mr|mrs|ms|miss)\.?\s+_+)"
BETWEEN = (
    r"(?:[\s,]+(?:unfortunately|sadly|regrettably|subsequently|suddenly|ultimately|eventually|then|later|soon|shortly|thereafter"
    r"|peacefully|quietly|also|who|had|has|was|is|now))*[\s,]+"
)
DIED = (
    r"(?:(?:died|passed\s+away|succumbed|deceased|(?:pronounced|declared|found)\s+(?:dead|deceased))\b"
    r"|expired(?=\s*(?:[.,;]|$)|\s+(?:in|at|on|from|despite|shortly|soon|overnight|the|that|this)\b))"
)
OTHERS = (
    r"(?:mother|father|mom|dad|parent|husband|wife|spouse|partner|son|daughter|child|brother|sister|sibling|twin|grand\w+|aunt"
    r"|uncle|cousin|nephew|niece|friend|neighbou?r|roommate|boyfriend|girlfriend|relative|dog|cat)s?"
)
OUR_DEATH = re.compile(
    rf"{PATIENT}{BETWEEN}{DIED}"  # he, unfortunately, passed away
    rf"|{PATIENT}\b(?:(?!\b{OTHERS}\b)[^.;]){{0,300}}?[\s,](?:and|but){BETWEEN}{DIED}"  # she was intubated and died
    r"|(?:^|[.;]\s+)(?:was\s+)?(?:pronounced|declared)\s+(?:dead|deceased)",  # Pronounced dead at ___
    re.I | re.M,
)
"""Our rule: the patient as subject, a word for dying, and what may stand between them, but no other person."""


def present_illness(summary: str) -> str | None:
    """Returns the section of a discharge summary: None without its heading; empty if no known heading ends it.

    A heading behind the hospital course is none: who repeats the history there knows its end. A section in which a course begins,
    under whatever heading, is not used either.
    """
    start, course = HEADING.search(summary), COURSE.search(summary)
    if start is None or (course and course.start() < start.start()):
        return None
    rest = summary[start.end() :]
    end, course = NEXT.search(rest), COURSE.search(rest)
    return rest[: end.start()].strip() if end and not (course and course.start() < end.start()) else ""


def read_histories(root: Path, stays: pd.DataFrame, counts: dict[str, int]) -> tuple[pd.Series[str], pd.Series[bool]]:
    """Reads the history of present illness of some stays.

    Args:
        root: Folder that holds ``mimic-iv-note``.
        stays: visit, hadm_id.
        counts: Where to add which stays have no text, and why.

    Returns:
        Visit -> text, of stays that have one; and for every stay, whether it tells of death, so that it leaves the cohort.

    Raises:
        ConsiliumError: If the file is missing, cut short, lacks a column, or holds a note of an unknown type.
    """
    columns = ["note_id", "hadm_id", "note_type", "note_seq", "text"]
    notes, file = read(root / NOTES, "note/discharge.csv", columns, first=None)  # a note has many lines
    refuse(~notes["note_type"].isin(TYPES), file, f"'note_type' is none of {', '.join(TYPES)}", first=None)
    wanted = notes[notes["hadm_id"].isin(stays["hadm_id"])]
    summaries = wanted[wanted["note_type"] == SUMMARY].sort_values("note_seq").groupby("hadm_id")["text"].last()
    whole = stays.set_index("visit")["hadm_id"].map(summaries).dropna()
    section = whole.map(present_illness)
    kept = section[section.fillna("") != ""]
    cleaned = kept.str.replace(VERDICT, "", regex=True).str.strip()
    theirs = cleaned.str.contains(DEATH)
    tells = theirs | cleaned.str.contains(OUR_DEATH)
    text = cleaned[~tells & (cleaned != "")]
    tell(
        counts,
        {
            "addenda of discharge summaries": (wanted["note_type"] != SUMMARY).sum(),
            "stays without a discharge summary (no text)": len(stays) - len(whole),
            "discharge summaries without the section (no text)": section.isna().sum(),
            "sections that are empty or have no known end (no text)": (section == "").sum() + (cleaned == "").sum(),
            "sections with a line that tells of death (line deleted)": (kept.str.strip() != cleaned).sum(),
            "stays whose section tells of death (left out)": theirs.sum(),
            "stays whose section tells of death by our own rule (left out)": (tells & ~theirs).sum(),
        },
    )
    return text, tells.reindex(stays["visit"], fill_value=False).astype(bool)
