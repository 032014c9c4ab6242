"""Columns that tell nothing, and patients who are at two sites: named with file, row and remedy; nobody is left out for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from common.config import SplitConfig
from common.data.cohort import Cohort, Finding
from common.data.folder import open_cohort
from common.data.manifest import load_manifest
from common.data.quality import CONSTANT, EMPTY, column_warnings, shared_patients, unit_warnings
from common.errors import ConsiliumError
from common.task import Feature, Modality, Task
from tests.common.samples import make_task, write_folder

RNA = {"a": Feature(), "b": Feature("mg/dL"), "sex": Feature(codes=("F", "M"))}
GENES = Task("genes", "binary", ("death",), {"rna": Modality("table", RNA)})


def opened(folder: Path, task: Task) -> tuple[Cohort, tuple[Finding, ...]]:
    manifest = load_manifest(folder)
    cohort = open_cohort(folder, manifest, task, SplitConfig(), 0)
    return cohort, column_warnings(folder, manifest, cohort)


def write_genes(folder: Path, variables: Any = "same", **columns: Any) -> Path:
    """A site of 20 visits whose patient table holds the columns of ``GENES`` themselves."""
    folder.mkdir()
    table = {
        "row": range(20),
        "death": [i % 2 for i in range(20)],
        "a": [i / 7 for i in range(20)],
        "b": range(20),
        "sex": list("FM" * 10),
    }
    pd.DataFrame(table | columns).to_csv(folder / "patients.csv", index=False)
    head = {"site": folder.name, "patients": "patients.csv", "patient": "row", "visit": "row", "labels": {"death": "death"}}
    (folder / "manifest.yaml").write_text(
        yaml.safe_dump(head | {"modalities": {"rna": {"kind": "table", "variables": variables}}})
    )
    return folder


def test_variables_same_reads_every_feature_from_the_column_of_its_name(tmp_path: Path) -> None:
    cohort, warnings = opened(write_genes(tmp_path / "ash"), GENES)
    assert warnings == ()
    assert cohort.inputs["rna"].shape == (20, 4)
    named = {"a": {"column": "a"}, "b": {"column": "b", "unit": "mg/dL"}, "sex": {"column": "sex"}}
    assert opened(write_genes(tmp_path / "birch", named), GENES)[0].inputs["rna"].equal(cohort.inputs["rna"])


def test_a_column_that_is_missing_is_named_also_where_variables_are_the_same(tmp_path: Path) -> None:
    folder = write_genes(tmp_path / "ash")
    pd.read_csv(folder / "patients.csv").drop(columns="b").to_csv(folder / "patients.csv", index=False)
    with pytest.raises(ConsiliumError, match=r"lacks column\(s\) b\."):
        opened(folder, GENES)


@pytest.mark.parametrize(
    ("columns", "column", "problem"),
    [
        ({"a": [0.1] * 20}, "a", CONSTANT),
        ({"a": [None] * 20}, "a", EMPTY),
        ({"sex": ["F"] * 20}, "sex", CONSTANT),
        ({"sex": [None] * 20}, "sex", EMPTY),
        ({"b": [5] + [None] * 19}, "b", CONSTANT),
    ],
)
def test_a_column_that_tells_nothing_is_a_warning_and_its_visits_stay(
    tmp_path: Path, columns: Any, column: str, problem: str
) -> None:
    cohort, warnings = opened(write_genes(tmp_path / "ash", **columns), GENES)
    assert warnings == (Finding("patients.csv", 1, column, problem.replace("manifest", "task file")),)
    assert (len(cohort), cohort.findings) == (20, ())
    named = {"a": {"column": "a"}, "b": {"column": "b", "unit": "mg/dL"}, "sex": {"column": "sex"}}
    assert opened(write_genes(tmp_path / "elm", named, **columns), GENES)[1] == (Finding("patients.csv", 1, column, problem),)
    assert "Check the export" in problem


def test_a_column_of_another_file_is_found_in_that_file(tmp_path: Path) -> None:
    task = make_task(modalities=["labs"])
    write_folder(tmp_path / "ash", task)
    labs = pd.read_parquet(tmp_path / "ash" / "labs.parquet")
    labs.assign(hr=80.0).to_parquet(tmp_path / "ash" / "labs.parquet")
    assert opened(tmp_path / "ash", task)[1] == (Finding("labs.parquet", 1, "hr", CONSTANT),)


def test_sound_columns_and_variables_that_a_site_never_named_are_no_warning(tmp_path: Path) -> None:
    write_folder(tmp_path / "ash", make_task())
    assert opened(tmp_path / "ash", make_task())[1] == ()
    assert opened(write_genes(tmp_path / "birch", {"a": {"column": "a"}}), GENES)[1] == ()


def test_patients_of_two_sites_are_found_with_their_number_and_without_their_names(tmp_path: Path) -> None:
    for site, names in {"ash": ["p1", "p2", "p3"], "birch": ["p9", "p3", "p2"], "cedar": ["p4", "p5", None]}.items():
        write_genes(tmp_path / site)
        pd.read_csv(tmp_path / site / "patients.csv").head(3).assign(row=names).to_csv(
            tmp_path / site / "patients.csv", index=False
        )
    (finding,) = shared_patients({f: load_manifest(f) for f in sorted(tmp_path.iterdir())})
    assert (finding.file, finding.row, finding.column) == ("birch/patients.csv", 3, "row")
    assert "2 patient(s)" in finding.problem and "'ash'" in finding.problem and "leave them at one site" in finding.problem
    assert not any(name in str(finding) for name in ("p2", "p3"))


def test_a_table_with_a_column_in_another_unit_or_with_another_code_is_refused_or_named(tmp_path: Path) -> None:
    wrong = {"b": {"column": "b", "unit": "g/L"}}
    with pytest.raises(ConsiliumError, match=r"'rna.b' is in 'g/L', the task counts it in 'mg/dL'"):
        opened(write_genes(tmp_path / "ash", wrong), GENES)
    cohort, _ = opened(write_genes(tmp_path / "birch", sex=["F"] * 19 + ["X"]), GENES)
    (finding,) = cohort.findings
    assert (finding.file, finding.row) == ("patients.csv", 21) and "does not map to a category" in finding.problem


def between(folders: list[Path], task: Task) -> tuple[Finding, ...]:
    return unit_warnings({f: load_manifest(f) for f in folders}, {f: opened(f, task)[0] for f in folders})


def test_a_median_far_from_the_other_sites_values_is_a_warning_with_the_medians(tmp_path: Path) -> None:
    fever = [36.5 + i / 10 for i in range(20)]
    sites = {"ash": fever, "birch": [f + 0.4 for f in fever], "cedar": [f * 1.8 + 32 for f in fever]}
    folders = [write_genes(tmp_path / site, a=values) for site, values in sites.items()]
    (finding,) = between(folders, GENES)
    assert (finding.file, finding.row, finding.column) == ("cedar/patients.csv", 1, "a")
    assert "the median, 99.41, lies far from the other sites', 37.65: another unit?" in finding.problem
    assert between(folders[:2], GENES) == ()
    assert len(between([folders[0], folders[2]], GENES)) == 2  # of two nobody knows which is the odd one


def test_few_values_are_not_compared_and_series_are(tmp_path: Path) -> None:
    odd = [36.5 + i / 10 for i in range(9)] + [None] * 11
    folders = [write_genes(tmp_path / "ash"), write_genes(tmp_path / "birch", a=[v and v * 100 for v in odd])]
    assert between(folders, GENES) == ()
    task = make_task(modalities=["labs"])
    for name in ("elm", "fir"):
        write_folder(tmp_path / name, task)
    labs = pd.read_parquet(tmp_path / "fir" / "labs.parquet")
    labs.assign(hr=labs["hr"] * 1000).to_parquet(tmp_path / "fir" / "labs.parquet")
    assert {(f.file, f.column) for f in between([tmp_path / "elm", tmp_path / "fir"], task)} == {
        (f"{name}/labs.parquet", "hr") for name in ("elm", "fir")
    }
