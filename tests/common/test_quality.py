"""Columns that tell nothing, and patients who are at two sites: named with file, row and remedy; nobody is left out for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from common.config import SplitConfig
from common.data.cohort import Cohort, Finding
from common.data.folder import open_cohort
from common.data.manifest import load_manifest
from common.data.quality import (
    CONSTANT,
    EMPTY,
    ONE_LABEL,
    SENTINEL,
    column_warnings,
    label_warnings,
    shared_patients,
    split_warnings,
    unit_warnings,
)
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
        ({"b": [*range(17), -999, -99999, -999]}, "b", SENTINEL.format("-999")),
        ({"b": [*range(18), -9, -9]}, "b", SENTINEL.format("-9")),
        ({"b": [*range(300, 318), 9999, 9999]}, "b", SENTINEL.format("9999")),
        ({"a": [*[0, 1] * 8, 999, 999, -99, -99]}, "a", SENTINEL.format("-99, 999")),
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
    assert "Check the export" in problem or "Leave such cells empty" in problem


@pytest.mark.parametrize(
    "cells",
    [
        [*range(19), 999],  # once may be a value
        [*range(-9, 9), -9, -9],
        [*range(300, 1200, 50), 999, 999],
        [*[0] * 14, 1, 2, 250, 400, 999, 999],
        [*[-99] * 6, *[7] * 5, *[None] * 9],  # few others
        [-1, 99, 9, 99, *range(16)],
    ],
)
def test_a_number_that_only_looks_like_a_code_for_a_missing_value_is_no_warning(tmp_path: Path, cells: list[Any]) -> None:
    assert opened(write_genes(tmp_path / "ash", b=cells), GENES)[1] == ()


def test_a_site_that_trains_and_is_too_small_to_validate_is_warned_and_no_other(tmp_path: Path) -> None:
    folder = write_genes(tmp_path / "ash")
    manifest, shares = load_manifest(folder), SplitConfig()
    cohort = opened(folder, GENES)[0]
    few = cohort.part("train")
    (finding,) = split_warnings(manifest, few, shares)
    assert (finding.file, finding.row, finding.column) == ("patients.csv", 1, "row")
    assert "it has too few patients. Add some, or let the site only test" in finding.problem
    assert split_warnings(manifest, cohort, shares) == split_warnings(manifest, few, SplitConfig(validation=0)) == ()
    assert split_warnings(replace(manifest, role="evaluate"), few, shares) == ()


def test_labels_that_are_the_same_in_all_visits_are_a_warning(tmp_path: Path) -> None:
    def warned(folder: Path, task: Task) -> tuple[Finding, ...]:
        manifest = load_manifest(folder)
        return label_warnings(manifest, open_cohort(folder, manifest, task, SplitConfig(), 0))

    alike = (Finding("patients.csv", 1, "death", ONE_LABEL),)
    assert warned(write_genes(tmp_path / "ash", death=1), GENES) == warned(write_genes(tmp_path / "elm", death=0), GENES) == alike
    assert warned(write_genes(tmp_path / "oak"), GENES) == ()
    days = replace(GENES, type="regression")
    assert warned(write_genes(tmp_path / "fir", death=3.5), days) == alike
    kinds = replace(GENES, type="multiclass", outputs=("0", "1", "2"))
    for name, classes, found in (("yew", 2, alike), ("bay", [i % 2 for i in range(20)], ())):
        folder = write_genes(tmp_path / name, death=classes)
        said = (folder / "manifest.yaml").read_text().replace("death: death", "class: death")
        (folder / "manifest.yaml").write_text(said)
        assert warned(folder, kinds) == found


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


@pytest.mark.parametrize(("unit", "spread", "factor"), [("umol/L", 0.4, 88.4), ("mmol/L", 0.3, 18.0), ("mg/dL", 1.0, 10.0)])
@pytest.mark.parametrize("larger", [True, False])
def test_another_unit_is_found_at_one_site_of_three_whichever_side_it_is(
    tmp_path: Path, unit: str, spread: float, factor: float, larger: bool
) -> None:
    rng = np.random.default_rng(0)
    factors = {"ash": factor if larger else 1, "birch": 1 if larger else factor, "cedar": 1 if larger else factor}
    for site, by in factors.items():
        cells = (by * rng.lognormal(0, spread, 200)).tolist()
        write_genes(tmp_path / site, row=range(200), death=[0, 1] * 100, b=range(200), sex=list("FM" * 100), a=cells)
    assert [f.file for f in between(sorted(tmp_path.iterdir()), GENES)] == ["ash/patients.csv"]


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
