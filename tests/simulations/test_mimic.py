"""MIMIC in MedFuse's extraction: what is read, what is left out and counted, and what is refused with file and line."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulations.datasets.mimic import cxr, extraction, notes, sites, tables
from simulations.datasets.mimic.extraction import EYE, HEADER, MORTALITY, VARIABLES
from simulations.datasets.mimic.layout import FOLDER
from simulations.datasets.mimic.twin import Truth
from tests.simulations.mimic_files import rewrite, small_twin

HOSP = "mimic-iv/hosp"


@pytest.fixture(scope="module")
def root() -> Path:
    return Path(small_twin()[0].name) / FOLDER


@pytest.fixture(scope="module")
def truth() -> Truth:
    return small_twin()[1]


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    """The twin, to be spoiled."""
    return Path(shutil.copytree(root, tmp_path / FOLDER))


def test_stays_have_the_labels_the_split_and_the_unit_of_the_truth(root: Path, truth: Truth) -> None:
    known = truth.stays.set_index(truth.stays["stay_id"].astype(str))
    for cohort, columns in (("mortality", ["y_true"]), ("phenotyping", list(extraction.CONDITIONS))):
        stays = sites.load(root, cohort).stays.set_index("visit")
        expected = known[known["hours"] >= 48] if cohort == "mortality" else known
        assert set(stays.index) == set(expected.index)
        pd.testing.assert_frame_equal(stays[columns], known.loc[stays.index, columns], check_names=False)
        assert (stays["part"] == known.loc[stays.index, "part"]).all()
        assert (stays["unit"] == known.loc[stays.index, "unit"].map(sites.slug)).all()
        assert (stays["patient"] == known.loc[stays.index, "subject_id"].astype(str)).all()
    assert {sites.slug(u) for u in known["unit"]} == {"ccu", "cvicu", "micu", "neuro-sicu", "sicu", "tsicu"}


def test_the_series_hold_the_charted_values_of_the_first_48_hours(root: Path, tmp_path: Path) -> None:
    whole = sites.load(root, "mortality")
    series = whole.long["series"]
    assert list(series) == ["visit", "hour", *VARIABLES]
    assert series["hour"].between(0, 48, inclusive="left").all()
    for name, (_, least, most) in VARIABLES.items():
        assert series[name].dropna().between(np.float32(least), np.float32(most)).all(), name
    assert set(series[EYE].dropna()) == {1, 2, 3, 4}, "'None' is an answer"
    assert whole.exclusions["values of the series that cannot be"] > 0, "the twin's slips of the keyboard"
    longer = sites.load(root, "phenotyping")
    assert longer.long["series"]["hour"].max() > 48 and longer.exclusions["rows of the series after 192 h"] > 0


def test_a_series_is_read_value_by_value(tmp_path: Path) -> None:
    place = tmp_path / "mimic-iv-extracted" / MORTALITY / "train"
    place.mkdir(parents=True)
    cells = {"Heart Rate": "80.0", EYE: "None", "Glascow coma scale motor response": "6 Obeys Commands", "pH": "735"}
    rows = [("-0.0000001", cells), ("48.0", {"Heart Rate": "99"}), ("3.5", {"Glucose": "ERROR", EYE: "Asleep"})]
    lines = [",".join([hour, *(row.get(name, "") for name in VARIABLES)]) for hour, row in rows]
    (place / "1_episode1_timeseries.csv").write_text(HEADER.decode() + "\n" + "\n".join(lines) + "\n")
    stays = pd.DataFrame({"visit": ["9"], "part": ["val"], "line": [2], "stay": ["1_episode1_timeseries.csv"]})
    counts: dict[str, int] = {}
    series = extraction.read_series(tmp_path, MORTALITY, stays, 48, counts).set_index("hour")
    assert list(series.index) == pytest.approx([0, 48 - 1 / 60]), "what is no value leaves no row"
    assert series["Heart Rate"].tolist() == [80, 99]
    assert series[EYE].tolist()[0] == 1 and series["Glascow coma scale motor response"].tolist()[0] == 6
    assert series["pH"].isna().all()
    assert counts["values of the series that are no number or grade"] == 2
    assert counts["values of the series that cannot be"] == 1


def test_the_x_ray_of_a_stay_is_its_last_ap_image_within_the_hours(tmp_path: Path) -> None:
    home = tmp_path / "mimic-cxr-jpg"
    rows = [  # stay of subject 10000001 from 1 March 2150 12:00 to 5 March 12:00
        ("early", 10000001, "AP", 21500301, "115959.9"),  # an instant before
        ("first", 10000001, "AP", 21500301, "120000.5"),
        ("b-tie", 10000001, "AP", 21500303, "90000.0"),  # 09:00, without its zero
        ("a-tie", 10000001, "AP", 21500303, "90000.0"),
        ("side", 10000001, "", 21500303, "93000.0"),
        ("late", 10000001, "AP", 21500303, "120001.0"),  # a second after 48 h
        ("after", 10000001, "AP", 21500306, "0"),
        ("other", 10000002, "AP", 21500302, "80000.0"),
    ]
    columns = ["dicom_id", "subject_id", "ViewPosition", "StudyDate", "StudyTime"]
    metadata = pd.DataFrame(rows, columns=columns).assign(study_id=lambda m: 50000000 + m.index)
    home.mkdir()
    metadata.to_csv(home / cxr.METADATA, index=False)
    for dicom, subject, study in zip(metadata["dicom_id"], metadata["subject_id"], metadata["study_id"], strict=True):
        place = home / "files" / f"p{str(subject)[:2]}" / f"p{subject}" / f"s{study}"
        place.mkdir(parents=True)
        (place / f"{dicom}.jpg").touch()
    day = pd.to_datetime(["2150-03-01 12:00:00", "2150-03-05 12:00:00"])
    stays = pd.DataFrame({"visit": ["7"], "patient": ["10000001"], "intime": day[:1], "outtime": day[1:]})
    counts: dict[str, int] = {}
    assert Path(cxr.last_images(tmp_path, stays, 48, counts)["7"]).stem == "b-tie"
    assert counts == {
        "X-rays outside the first 48 h of the stay": 3,
        "X-rays that are not AP": 1,
        "X-rays before the last one of a stay": 2,
    }
    assert Path(cxr.last_images(tmp_path, stays, None, counts)["7"]).stem == "late"
    (home / "resized").mkdir()
    (home / "resized" / "b-tie.jpg").touch()
    assert Path(cxr.last_images(tmp_path, stays, 48, counts)["7"]).parent.name == "resized"


SUMMARY = "Chief Complaint:\nfall\n \n{}:\n{}\n \nPast Medical History:\nthe patient died\n \nBrief Hospital Course:\nexpired\n"


@pytest.mark.parametrize("heading", ["History of Present Illness", "HISTORY OF THE PRESENT ILLNESS", "HPI", "CC/HPI"])
def test_the_section_ends_where_the_next_begins(heading: str) -> None:
    said = "___ yo man.\n\nIn the ED, initial vitals:\nstable"
    assert notes.present_illness(SUMMARY.format(heading, said)) == said


def test_a_section_without_heading_or_end_is_no_text() -> None:
    assert notes.present_illness("Chief Complaint:\nfall\nPast Medical History:\nnone\n") is None
    assert notes.present_illness("Brief Hospital Course:\nHPI: came in\nPast Medical History:\nnone\n") is None
    assert notes.present_illness("History of Present Illness:\nfell\n\nThe next day he expired.\n") == ""


@pytest.mark.parametrize(
    "heading", ["Hospital Course by problem:", "BRIEF HOSPITAL COURSE", "Summary of hospital course", "MICU Course:", "Course:"]
)
def test_a_section_in_which_the_hospital_course_begins_is_no_text(heading: str) -> None:
    assert notes.present_illness(f"HPI:\n64M.\n\n{heading}\nMade CMO.\nPast Medical History:\nnone\n") == ""
    said = "In the ED:\nED course: stable, a\ncourse of antibiotics"
    assert notes.present_illness(f"HPI:\n{said}\nPast Medical History:\nnone\n{heading}\nMade CMO.\n") == said


@pytest.mark.parametrize(
    ("said", "text", "leaves"),
    [
        ("The patient had died on arrival.", None, True),
        ("Pt expired.", None, True),
        ("Then she expired.", None, True),
        ("He was pronounced expired.", None, True),
        ("Time of death 03:12.", None, True),
        ("Came in.\nDECEASED\nWas ill.", "Came in.\nWas ill.", False),
        ("Her husband died last year; took the expired drug.", "Her husband died last year; took the expired drug.", False),
        ("He passed away the next morning.", None, True),
    ],
)
def test_what_tells_of_death_is_deleted_or_its_stay_left_out(tmp_path: Path, said: str, text: str | None, leaves: bool) -> None:
    (tmp_path / "mimic-iv-note" / "note").mkdir(parents=True)
    rows = [
        ("1-DS-2", 1, 5, "DS", 2, SUMMARY.format("HPI", said)),
        ("1-AD-3", 1, 5, "AD", 3, "x"),
        ("2-DS-2", 2, 6, "DS", 2, "x"),
    ]
    frame = pd.DataFrame(rows, columns=["note_id", "subject_id", "hadm_id", "note_type", "note_seq", "text"])
    frame.to_csv(tmp_path / "mimic-iv-note" / "note" / "discharge.csv.gz", index=False)
    counts: dict[str, int] = {}
    stays = pd.DataFrame({"visit": ["a", "b", "c"], "hadm_id": [5, 6, 7]})
    found, dead = notes.read_histories(tmp_path, stays, counts)
    assert found.to_dict() == ({"a": text} if text else {})
    assert dead.to_dict() == {"a": leaves, "b": False, "c": False}
    ours = int("passed away" in said)
    assert list(counts.values()) == [1, 1, 1, 0, int(text is not None and "DECEASED" in said), int(leaves) - ours, ours]


TOLD = """
    He passed away the next morning. | she died in the ED | pt was pronounced dead | patient unfortunately expired
    The patient, sadly, passed away. | Mr. ___ died at home. | Ms. ___ subsequently passed\naway. | Pt. then died.
    She was intubated in the ED and died. | He was coded and then expired in the ICU. | Asystole. Pronounced dead at 03:12.
    He succumbed to his wounds. | She is now deceased. | the patient, who died of sepsis
