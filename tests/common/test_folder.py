"""Opening a hospital's folder: labels, faults by file, row and column, limits, and the split of patients."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from common.config import SplitConfig
from common.data.cohort import Cohort, count_patterns
from common.data.folder import open_cohort
from common.data.manifest import load_manifest
from common.errors import ConsiliumError, TooManyFaults
from common.task import Task
from tests.common.samples import KINDS, make_task, write_folder

ADMISSION = ("admission",)
TOLERANT = {"limits": {"bad_rows": 1.0}}


def opened(folder: Path, task: Task, split: SplitConfig | None = None, seed: int = 0) -> Cohort:
    return open_cohort(folder, load_manifest(folder), task, split or SplitConfig(), seed)


def edit(folder: Path, change: Callable[[pd.DataFrame], object]) -> None:
    """Changes the patient table as a hospital would: in its CSV file."""
    table = pd.read_csv(folder / "patients.csv").astype(object)
    change(table)
    table.to_csv(folder / "patients.csv", index=False)


def put(row: int, **cells: Any) -> Callable[[pd.DataFrame], None]:
    def change(table: pd.DataFrame) -> None:
        for column, cell in cells.items():
            table.loc[row, column] = cell

    return change


def refused(folder: Path, task: Task) -> str:
    with pytest.raises(ConsiliumError) as error:
        opened(folder, task)
    assert "SECRET" not in str(error.value)
    return str(error.value)


def findings(cohort: Cohort) -> list[tuple[str, int, str]]:
    assert not any("SECRET" in str(f) for f in cohort.findings)
    return [(f.file, f.row, f.column) for f in cohort.findings]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_task_and_modality_is_read(tmp_path: Path, kind: Any) -> None:
    task = make_task(kind)
    table = write_folder(tmp_path, task)
    cohort = opened(tmp_path, task)
    assert cohort.findings == ()
    assert cohort.labelled
    assert cohort.row.tolist() == list(range(40))
    assert cohort.present[:, 0].tolist() == (np.arange(40) % 5 != 0).tolist()
    for k, column in enumerate(("cxr", "labs", "note"), start=1):
        assert cohort.present[:, k].tolist() == table[column].notna().tolist()
    if kind == "multiclass":
        assert cohort.labels.dtype == torch.int64
        assert [task.outputs[c] for c in cohort.labels.tolist()] == table["class"].tolist()
    else:
        assert cohort.labels.dtype == torch.float32
        assert cohort.labels.numpy() == pytest.approx(table[list(task.outputs)].to_numpy(np.float32))
    for m, x in cohort.inputs.items():
        held = cohort.present[:, list(task.modalities).index(m)]
        assert x[held].isfinite().all()
        if m != "note":
            assert x[~held].isnan().all()
    assert sum(count_patterns(cohort).values()) == 40


def test_an_evaluating_site_has_test_patients_only(tmp_path: Path) -> None:
    task = make_task(modalities=ADMISSION)
    write_folder(tmp_path, task, role="evaluate")
    assert set(opened(tmp_path, task).split) == {"test"}


# Faults.


def damaged(folder: Path, name: str) -> None:
    """Writes a hospital whose patient table has one fault, in row 5 (the first row under the header is 2)."""
    write_folder(folder, make_task(), **TOLERANT)
    row = 3
    files = {"cut.dcm": b"SECRET", "empty.txt": b" ", "latin.txt": "SECRET é".encode("latin-1")}
    for file, content in files.items():
        (folder / file).write_bytes(content)
    edit(folder, lambda table: table.loc.__setitem__((row, "note"), "note-0.txt"))
    changes: dict[str, dict[str, Any]] = {
        "missing image": {"cxr": "SECRET.dcm"},
        "image outside": {"cxr": "../SECRET.dcm"},
        "broken image": {"cxr": "cut.dcm"},
        "empty text": {"note": "empty.txt"},
        "text in another encoding": {"note": "latin.txt"},
        "text in the cell of a path": {"note": "SECRET " * 100},
        "missing series": {"labs": "SECRET.parquet"},
        "text for a number": {"age": "SECRET"},
        "unknown code": {"sex": "SECRET"},
        "empty label": {"death": None},
        "label of another kind": {"death": "SECRET"},
        "label out of range": {"death": 2},
        "empty patient": {"patient_id": None},
        "empty visit": {"visit_id": None, "labs": None},
    }
    edit(folder, put(row, **changes[name]))


@pytest.mark.parametrize(
    ("name", "column", "cause"),
    [
        ("missing image", "cxr", "does not exist"),
        ("image outside", "cxr", "leaves the manifest's folder"),
        ("broken image", "cxr", "cannot be read"),
        ("empty text", "note", "no word"),
        ("text in another encoding", "note", "not in encoding"),
        ("text in the cell of a path", "note", "no path"),
        ("missing series", "labs", "does not exist"),
        ("text for a number", "age", "column 'age' holds text or infinity where a number is expected: a date, a decimal comma"),
        ("unknown code", "sex", "holds a code that the manifest does not map to a category; known are F, M: correct the cell"),
        ("empty label", "death", "the label of 'death' is empty; fill it in"),
        ("label of another kind", "death", "is neither 0 nor 1; correct it"),
        ("label out of range", "death", "is neither 0 nor 1; correct it"),
        ("empty patient", "patient_id", "empty"),
        ("empty visit", "visit_id", "empty"),
    ],
)
def test_a_fault_is_named_by_file_row_and_column_and_only_its_patient_is_left_out(
    tmp_path: Path, name: str, column: str, cause: str
) -> None:
    damaged(tmp_path, name)
    cohort = opened(tmp_path, make_task())
    assert findings(cohort)[0] == ("patients.csv", 5, column)
    assert {f.row for f in cohort.findings} == {5}
    assert cause in str(cohort.findings[0])
    assert str(cohort.findings[0]).startswith(f"patients.csv, row 5, column '{column}': ")
    assert cohort.row.tolist() == [r for r in range(40) if r != 3]
    assert torch.cat([x.flatten() for x in cohort.part("train").holding("admission").inputs["admission"]]).isfinite().all()


@pytest.mark.parametrize(("value", "by_log"), [("SECRET", False), (None, False), (np.inf, False), (1e39, False), (-1.0, True)])
def test_a_label_that_is_no_usable_number_is_a_finding(tmp_path: Path, value: Any, by_log: bool) -> None:
    task = replace(make_task("regression", ADMISSION), log=("los",) if by_log else ())
    write_folder(tmp_path, task, **TOLERANT)
    edit(tmp_path, lambda table: table.update({"los": table["los"].abs()}))
    edit(tmp_path, put(3, los=value))
    cohort = opened(tmp_path, task)
    assert findings(cohort) == [("patients.csv", 5, "los")]
    told = {None: "is empty; fill it in", -1.0: "is no finite number above -1, of which"}.get(value, "is no finite number; write")
    assert told in cohort.findings[0].problem
    assert cohort.labels.isfinite().all()


def test_patients_with_numbers_are_split_as_others_are(tmp_path: Path) -> None:
    task = make_task("regression", ADMISSION)
    write_folder(tmp_path, task, 200)
    split = pd.Series(opened(tmp_path, task).split).value_counts(normalize=True)
    assert split.to_dict() == pytest.approx({"train": 0.5, "test": 0.25, "validation": 0.15, "meta": 0.1}, abs=0.05)


def test_a_text_in_a_shared_series_excludes_that_visit_alone(tmp_path: Path) -> None:
    task = make_task(modalities=["labs"])
    write_folder(tmp_path, task, **TOLERANT)
    labs = pd.read_parquet(tmp_path / "labs.parquet")
    labs["crea"] = labs["crea"].astype(str)
    labs.loc[labs["visit_id"] == 104, "crea"] = "SECRET"
    labs.to_parquet(tmp_path / "labs.parquet")
    cohort = opened(tmp_path, task)
    assert findings(cohort) == [("labs.parquet", 26, "crea")]
    assert [f.visit for f in cohort.findings] == [6] and 4 not in cohort.row


def test_a_series_without_a_value_in_its_window_is_absent_and_one_without_any_line_is_a_fault(tmp_path: Path) -> None:
    task = make_task(modalities=["admission", "labs"])
    write_folder(tmp_path, task, **TOLERANT)
    labs = pd.read_parquet(tmp_path / "labs.parquet")
    labs.loc[labs["visit_id"].isin([100, 101]), "hour"] += 48  # visit 100 has no admission either
    labs[labs["visit_id"] != 104].to_parquet(tmp_path / "labs.parquet")
    cohort = opened(tmp_path, task)
    assert findings(cohort) == [("patients.csv", 6, "labs")]
    assert "no row for this visit" in cohort.findings[0].problem
    assert not {0, 4} & set(cohort.row)
    assert cohort.present[cohort.row == 1].tolist() == [[True, False]]
    assert cohort.inputs["labs"][cohort.row == 1].isnan().all()


def test_visits_are_found_although_an_empty_cell_made_floats_of_their_numbers(tmp_path: Path) -> None:
    task = make_task(modalities=["labs"])
    write_folder(tmp_path, task, **TOLERANT)
    labs = pd.read_parquet(tmp_path / "labs.parquet")
    labs.loc[len(labs)] = [None, 0.0, 1.0, 80.0]
    labs.to_parquet(tmp_path / "labs.parquet")
    assert opened(tmp_path, task).findings == ()


def test_numeric_classes_are_read_although_an_empty_cell_made_floats_of_them(tmp_path: Path) -> None:
    task = replace(make_task("multiclass", ADMISSION), outputs=("0", "1", "2"))
    write_folder(tmp_path, task, **TOLERANT)
    edit(tmp_path, put(0, **{"class": None}))
    cohort = opened(tmp_path, task)
    assert findings(cohort) == [("patients.csv", 2, "class")]
    edit(tmp_path, put(0, **{"class": "SECRET"}))
    assert "is none of the classes 0, 1, 2; spell it" in opened(tmp_path, task).findings[0].problem
    assert set(cohort.labels.tolist()) == {0, 1, 2}


def test_a_visit_without_any_modality_is_no_fault_and_no_patient(tmp_path: Path) -> None:
    task = make_task(modalities=ADMISSION)
    write_folder(tmp_path, task)
    cohort = opened(tmp_path, task)
    assert cohort.findings == ()
    assert cohort.row.tolist() == [r for r in range(40) if r % 5]
    assert cohort.empty == tuple(range(2, 42, 5)) and cohort.excluded == 8


def test_a_table_without_names_of_columns_is_refused_without_telling_its_first_patient(tmp_path: Path) -> None:
    task = make_task(modalities=["admission"])
    write_folder(tmp_path, task)
    table = pd.read_csv(tmp_path / "patients.csv").assign(patient_id=[f"patient_{i}" for i in range(40)])
    table.to_csv(tmp_path / "patients.csv", index=False, header=False)
    with pytest.raises(ConsiliumError, match=r"lacks column\(s\) patient_id, ") as caught:
        opened(tmp_path, task)
    assert "patient_0" not in str(caught.value)


def test_a_hospital_of_which_nothing_is_left_is_empty(tmp_path: Path) -> None:
    task = make_task("multilabel", ["cxr"])
    write_folder(tmp_path, task)
    edit(tmp_path, lambda table: table.__setitem__("cxr", None))
    cohort = opened(tmp_path, task)
    assert len(cohort) == len(cohort.part("train")) == 0
    assert cohort.moments()["cxr"].count.tolist() == [0]


@pytest.mark.parametrize(("bad", "refuses"), [(2, False), (3, True)])
def test_the_site_refuses_above_its_share_of_bad_rows(tmp_path: Path, bad: int, refuses: bool) -> None:
    task = make_task(modalities=["note"])
    write_folder(tmp_path, task)  # 40 rows, limits.bad_rows = 0.05
    for row in range(0, 4 * bad, 4):
        edit(tmp_path, put(row, note="SECRET.txt", death=None))
    if not refuses:
        assert len({f.row for f in opened(tmp_path, task).findings}) == bad
        return
    with pytest.raises(TooManyFaults) as caught:
        opened(tmp_path, task)
    for part in ("'riverside' refuses", "more than limits.bad_rows of its patient rows", "Mend the files"):
        assert part in str(caught.value)
    assert not re.search(r"\d", str(caught.value))  # how many faults there are, and where, is for the hospital's eyes
    assert {(f.row, f.column) for f in caught.value.findings} == {(r, c) for r in (2, 6, 10) for c in ("note", "death")}


# The patient table itself.


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.drop(columns="patient_id"), "lacks column(s) patient_id"),
        (lambda t: t.drop(columns=["death", "note"]), "lacks column(s) death, note"),
        (lambda t: t.drop(columns="age"), "lacks column(s) age."),
        (lambda t: t.rename(columns={"age": "Age "}), "lacks column(s) age (did you mean 'Age '?). Correct the manifest, or"),
        (lambda t: t.set_axis([";".join(t.columns), *t.columns[1:]], axis=1), "It is separated by semicolons"),
        (lambda t: t.iloc[:0], "has no rows"),
        (lambda t: t.assign(visit_id=5), "names a visit twice in column 'visit_id'. Write"),
    ],
)
def test_a_patient_table_that_cannot_be_used_is_refused(
    tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], text: str
) -> None:
    write_folder(tmp_path, make_task())
    change(pd.read_csv(tmp_path / "patients.csv")).to_csv(tmp_path / "patients.csv", index=False)
    found = refused(tmp_path, make_task())
    assert text in found
    assert "'riverside'" in found


def test_rows_that_name_a_visit_twice_are_findings_and_leave_the_site_neither_as_rows_nor_as_their_number(tmp_path: Path) -> None:
    write_folder(tmp_path, make_task())
    edit(tmp_path, lambda table: table.update({"visit_id": table["visit_id"].replace({103: 101, 107: 101, 109: 108})}))
    with pytest.raises(TooManyFaults) as caught:
        opened(tmp_path, make_task())
    assert not re.search(r"\d", str(caught.value))
    assert [(f.row, f.column, f.problem) for f in caught.value.findings] == [
        (row, "visit_id", f"the same visit as in row {first}") for row, first in ((5, 3), (9, 3), (11, 10))
    ]


@pytest.mark.parametrize(
    ("place", "text"),
    [("nowhere.csv", "does not exist"), ("../outside.csv", "leaves"), ("bad.csv", "not in encoding 'utf-8'; save")],
)
def test_a_patient_table_that_cannot_be_read_is_refused(tmp_path: Path, place: str, text: str) -> None:
    task = make_task(modalities=ADMISSION)
    folder = tmp_path / "site"
    write_folder(folder, task, patients=place)
    (tmp_path / "outside.csv").write_text("SECRET")
    (folder / "bad.csv").write_bytes(b"\xff\xfe\x00SECRET")
    assert text in refused(folder, task)


def test_labels_that_lack_an_output_are_refused_and_no_labels_at_all_make_an_unlabelled_set(tmp_path: Path) -> None:
    task = make_task("multilabel", ADMISSION)
    write_folder(tmp_path, task, labels={"aki": "aki"})
    assert "lack shock" in refused(tmp_path, task)
    write_folder(tmp_path, task, labels={})
    cohort = opened(tmp_path, task)
    assert not cohort.labelled
    assert cohort.labels.shape == (32, 2)


def test_a_series_in_another_unit_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, make_task())
    text = (tmp_path / "manifest.yaml").read_text()
    (tmp_path / "manifest.yaml").write_text(text.replace("mg/dL", "umol/L"))
    assert "'labs.crea' is in 'umol/L'" in refused(tmp_path, make_task())


# The split.


def split_of(folder: Path, size: int = 400, split: SplitConfig | None = None, seed: int = 0, **manifest: Any) -> pd.Series:
    task = make_task(modalities=ADMISSION)
    write_folder(folder, task, size, **manifest)
    cohort = opened(folder, task, split, seed)
    table = pd.read_csv(folder / "patients.csv").iloc[cohort.row]
    return pd.Series(cohort.split, index=pd.MultiIndex.from_frame(table[["patient_id", "death"]]))


def test_patients_are_split_and_never_visits(tmp_path: Path) -> None:
    split = split_of(tmp_path)
    assert (split.groupby("patient_id").nunique() == 1).all()


def test_the_shares_are_kept_for_patients_with_and_without_the_event(tmp_path: Path) -> None:
    shares = SplitConfig(meta=0.1, validation=0.2, test=0.3)
    split = split_of(tmp_path, split=shares).reset_index(name="split")
    patients = split.groupby("patient_id").agg({"death": "max", "split": "first"})
    for _, stratum in patients.groupby("death"):
        found = stratum["split"].value_counts(normalize=True)
        for name, share in (("train", 0.4), ("meta", 0.1), ("validation", 0.2), ("test", 0.3)):
            assert found[name] == pytest.approx(share, abs=1.01 / len(stratum))


def test_the_split_is_stable_by_seed_site_and_patient(tmp_path: Path) -> None:
    first = split_of(tmp_path / "a")
    assert first.equals(split_of(tmp_path / "b"))
    assert not first.equals(split_of(tmp_path / "c", seed=1))
    assert not first.equals(split_of(tmp_path / "d", site="hilltop"))


def test_the_split_does_not_depend_on_the_order_of_the_rows(tmp_path: Path) -> None:
    task = make_task(modalities=ADMISSION)
    write_folder(tmp_path, task, 100)
    before = split_by_visit(tmp_path, task)
    table = pd.read_csv(tmp_path / "patients.csv")
    table.sample(frac=1, random_state=0).to_csv(tmp_path / "patients.csv", index=False)
    assert split_by_visit(tmp_path, task) == before


def split_by_visit(folder: Path, task: Task) -> dict[int, str]:
    cohort = opened(folder, task)
    visits = pd.read_csv(folder / "patients.csv")["visit_id"].iloc[cohort.row]
    return dict(zip(visits, cohort.split, strict=True))


def test_shares_of_zero_leave_everybody_to_train(tmp_path: Path) -> None:
    assert set(split_of(tmp_path, split=SplitConfig(meta=0, validation=0, test=0))) == {"train"}


def with_split(folder: Path, values: Sequence[str]) -> Task:
    task = make_task(modalities=ADMISSION)
    write_folder(folder, task, split="part")
    edit(folder, lambda table: table.insert(0, "part", list(values)))
    return task


def test_a_split_column_prevails(tmp_path: Path) -> None:
    names = np.repeat(["train", "meta", "validation", "test"], 10)
    cohort = opened(tmp_path, with_split(tmp_path, names))
    assert cohort.split.tolist() == names[cohort.row].tolist()


def test_a_split_column_with_other_words_or_that_tears_a_patient_apart_is_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, with_split(tmp_path, ["train"] * 38 + ["SECRET"] * 2))
    assert "patients.csv, row 40, column 'part' may hold only train, meta" in said
    said = refused(tmp_path, with_split(tmp_path, ["train"] * 20 + ["test", "train"] * 10))
    assert "patients.csv, row 25, column 'part' has another split than an earlier visit" in said  # row 22 holds nothing
