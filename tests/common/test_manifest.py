"""Manifests: what does not fit is named, with the nearest thing that does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.data.manifest import check_against_task, hospital_folders, load_manifest
from common.errors import ConsiliumError
from tests.common.samples import make_task, write_folder

SOURCES: dict[str, Any] = {
    "cxr": {"kind": "image", "column": "cxr"},
    "note": {"kind": "text", "column": "note"},
    "labs": {"kind": "series", "column": "labs", "key": "visit_id", "variables": {"crea": {"column": "crea", "unit": "mg/dL"}}},
    "admission": {"kind": "table", "variables": {"age": {"column": "age", "unit": "a"}, "sex": {"column": "sex"}}},
}
HEAD: dict[str, Any] = {
    "site": "riverside", "patients": "patients.csv", "patient": "pid", "visit": "vid", "labels": {"death": "died"},
    "modalities": SOURCES,
}  # fmt: skip


def write(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    kept = {k: v for k, v in (HEAD | changes).items() if v is not KeyError}
    (folder / "manifest.yaml").write_text(yaml.safe_dump(kept))
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(ConsiliumError) as error:
        check_against_task(load_manifest(folder), make_task())
    return str(error.value)


def test_a_good_manifest_is_read_from_its_folder_or_file(tmp_path: Path) -> None:
    found = load_manifest(write(tmp_path))
    assert found == load_manifest(tmp_path / "manifest.yaml")
    check_against_task(found, make_task())
    assert (found.role, found.limits.epochs, found.limits.bad_rows) == ("train", 50, 0.05)


def nested(name: str, **changes: Any) -> dict[str, Any]:
    return {"modalities": SOURCES | {name: SOURCES[name] | changes}}


@pytest.mark.parametrize(
    ("changes", "wrong", "right"),
    [
        ({"pateint": "x"}, "'pateint'", "did you mean 'patient'"),
        (nested("cxr", colum="x"), "'modalities.cxr.colum'", "did you mean 'column'"),
        ({"limits": {"epoch": 3}}, "'limits.epoch'", "did you mean 'epochs'"),
        ({"visit": KeyError}, "visit", "required"),
        ({"site": "../etc"}, "site", "pattern"),
        ({"site": "a b"}, "site", "pattern"),
        ({"patients": "/srv/hospital/patients.csv"}, "patients", "pattern"),
        ({"role": "evaluates"}, "role: 'evaluates' is unknown", "did you mean 'evaluate'"),
        ({"schema_version": 2}, "schema_version", "1"),
        ({"limits": {"bad_rows": 2}}, "limits.bad_rows", "less than or equal to 1"),
        ({"limits": {"epochs": 0}}, "limits.epochs", "greater than or equal to 1"),
        ({"limits": {"largest": "huge"}}, "limits.largest", "Known: base, linear, small"),
        (nested("cxr", kind="imge"), "modalities.cxr.kind", "did you mean 'image'"),
        ({"labels": {"deth": "died"}}, "label 'deth'", "did you mean 'death'"),
        ({"modalities": {"crx": SOURCES["cxr"]}}, "modality 'crx'", "did you mean 'cxr'"),
        (nested("cxr", kind="text"), "'cxr' is of kind 'text'", "needs 'image'"),
        (nested("cxr", column=None), "'cxr' needs 'column'", ""),
        (nested("labs", variables={}), "'labs' needs 'variables'", "crea, hr"),
        (nested("admission", variables={}), "'admission' needs 'variables'", "age, sex"),
        (nested("labs", variables={"cre": {"column": "c"}}), "variable 'cre'", "did you mean 'crea'"),
        (nested("labs", variables={"crea": {"column": "c", "unit": "umol/L"}}), "'labs.crea' is in 'umol/L'", "'mg/dL'"),
        (nested("labs", variables={"crea": {"column": "c"}}), "'labs.crea' names no unit", "'mg/dL'"),
        (nested("admission", variables={"sex": {"column": "s", "codes": {"W": "femal"}}}), "'femal'", "did you mean 'female'"),
    ],
)
def test_what_does_not_fit_is_named_with_what_does(tmp_path: Path, changes: dict[str, Any], wrong: str, right: str) -> None:
    text = refused(write(tmp_path, **changes))
    assert wrong in text
    assert right in text


@pytest.mark.parametrize(
    ("column", "what"), [("died", "the label 'death'"), ("pid", "the patient"), ("vid", "the visit"), ("part", "the split")]
)
def test_a_column_that_holds_the_answer_or_a_name_may_not_be_learned_from(tmp_path: Path, column: str, what: str) -> None:
    told = f"is read from column '{column}', which names {what}: nobody may learn from that. Take it out"
    age = {"age": {"column": column, "unit": "a"}}
    assert f"'admission.age' {told}" in refused(write(tmp_path, split="part", **nested("admission", variables=age)))
    assert f"'note' {told}" in refused(write(tmp_path, split="part", **nested("note", column=column, inline=True)))
    elsewhere = nested("admission", variables=age, column="file", key="vid")  # a column of another file
    check_against_task(load_manifest(write(tmp_path, split="part", **elsewhere)), make_task())


def test_a_feature_that_is_called_as_the_column_of_the_label_is_refused_also_where_variables_are_the_same(tmp_path: Path) -> None:
    write(tmp_path, labels={"death": "age"}, **nested("admission", variables="same"))
    assert "'admission.age' is read from column 'age', which names the label 'death'" in refused(tmp_path)


@pytest.mark.parametrize(
    ("units", "text"),
    [
        ({}, "label 'los' names no unit, the task counts it in 'd'"),
        ({"los": "h"}, "label 'los' is in 'h', the task counts it in 'd'"),
        ({"los": "d", "cost": "EUR"}, "label 'cost' is in 'EUR', the task counts it in ''"),
        ({"los": "d"}, None),
    ],
)
def test_labels_that_are_numbers_need_the_tasks_unit(tmp_path: Path, units: dict[str, str], text: str | None) -> None:
    task = replace(make_task("regression"), units={"los": "d"})
    manifest = load_manifest(write(tmp_path, labels={"los": "los", "cost": "cost"}, label_units=units))
    if text is None:
        return check_against_task(manifest, task)
    with pytest.raises(ConsiliumError, match=text):
        check_against_task(manifest, task)


@pytest.mark.parametrize("content", [b"site: [", b"\xff\xfe\x00", b"a: b: c"])
def test_what_is_no_yaml_says_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.yaml").write_bytes(content)
    assert "not valid YAML" in refused(tmp_path)


def test_what_is_no_yaml_is_named_with_its_line_and_column(tmp_path: Path) -> None:
    (tmp_path / "manifest.yaml").write_text("site: ash\npatients: a: b\n")
    assert "not valid YAML, line 2, column 12" in refused(tmp_path)


def test_codes_without_quotes_that_yaml_reads_as_true_and_false_are_called_so(tmp_path: Path) -> None:
    variables = {"sex": {"column": "smoker", "codes": {True: "M"}}}
    write(tmp_path, modalities={"admission": {"kind": "table", "variables": variables}})
    assert "put them in quotes" in refused(tmp_path)


@pytest.mark.parametrize("content", ["", "3", "[1, 2]"])
def test_what_is_no_mapping_says_so(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.yaml").write_text(content)
    assert "does not fit the manifest format" in refused(tmp_path)


def test_yaml_cannot_build_objects(tmp_path: Path) -> None:
    (tmp_path / "manifest.yaml").write_text("site: !!python/object/apply:os.system ['touch owned']")
    assert "not valid YAML" in refused(tmp_path)


def test_a_missing_manifest_says_what_to_write(tmp_path: Path) -> None:
    text = refused(tmp_path)
    assert "No manifest" in text
    assert "README" in text


@pytest.mark.parametrize("content", [None, "site: [", "pateint: x"])
def test_a_fault_names_the_whole_path_unless_the_caller_gives_it_a_name(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "manifest.yaml").write_text(content)
    assert str(tmp_path / "manifest.yaml") in refused(tmp_path)
    with pytest.raises(ConsiliumError) as error:
        load_manifest(tmp_path, "the manifest")
    assert str(tmp_path) not in str(error.value)
    assert "the manifest" in str(error.value)


def test_hospitals_are_the_folders_with_a_manifest_in_the_order_of_their_names_without_the_reference_set(tmp_path: Path) -> None:
    for name in ("b", "a", "reference"):
        write_folder(tmp_path / name, make_task(modalities=["admission"]), 4)
    (tmp_path / "c").mkdir()
    assert [p.name for p in hospital_folders(tmp_path)] == ["a", "b"]
