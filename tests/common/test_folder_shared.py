"""Faults in a file that many visits share: its own name, row and column are told, and once where the whole file is at fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from common.config import SplitConfig
from common.data.cohort import Cohort, concatenate
from common.data.folder import open_cohort
from common.data.manifest import load_manifest
from tests.common.samples import make_task, write_folder

LABS = make_task(modalities=["labs"])


def opened(folder: Path) -> Cohort:
    cohort = open_cohort(folder, load_manifest(folder), LABS, SplitConfig(), 0)
    assert not any("SECRET" in str(f) for f in cohort.findings)
    return cohort


def write(folder: Path) -> pd.DataFrame:
    """Writes a hospital of 40 visits, of which 30 have labs, in one CSV file; returns the labs."""
    write_folder(folder, LABS, limits={"bad_rows": 1.0})
    labs = pd.read_parquet(folder / "labs.parquet")
    labs.to_csv(folder / "labs.csv", index=False)
    patients = (folder / "patients.csv").read_text(encoding="utf-8").replace("labs.parquet", "labs.csv")
    (folder / "patients.csv").write_text(patients, encoding="utf-8")
    return labs


def spoil(folder: Path, line: int, change: Callable[[str], str]) -> None:
    """Changes a line of the file, counted from 1, as text."""
    lines = (folder / "labs.csv").read_text(encoding="utf-8").splitlines()
    lines[line - 1] = change(lines[line - 1])
    (folder / "labs.csv").write_text("\n".join(lines) + "\n", encoding="latin-1")


def test_a_cell_of_a_shared_file_is_told_with_that_files_row_and_column(tmp_path: Path) -> None:
    write(tmp_path)
    spoil(tmp_path, 20, lambda line: ",".join([*line.split(",")[:2], "<0.3", line.split(",")[3]]))
    (finding,) = opened(tmp_path).findings
    assert (finding.file, finding.row, finding.column, finding.visit) == ("labs.csv", 20, "crea", 5)
    assert "a decimal comma, a sign as in <0.3? Write a number; leave the cell empty where it is missing" in finding.problem
    assert (len(opened(tmp_path)), opened(tmp_path).excluded) == (29, 11)  # ten visits have no labs


def test_a_visit_of_a_file_of_its_own_is_told_by_the_patient_tables_row_and_the_row_within(tmp_path: Path) -> None:
    labs = write(tmp_path)
    labs[labs["visit_id"] == 100].astype(object).replace(2.0, "SECRET").to_csv(tmp_path / "SECRET.csv", index=False)
    patients = pd.read_csv(tmp_path / "patients.csv")
    patients.loc[0, "labs"] = "SECRET.csv"
    patients.to_csv(tmp_path / "patients.csv", index=False)
    (finding,) = opened(tmp_path).findings
    assert (finding.file, finding.row, finding.column, finding.visit) == ("patients.csv", 2, "labs", 2)
    assert finding.problem.startswith("in row 4 of the file, column 'hour' holds text")


@pytest.mark.parametrize(
    ("change", "column", "cause"),
    [
        (
            lambda folder: (folder / "labs.csv").unlink(),
            "labs",
            "the file does not exist; put it there, or mend the path. Correct the file, or modalities.labs in",
        ),
        (lambda folder: (folder / "labs.csv").write_text(""), "labs", "the file is empty; export it again"),
        (lambda folder: spoil(folder, 1, lambda line: line.replace("crea", "Crea")), "crea", "(did you mean 'Crea'?)"),
        (lambda folder: spoil(folder, 1, lambda line: line.replace("visit", "stay")), "visit_id", "the file has no key column"),
        (lambda folder: spoil(folder, 9, lambda line: f"{line},1"), "labs", "row 9 has 5 cells, 4 are expected; write decimal"),
        (
            lambda folder: [spoil(folder, row, lambda line: f"{line},") for row in range(2, 122)],
            "labs",
            "its rows have more cells than the header has names; take away the comma at the end of the rows",
        ),
        (
            lambda folder: [spoil(folder, row, lambda line: line.replace(",", ";") + ",5") for row in range(1, 122)],
            "labs",
            "the file is separated by semicolons: write it with commas, and numbers with decimal points (1.5, not 1,5)",
        ),
        (lambda folder: spoil(folder, 9, lambda line: f'"{line}'), "labs", "a quote that opens in row 9 is never closed"),
        (lambda folder: spoil(folder, 9, lambda line: f"{line}é"), "labs", "row 9 of the file is not in encoding 'utf-8'; save"),
    ],
)
def test_a_fault_of_the_whole_file_is_one_place_for_all_visits_and_names_the_manifests_key(
    tmp_path: Path, change: Callable[[Path], object], column: str, cause: str
) -> None:
    write(tmp_path)
    change(tmp_path)
    cohort = opened(tmp_path)
    assert {(f.file, f.row, f.column) for f in cohort.findings} == {("labs.csv", 1, column)}
    (problem,) = {f.problem for f in cohort.findings}
    assert cause in problem and "modalities.labs in the manifest, where it is column 'labs' of patients.csv" in problem
    assert len({f.visit for f in cohort.findings}) == 30 and (len(cohort), cohort.excluded) == (0, 40)


def test_several_rows_of_one_visit_in_a_shared_table_are_a_fault_of_that_visit_at_the_second_row(tmp_path: Path) -> None:
    task = make_task(modalities=["admission"])
    write_folder(tmp_path, task)
    manifest = (tmp_path / "manifest.yaml").read_text().replace("kind: table", "kind: table\n    column: file\n    key: visit_id")
    (tmp_path / "manifest.yaml").write_text(manifest)
    table = pd.read_csv(tmp_path / "patients.csv")
    pd.concat([table, table.iloc[[7]]]).to_csv(tmp_path / "admissions.csv", index=False)
    table.assign(file="admissions.csv").to_csv(tmp_path / "patients.csv", index=False)
    cohort = open_cohort(tmp_path, load_manifest(tmp_path), task, SplitConfig(), 0)
    assert [(f.file, f.row, f.column, f.visit) for f in cohort.findings] == [("admissions.csv", 42, "visit_id", 9)]
    assert "2 rows, one is expected" in cohort.findings[0].problem and 7 not in cohort.row


def test_a_visit_without_a_row_stays_a_fault_of_the_patient_table(tmp_path: Path) -> None:
    labs = write(tmp_path)
    labs[labs["visit_id"] != 104].to_csv(tmp_path / "labs.csv", index=False)
    (finding,) = opened(tmp_path).findings
    assert (finding.file, finding.row, finding.column) == ("patients.csv", 6, "labs")
    assert "no row for this visit; add it, or leave the cell empty" in finding.problem


def test_visits_that_hold_nothing_are_no_fault_and_stay_known_where_cohorts_are_joined(tmp_path: Path) -> None:
    write(tmp_path)
    cohort = opened(tmp_path)
    assert cohort.findings == () and cohort.empty == tuple(range(4, 42, 4))
    assert concatenate([cohort, cohort]).empty == cohort.empty * 2
