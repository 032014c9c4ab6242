"""Readers: what they return, and that a fault names its cause without quoting the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from common.data.ingest import Frames, IngestError, reader
from common.data.ingest.frames import as_text, inside, numbers, read_frame, texts
from common.data.ingest.text import hash_words
from common.data.manifest import Source, Variable
from common.task import Feature, Modality
from tests.common.samples import MODALITIES

TABLE = MODALITIES["admission"]
AGE, SEX = Variable("age", "a"), Variable("sex", codes={"F": "female", "M": "male"})
ADMISSION = Source("table", column="file", variables={"age": AGE, "sex": SEX})
LABS = Source("series", column="file", variables={"crea": Variable("crea", "mg/dL")})


def read(folder: Path, source: Source, modality: Modality, cell: str, visit: str = "1") -> np.ndarray:
    found = reader(folder, source, modality, Frames())(cell, visit)
    assert found is not None
    return found


def fault(folder: Path, source: Source, modality: Modality, cell: str, visit: str = "1") -> str:
    with pytest.raises(IngestError) as found:
        read(folder, source, modality, cell, visit)
    assert found.value.__context__ is None or found.value.__suppress_context__ or isinstance(found.value.__context__, IngestError)
    assert "SECRET" not in str(found.value)
    return str(found.value)


def csv(path: Path, **columns: Any) -> None:
    pd.DataFrame(columns).to_csv(path, index=False)


# Paths.


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("SECRET.txt", "does not exist"),
        ("sub", "does not exist"),
        ("../outside.txt", "leaves the manifest's folder"),
        ("sub/../../outside.txt", "leaves the manifest's folder"),
        ("link.txt", "leaves the manifest's folder"),
        ("SECRET " * 200, "holds no path"),
        ("SECRET\0.txt", "holds no path"),
    ],
)
def test_a_path_that_is_missing_or_leaves_the_folder_is_refused(tmp_path: Path, cell: str, text: str) -> None:
    folder = tmp_path / "site"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "outside.txt").write_text("SECRET")
    os.symlink(tmp_path / "outside.txt", folder / "link.txt")
    assert text in fault(folder, Source("text", column="note"), MODALITIES["note"], cell)


def test_an_absolute_path_outside_is_refused_and_one_inside_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    (tmp_path / "outside.txt").write_text("x")
    (folder / "note.txt").write_text("x")
    with pytest.raises(IngestError, match="leaves"):
        inside(folder, str(tmp_path / "outside.txt"))
    assert inside(folder, str(folder / "note.txt")) == inside(folder, "sub/../note.txt")


# Text.


def test_words_are_hashed_in_order_without_case_and_padded() -> None:
    ids = hash_words("Pale, and SHORT of breath. pale", 64, 8)
    assert ids.dtype == np.int64
    assert ids.shape == (8,)
    assert ids[0] == ids[5] != 0
    assert ids[6:].tolist() == [0, 0]
    assert (ids[:6] > 0).all()
    assert ids.max() < 64
    assert ids.tolist() == hash_words("pale AND short: of breath — Pale", 64, 8).tolist()


def test_long_texts_are_cut_and_other_scripts_are_words_too() -> None:
    assert (hash_words("word " * 99, 64, 4) > 0).all()
    assert (hash_words("Luftnot Übelkeit 呼吸 боль", 64, 4) > 0).all()


def test_the_hash_is_the_same_everywhere() -> None:
    # Written out: another hash would silently make nonsense of every stored student.
    assert hash_words("fever cough", 2048, 2).tolist() == [1056, 1984]


def test_inline_text_is_the_cell_itself(tmp_path: Path) -> None:
    source = Source("text", column="note", inline=True)
    assert read(tmp_path, source, MODALITIES["note"], "pale").tolist() == hash_words("pale", 64, 8).tolist()


@pytest.mark.parametrize(
    ("content", "encoding", "text"),
    [
        (b"", "utf-8", "no word"),
        (b" \n ... \n", "utf-8", "no word"),
        ("SECRET für".encode("latin-1"), "utf-8", "not in encoding 'utf-8'; save it in that encoding, or name its own"),
        ("SECRET".encode("utf-16-le"), "utf-8", "not in encoding 'utf-8'"),
        (b"SECRET!", "utf-16", "not in encoding 'utf-16'"),
        (b"SECRET", "utf-99", "'utf-99' is none that is known; write utf-8"),
        ("SECRET für".encode(), "latin-1", "in UTF-8, not in encoding 'latin-1'; correct 'encoding' in the manifest"),
    ],
)
def test_a_text_that_cannot_be_used_is_named(tmp_path: Path, content: bytes, encoding: str, text: str) -> None:
    (tmp_path / "note.txt").write_bytes(content)
    source = Source("text", column="note", encoding=encoding)
    assert text in fault(tmp_path, source, MODALITIES["note"], "note.txt")


def test_a_text_in_its_hospitals_encoding_is_read(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_bytes("Übelkeit".encode("latin-1"))
    source = Source("text", column="note", encoding="latin-1")
    assert read(tmp_path, source, MODALITIES["note"], "note.txt").tolist() == hash_words("übelkeit", 64, 8).tolist()


# Tables.


def test_a_table_row_becomes_numbers_and_one_column_per_category(tmp_path: Path) -> None:
    csv(tmp_path / "a.csv", age=[61.5], sex=["M"])
    found = read(tmp_path, ADMISSION, TABLE, "a.csv")
    assert found.dtype == np.float32
    assert found.tolist() == [61.5, 0, 1]


def test_empty_cells_and_absent_variables_are_nan(tmp_path: Path) -> None:
    csv(tmp_path / "a.csv", age=[None], sex=["F"])
    assert np.isnan(read(tmp_path, ADMISSION, TABLE, "a.csv")).tolist() == [True, False, False]
    (tmp_path / "b.csv").write_text("age,sex\n , \n")
    assert np.isnan(read(tmp_path, ADMISSION, TABLE, "b.csv")).all()
    only = Source("table", column="file", variables={"age": AGE})
    csv(tmp_path / "c.csv", age=[50])
    assert np.isnan(read(tmp_path, only, TABLE, "c.csv")).tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"age": ["SECRET"], "sex": ["F"]}, "column 'age' holds text or infinity"),
        ({"age": [np.inf], "sex": ["F"]}, "column 'age' holds text or infinity"),
        ({"age": [1e39], "sex": ["F"]}, "column 'age' holds text or infinity"),
        ({"age": [50], "sex": ["SECRET"]}, "column 'sex' holds a code"),
        ({"sex": ["F"]}, "no column 'age'"),
        ({"age": [50]}, "no column 'sex'"),
        ({"age": [50, 51], "sex": ["F", "F"]}, "2 rows"),
        ({"age": [], "sex": []}, "0 rows"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(tmp_path: Path, columns: dict[str, list[Any]], text: str) -> None:
    csv(tmp_path / "a.csv", **columns)
    assert text in fault(tmp_path, ADMISSION, TABLE, "a.csv")


def test_numeric_codes_survive_an_empty_cell_elsewhere_in_the_column(tmp_path: Path) -> None:
    csv(tmp_path / "a.csv", visit=[1, 2], age=[50, 60], sex=[1, None])  # pandas reads 1.0
    sex = Variable("sex", codes={"1": "female", "2": "male"})
    source = Source("table", column="file", key="visit", variables={"age": AGE, "sex": sex})
    assert read(tmp_path, source, TABLE, "a.csv", "1").tolist() == [50, 1, 0]
    assert np.isnan(read(tmp_path, source, TABLE, "a.csv", "2")).tolist() == [False, True, True]


def test_without_codes_the_hospital_writes_the_tasks_categories(tmp_path: Path) -> None:
    csv(tmp_path / "a.csv", age=[50], sex=["female"])
    source = Source("table", column="file", variables={"age": AGE, "sex": Variable("sex")})
    assert read(tmp_path, source, TABLE, "a.csv").tolist() == [50, 1, 0]


# Files of many visits.


def many(folder: Path) -> Source:
    csv(folder / "a.csv", visit=[7, 8, 9, None], age=[50, "SECRET", 52, 53], sex=["F", "M", "?", "F"])
    return Source("table", column="file", key="visit", variables={"age": AGE, "sex": SEX})


def test_a_fault_of_one_visit_does_not_touch_the_others_in_the_file(tmp_path: Path) -> None:
    source = many(tmp_path)
    found = reader(tmp_path, source, TABLE, Frames())
    assert found("a.csv", "7").tolist() == [50, 1, 0]
    for visit, text in (
        ("8", "'age' holds text"),
        ("9", "'sex' holds a code"),
        ("10", "no row for this visit"),
        ("nan", "no row"),
    ):
        with pytest.raises(IngestError, match=text):
            found("a.csv", visit)
    assert found("a.csv", "7").tolist() == [50, 1, 0]


def test_a_missing_key_column_is_named(tmp_path: Path) -> None:
    csv(tmp_path / "a.csv", age=[50], sex=["F"])
    source = Source("table", column="file", key="stay", variables={"age": AGE, "sex": SEX})
    assert "no key column 'stay'" in fault(tmp_path, source, TABLE, "a.csv")


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a"])
def test_a_file_that_is_not_what_its_name_says_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'"SECRET\n"a,\x00\xff')
    with pytest.raises(IngestError, match=r"cannot be read as|not in encoding") as found:
        read_frame(tmp_path / name)
    assert "SECRET" not in str(found.value)


def test_the_cells_that_programs_write_for_nothing_are_empty_and_a_category_is_not(tmp_path: Path) -> None:
    cells = ["", "NA", "n/a", "NULL", "NaN", "None", "Former"]
    (tmp_path / "a.csv").write_text("smoking,n\n" + "".join(f"{c},1\n" for c in cells), encoding="utf-8")
    assert texts(read_frame(tmp_path / "a.csv")["smoking"]).dropna().tolist() == ["None", "Former"]


def test_the_rows_of_a_parquet_file_are_counted_in_the_order_of_the_file(tmp_path: Path) -> None:
    pd.DataFrame({"x": [1, 2, 3]}).iloc[[2, 0]].to_parquet(tmp_path / "a.parquet")
    assert dict(read_frame(tmp_path / "a.parquet")["x"]) == {0: 3, 1: 1}


def test_a_file_is_read_once_for_all_visits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, calls = many(tmp_path), []
    original = pd.read_csv
    monkeypatch.setattr(pd, "read_csv", lambda path, **options: calls.append(path) or original(path, **options))
    found = reader(tmp_path, source, TABLE, Frames())
    found("a.csv", "7")
    with pytest.raises(IngestError):
        found("a.csv", "8")
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([1, 2], ["1", "2"]),
        ([1.0, 2.5], ["1", "2.5"]),
        (["a ", "1.0"], ["a", "1.0"]),
        (pd.array([1, 2], dtype="Int64"), ["1", "2"]),
        (np.array([3.0, 4.0], np.float32), ["3", "4"]),
    ],
)
def test_names_and_codes_are_text_without_the_point_of_a_whole_number(cells: Any, expected: list[str]) -> None:
    assert texts(pd.Series(cells)).tolist() == expected


def test_an_empty_name_stays_empty() -> None:
    for cells in ([1.0, None], ["a", None], pd.array([1, None], dtype="Int64")):
        assert texts(pd.Series(cells)).isna().tolist() == [False, True]
    assert as_text(np.float64(3)) == "3"
    assert as_text(True) == "True"


@pytest.mark.parametrize(
    "cells",
    [[True, False, None], ["1", "0", " "], pd.array([1, 0, None], dtype="Int64"), pd.array([True, False, None], dtype="boolean")],
)
def test_numbers_are_floats_whatever_the_file_calls_them(cells: Any) -> None:
    values, bad = numbers(pd.DataFrame({"x": cells}), "x")
    assert values.dtype == np.float64
    assert values[:2].tolist() == [1, 0] and np.isnan(values[2])
    assert not bad.any()


@pytest.mark.parametrize("cells", [pd.to_datetime(["2026-01-01", None]), pd.to_timedelta([3, None], unit="h")])
def test_dates_and_durations_are_no_numbers(cells: Any) -> None:
    values, bad = numbers(pd.DataFrame({"x": cells}), "x")
    assert np.isnan(values).all() and bad.tolist() == [True, False]


def test_a_table_that_nobody_can_open_is_refused_as_such(tmp_path: Path) -> None:
    (tmp_path / "labs.csv").mkdir()
    with pytest.raises(IngestError, match="cannot be read as csv"):
        read_frame(tmp_path / "labs.csv")


# Series.


def test_a_series_is_averaged_within_steps_and_nan_between_observations(tmp_path: Path) -> None:
    csv(tmp_path / "s.csv", hour=[2.2, 0.1, 0.9, -1.0, 6.0, 99.0, None], crea=[5, 1, 2, 77, 88, 99, None])
    found = read(tmp_path, LABS, MODALITIES["labs"], "s.csv")
    assert found.shape == (6, 2)
    assert found.dtype == np.float32
    assert found[[0, 2], 0].tolist() == [1.5, 5]
    assert np.isnan(found[[1, 3, 4, 5], 0]).all()
    assert np.isnan(found[:, 1]).all()  # the site has no heart rate


def test_steps_may_be_longer_than_an_hour(tmp_path: Path) -> None:
    csv(tmp_path / "s.csv", hour=[0, 3.9, 4], crea=[1, 3, 9])
    labs = Modality("series", {"crea": Feature("mg/dL")}, steps=2, step_hours=4)
    assert read(tmp_path, LABS, labs, "s.csv")[:, 0].tolist() == [2, 9]


@pytest.mark.parametrize(
    "columns",
    [
        {"hour": [-3, 6], "crea": [1, 1]},
        {"hour": [1], "crea": [None]},
        {"hour": [None], "crea": [None]},
        {"hour": [], "crea": []},
    ],
)
def test_a_series_without_a_value_within_the_steps_is_no_series(tmp_path: Path, columns: dict[str, list[Any]]) -> None:
    csv(tmp_path / "s.csv", **columns)
    assert reader(tmp_path, LABS, MODALITIES["labs"], Frames())("s.csv", "1") is None


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"hour": [1], "crea": ["SECRET"]}, "column 'crea' holds text or infinity"),
        ({"hour": ["SECRET"], "crea": [1]}, "column 'hour' holds text or infinity"),
        ({"hour": [1], "crea": [-1e300]}, "column 'crea' holds text or infinity"),
        ({"hour": [1, None], "crea": [1, 2]}, "column 'hour' is empty beside a value"),
        ({"time": [1], "crea": [1]}, "no column 'hour'"),
        ({"hour": [1]}, "no column 'crea'"),
    ],
)
def test_a_series_that_cannot_be_used_is_named(tmp_path: Path, columns: dict[str, list[Any]], text: str) -> None:
    csv(tmp_path / "s.csv", **columns)
    assert text in fault(tmp_path, LABS, MODALITIES["labs"], "s.csv")