"""
HARMLESS = """
    her husband died in 2010 | father passed away | expired medication | His mother died of stroke. | She took expired pills.
    He ran out of insulin and used old and expired medication. | Patient's father died at 60. | her prescription expired
    The patient's wife fell ill and died in 2010. | She says that her neighbor fell and died. | Mr. ___'s brother passed away
    Her husband was pronounced dead at the scene. | He nearly died last year. | She passed out. | He had dead bowel resected.
    Sad since the death of his wife. | She is dead set against surgery. | he would have died
"""


@pytest.mark.parametrize("said", [s.strip() for s in TOLD.replace("\n    ", " | ").split("|") if s.strip()])
def test_our_own_rule_finds_what_tells_of_the_patients_death(said: str) -> None:
    assert notes.OUR_DEATH.search(f"___ yo with CHF.\n{said}")


@pytest.mark.parametrize("said", [s.strip() for s in HARMLESS.replace("\n    ", " | ").split("|") if s.strip()])
def test_no_rule_takes_the_death_of_others_or_expired_things_for_the_patients(said: str) -> None:
    assert not notes.OUR_DEATH.search(f"___ yo with CHF.\n{said}")
    assert not notes.DEATH.search(said)


def test_no_history_of_the_twin_tells_the_outcome_and_stays_that_would_are_left_out(root: Path) -> None:
    stays = sites.load(root, "admission")
    texts = stays.stays["text"].dropna()
    assert len(texts) > 50
    assert not texts.str.contains(r"expired|discharged home|died in|hospital course", case=False).any()
    left_out = stays.exclusions["stays whose section tells of death (left out)"]
    assert left_out > 0 and len(stays.stays) == len(sites.load(root, "mortality").stays) - left_out
    assert stays.exclusions["sections with a line that tells of death (line deleted)"] > 0


def test_a_laboratory_value_is_the_mean_of_the_first_48_hours_in_its_unit(root: Path) -> None:
    stays = sites.load(root, "admission")
    table = stays.long["table"].set_index("visit")
    assert list(table) == ["age", "sex", "admission_type", *tables.LABS]
    events = pd.read_csv(root / HOSP / "labevents.csv.gz", parse_dates=["charttime"])
    known = pd.read_csv(root / "mimic-iv-extracted" / "root" / "all_stays.csv", parse_dates=["intime"])
    known = known[known["stay_id"].astype(str).isin(table.index)]
    mine = events[(events["itemid"] == 50912) & (events["valueuom"] == "mg/dL") & (events["valuenum"] < 40)].merge(
        known, on="subject_id"
    )
    mine = mine[(mine["charttime"] - mine["intime"]).between(pd.Timedelta(0), pd.Timedelta(hours=48))]
    expected = mine.groupby(mine["stay_id"].astype(str))["valuenum"].mean()
    found = table["creatinine"].dropna()
    assert set(found.index) == set(expected.index) and len(found) > 40
    np.testing.assert_allclose(found, expected.loc[found.index], rtol=1e-6)
    for reason in ("without a number", "in another unit", "that cannot be"):
        assert stays.exclusions[f"laboratory values {reason}"] > 0
    assert set(table["admission_type"].dropna()) <= {tables.code(kind) for kind in tables.ADMISSIONS}


def test_the_age_is_that_at_admission_and_not_in_the_anchor_year(root: Path) -> None:
    age = sites.load(root, "admission").long["table"].set_index("visit")["age"]
    people = pd.read_csv(root / HOSP / "patients.csv.gz").set_index("subject_id")
    admissions = pd.read_csv(root / HOSP / "admissions.csv.gz", parse_dates=["admittime"]).set_index("hadm_id")
    known = small_twin()[1].stays
    known = known.set_index(known["stay_id"].astype(str)).loc[age.index]
    anchor = people.loc[known["subject_id"]].set_index(known.index)
    later = admissions.loc[known["hadm_id"], "admittime"].dt.year.to_numpy() - anchor["anchor_year"]
    assert (later > 0).any() and (later == 0).any()
    np.testing.assert_array_equal(age, anchor["anchor_age"] + later)


def test_another_outcome_in_the_hospitals_table_is_told(copy: Path) -> None:
    rewrite(
        copy / HOSP / "admissions.csv.gz", lambda f: f.assign(hospital_expire_flag=(f["hospital_expire_flag"] == "0").astype(int))
    )
    (warning,) = sites.load(copy, "admission").warnings
    assert re.fullmatch(r"\d+ stays have another outcome in hospital_expire_flag than in the lists\.", warning)


def test_real_patients_are_counted_against_medfuse(copy: Path) -> None:
    (copy / "GENERATED.json").unlink()
    stays = sites.load(copy, "mortality")
    assert stays.data == "real"
    assert [w.split(" (")[0] for w in stays.warnings] == ["Stays listed", "Stays with an X-ray"]
    assert "has 18,845 / 2,138 / 5,243" in stays.warnings[0] and "4,485 / 488 / 1,242" in stays.warnings[1]


def test_the_first_version_of_mimic_iv_has_its_core(copy: Path) -> None:
    before = sites.load(copy, "admission").long["table"]
    (copy / "mimic-iv" / "core").mkdir()
    for name in ("patients", "admissions"):
        shutil.move(copy / HOSP / f"{name}.csv.gz", copy / "mimic-iv" / "core" / f"{name}.csv.gz")
    sites.load.cache_clear()
    pd.testing.assert_frame_equal(sites.load(copy, "admission").long["table"], before)
