"""What looks like a mistake in a table is told before sites are made of it, and keeps nobody from making them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from common.errors import ConsiliumError
from simulations.split import Wish, split_table

MODALITIES = ["ct=ct_*", "labs=crp"]


@pytest.fixture
def frame() -> pd.DataFrame:
    """100 patients with two visits each, at two centres; two classes."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(200, 3)), columns=["ct_1", "ct_2", "crp"]).round(3)
    frame["pid"] = [f"secret-{i // 2}" for i in range(200)]
    frame["centre"], frame["diagnosis"] = np.repeat(["A", "B"], 100), np.tile(["control", "sepsis"], 100)
    return frame


def told(frame: pd.DataFrame, folder: Path, **wish: Any) -> list[str]:
    """Returns what a split says; without the task that it writes."""
    frame.to_csv(folder / "all.csv", index=False)
    said: list[str] = []
    wish = {"sites": 2, "labels": ["diagnosis"], "modalities": MODALITIES} | wish
    split_table(folder / "all.csv", folder / "TASK.yaml", folder / "sites", Wish(**wish), said.append)
    assert not any("secret" in line for line in said)
    return [line for line in said if "TASK.yaml" not in line]


def test_a_sound_table_is_counted_and_not_doubted(frame: pd.DataFrame, tmp_path: Path) -> None:
    said = told(frame, tmp_path, sites=None, by="centre", patient="pid")
    assert said == ["Rows per class of 'diagnosis': control 100, sepsis 100."]


def test_of_an_outcome_the_rows_with_and_without_it_are_counted(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame["died"], frame["bled"] = (np.arange(200) < 3).astype(int), np.arange(200) < 50
    first, second, warning = told(frame, tmp_path, labels=["died", "bled"])
    assert (first, second) == ("Rows per class of 'died': 0 197, 1 3.", "Rows per class of 'bled': 0 150, 1 50.")
    assert warning.startswith("Warning: class '1' of 'died' has 3 row(s), first row 2, fewer than 5")


def test_of_a_number_no_classes_are_counted(frame: pd.DataFrame, tmp_path: Path) -> None:
    assert told(frame.assign(days=frame["crp"] * 2), tmp_path, labels=["days"]) == []


def test_classes_that_differ_by_spaces_alone_are_refused(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame.loc[5, "diagnosis"] = "sepsis "
    with pytest.raises(
        ConsiliumError, match=r"all\.csv: classes in column 'diagnosis' differ only by spaces .*: sepsis; first row 7"
    ):
        told(frame, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["all.csv"]


def test_classes_that_are_rare_or_spelt_almost_alike_are_doubted(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame.loc[[5, 7], "diagnosis"], frame.loc[8, "diagnosis"] = "sespis", "Control"
    said = told(frame, tmp_path)
    assert said[0] == "Rows per class of 'diagnosis': Control 1, control 99, sepsis 98, sespis 2."
    assert [line.split(":")[0] for line in said[1:]] == ["Warning"] * 4
    assert "class 'Control' of 'diagnosis' has 1 row(s), first row 10, fewer than 5" in said[1]
    assert "class 'sespis' of 'diagnosis' has 2 row(s), first row 7, fewer than 5" in said[2]
    assert "'Control' (1 row(s), first row 10) and 'control' (99 row(s)) of 'diagnosis' differ only by case" in said[3]
    assert "'sespis' (2 row(s), first row 7) and 'sepsis' (98 row(s)) of 'diagnosis' differ only by a letter or two" in said[4]


@pytest.mark.parametrize(
    ("one", "other", "doubted"),
    [
        ("haemorrhage", "hemorrhage", True),
        ("septic shock", "septic schock", True),
        ("septic shock", "septic_shock", True),
        ("luminal A", "luminal B", False),
        ("II", "III", False),
        ("grade 1", "grade 2", False),
        ("lesion1", "lesion2", False),
        ("male", "female", False),
        ("benign", "malignant", False),
        ("normal", "abnormal", False),
        ("atypical", "typical", False),
        ("hypotension", "severe hypertension", False),
        ("hypertension", "hypotension", False),
        ("HER2+", "HER2-", False),
        ("<65", ">=65", False),
    ],
)
def test_words_are_compared_and_not_numbers_or_single_letters(
    frame: pd.DataFrame, tmp_path: Path, one: str, other: str, doubted: bool
) -> None:
    frame["diagnosis"] = frame["diagnosis"].map({"control": one, "sepsis": other})
    assert any("If they are one class" in line for line in told(frame, tmp_path)) == doubted


@pytest.mark.parametrize(("patient", "remedy"), [(None, "or name the patients' column with --patient"), ("pid", "count twice")])
def test_copies_of_rows_are_counted(frame: pd.DataFrame, tmp_path: Path, patient: str | None, remedy: str) -> None:
    _, warning = told(pd.concat([frame, frame.iloc[[3, 4]]]), tmp_path, patient=patient)
    assert warning.startswith("Warning: 2 row(s) are exact copies of another, first row 202: ") and remedy in warning


def test_rows_with_lists_in_other_columns_are_compared_too(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame["path"] = [[1, 2]] * 200
    frame.iloc[[*range(200), 3]].to_parquet(tmp_path / "all.parquet")
    said: list[str] = []
    wish = Wish(sites=2, labels=["diagnosis"], modalities=MODALITIES)
    split_table(tmp_path / "all.parquet", tmp_path / "TASK.yaml", tmp_path / "sites", wish, said.append)
    assert said[1].startswith("Warning: 1 row(s) are exact copies of another, first row 202")


def test_patients_at_several_sites_are_said_to_be_kept_together(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame.loc[[3, 8], "centre"] = "B"
    _, warning = told(frame, tmp_path, sites=None, by="centre", patient="pid")
    assert warning.startswith(
        "Warning: 2 patient(s) have rows under several values of 'centre', first row 5; they are kept together"
    )


def test_a_modality_without_any_value_is_told(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame[["ct_1", "ct_2"]] = np.nan
    assert "Warning: modality 'ct' has no value in any row" in told(frame, tmp_path)[1]
