"""MIMIC's files, spoiled one at a time: each is refused with file, line and remedy, and without a patient's identifier."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from common.errors import ConsiliumError
from simulations.datasets.mimic import sites
from simulations.datasets.mimic.extraction import MORTALITY, PHENOTYPING
from simulations.datasets.mimic.layout import FOLDER
from tests.simulations.mimic_files import cut, rewrite, small_twin

EXTRACTED = "mimic-iv-extracted"
LISTS, ALL_STAYS = f"{EXTRACTED}/{MORTALITY}", "/".join((EXTRACTED, "root", "all_stays.csv"))
METADATA = "mimic-cxr-jpg/mimic-cxr-2.0.0-metadata.csv.gz"
DISCHARGE, HOSP = "mimic-iv-note/note/discharge.csv.gz", "mimic-iv/hosp"
Change = Callable[[pd.DataFrame], pd.DataFrame]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The twin, to be spoiled."""
    return Path(shutil.copytree(Path(small_twin()[0].name) / FOLDER, tmp_path / FOLDER))


def first_series(root: Path) -> Path:
    """The series of the first line of the training list."""
    return root / LISTS / "train" / str(pd.read_csv(root / LISTS / "train_listfile.csv")["stay"].iloc[0])


def without_images(root: Path) -> None:
    for image in (root / "mimic-cxr-jpg" / "resized").iterdir():
        image.unlink()


def in_two_lists(root: Path) -> None:
    test = pd.read_csv(root / LISTS / "test_listfile.csv", dtype=str)
    stolen = test.head(1).assign(stay_id="1")
    rewrite(root / LISTS / "val_listfile.csv", lambda frame: pd.concat([frame, stolen]))
    rewrite(root / ALL_STAYS, lambda f: pd.concat([f, f.head(1).assign(stay_id="1")]))


def set_first(column: str, value: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda frame: frame.assign(**{column: [value, *frame[column].iloc[1:]]})


def without(column: str) -> Change:
    return lambda frame: frame.drop(columns=column)


def without_first_rows(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.iloc[30:]


def first_row_twice(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, frame.head(1)])


def changed(file: str, change: Change) -> Callable[[Path], None]:
    return lambda root: rewrite(root / file, change)


TRAIN, TEST = f"{LISTS}/train_listfile.csv", f"{LISTS}/test_listfile.csv"
SPOILED: dict[str, tuple[sites.Cohort, Callable[[Path], object], str]] = {
    "list gone": ("mortality", lambda r: (r / TRAIN).unlink(), r"train_listfile\.csv .* is missing.*mimic4extract"),
    "label column gone": ("mortality", changed(TEST, without("y_true")), r"test_listfile\.csv lacks the column\(s\) y_true"),
    "label gone": ("mortality", changed(TRAIN, set_first("y_true", "")), r"train_listfile\.csv, line 2: 'y_true' is empty"),
    "label wrong": ("mortality", changed(TRAIN, set_first("y_true", "2")), "line 2: the label 'y_true' is neither 0 nor 1"),
    "condition gone": (
        "phenotyping",
        changed(f"{EXTRACTED}/{PHENOTYPING}/train_listfile.csv", without("Shock")),
        r"lacks the column\(s\) Shock",
    ),
    "name wrong": ("mortality", changed(TRAIN, set_first("stay", "x.csv")), "line 2: 'stay' is no name"),
    "stay listed twice": ("mortality", changed(TRAIN, first_row_twice), "a stay is listed twice"),
    "subject in two lists": (
        "mortality",
        in_two_lists,
        r"subject\(s\) are in two lists, the first in (val|test)_listfile\.csv and (val|test)_listfile\.csv",
    ),
    "stay unknown": ("mortality", changed(ALL_STAYS, without_first_rows), r"listed stays are not in root/all_stays\.csv"),
    "no time": ("mortality", changed(ALL_STAYS, set_first("intime", "noon")), r"all_stays\.csv, line 2: 'intime' is no time"),
    "series gone": ("mortality", lambda r: first_series(r).unlink(), r"train_listfile\.csv, line 2: its series is missing"),
    "series cut": ("mortality", lambda r: cut(first_series(r)), r"train_listfile\.csv, line 2: its series has .* cut short"),
    "series column gone": (
        "mortality",
        lambda r: rewrite(first_series(r), without("pH")),
        r"its series lacks the column\(s\) pH",
    ),
    "metadata cut": ("mortality", lambda r: cut(r / METADATA), r"metadata\.csv\.gz cannot be read .* cut short"),
    "metadata column gone": ("mortality", changed(METADATA, without("StudyTime")), r"lacks the column\(s\) StudyTime"),
    "no clock": (
        "mortality",
        changed(METADATA, set_first("StudyTime", "999999")),
        "line 2: 'StudyDate' and 'StudyTime' are no time",
    ),
    "images gone": (
        "mortality",
        without_images,
        r"X-rays that belong to a stay are not in .*resized, the first that of .*metadata\.csv\.gz, line \d+",
    ),
    "notes gone": ("admission", lambda r: (r / DISCHARGE).unlink(), r"discharge\.csv .* is missing"),
    "notes cut": ("admission", lambda r: cut(r / DISCHARGE), r"discharge\.csv\.gz cannot be read"),
    "note type": ("admission", changed(DISCHARGE, set_first("note_type", "XX")), r"gz: 'note_type' is none of DS, AD\."),
    "values cut": ("admission", lambda r: cut(r / HOSP / "labevents.csv.gz"), r"labevents\.csv\.gz cannot be read"),
    "unit gone": ("admission", changed(f"{HOSP}/labevents.csv.gz", without("valueuom")), r"lacks the column.*valueuom"),
    "item": ("admission", changed(f"{HOSP}/d_labitems.csv.gz", set_first("label", "Urea")), "itemid 50862 is not 'Albumin'"),
    "admission gone": (
        "admission",
        changed(f"{HOSP}/admissions.csv.gz", without_first_rows),
        r"an admission of root/all_stays\.csv is missing",
    ),
    "values without time": (
        "admission",
        changed(f"{HOSP}/labevents.csv.gz", lambda f: f.assign(charttime="noon")),
        r"labevents\.csv\.gz: 'charttime' is no time \([\d,]+ rows\)",  # comments have several lines: no row has a line
    ),
    "year": (
        "admission",
        changed(f"{HOSP}/patients.csv.gz", set_first("anchor_year", "x")),
        "line 2: 'anchor_year' is no number",
    ),
    "admission time": (
        "admission",
        changed(f"{HOSP}/admissions.csv.gz", set_first("admittime", "noon")),
        r"admissions\.csv\.gz, line 2: 'admittime' is no time",
    ),
    "sex": ("admission", changed(f"{HOSP}/patients.csv.gz", set_first("gender", "X")), "line 2: 'gender' is neither F nor M"),
}


@pytest.mark.parametrize(("cohort", "spoil", "message"), SPOILED.values(), ids=SPOILED)
def test_bad_input_is_refused_with_its_place(
    copy: Path, cohort: sites.Cohort, spoil: Callable[[Path], object], message: str
) -> None:
    subjects = set(pd.read_csv(copy / ALL_STAYS, dtype=str)["subject_id"])
    spoil(copy)
    with pytest.raises(ConsiliumError, match=message) as refused:
        sites.load(copy, cohort)
    assert not subjects & set(re.findall(r"\d+", str(refused.value))), "no identifier of a patient"
