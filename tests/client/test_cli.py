"""``consilium-client``: a hospital looks over its own files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from pydantic import TypeAdapter
from typer.testing import CliRunner

from client import cli
from common.data.manifest import FILE_NAME
from common.errors import ConsiliumError, TooManyFaults
from common.task import Task
from simulations.benchmarks import demo
from simulations.consortium import write_tiny
from tests.common.samples import make_task, write_folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "sites"
    write_tiny(folder)
    return folder


@pytest.fixture
def alder(tiny: Path, tmp_path: Path) -> Path:
    """A copy of a hospital with labs and notes, for a test to spoil."""
    return shutil.copytree(tiny / "alder", tmp_path / "alder")


def check(*words: object) -> Any:
    return CliRunner().invoke(cli.app, ["check", *map(str, words)])


def lose_notes(folder: Path, number: int) -> list[tuple[str, str, str]]:
    """Deletes notes; returns the file, row and column that point at each."""
    notes = pd.read_csv(folder / "patients.csv")["notes"].dropna().iloc[:number]
    for name in notes:
        (folder / name).unlink()
    return [("patients.csv", str(row + 2), "notes") for row in notes.index]


def listed(output: str) -> list[tuple[str, ...]]:
    """Returns file, row and column of every line of the table of findings."""
    lines = (line.split("│")[1:4] for line in output.splitlines() if line.startswith("│"))
    return [tuple(cell.strip() for cell in line) for line in lines]


def change(folder: Path, old: str, new: str) -> None:
    text = (folder / FILE_NAME).read_text(encoding="utf-8")
    assert old in text
    (folder / FILE_NAME).write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize("named", ["", FILE_NAME])
def test_a_sound_site_is_counted(tiny: Path, named: str) -> None:
    table = pd.read_csv(tiny / "alder" / "patients.csv")
    done = check(tiny / "alder" / named)
    assert done.exit_code == 0, done.output
    first, used, modalities, labels, splits, findings = done.output.splitlines()
    assert (first, used) == ("Site: alder", f"Visits used: {len(table)} of {len(table)} rows")
    assert modalities.startswith("Visits per modality: ")
    assert {"admission 0", "cxr 0", f"labs {len(table)}", f"notes {table['notes'].notna().sum()}"} == set(
        modalities.split(": ")[1].split(", ")
    )
    assert labels == f"Visits per label: deterioration {table['deterioration_48h'].sum()}"
    shares = [int(n) for n in re.findall(r"\d+", splits)]
    assert splits.startswith("Visits per split: train ") and sum(shares) == len(table) and min(shares) > 0
    assert findings == "Findings: 0"


def without_labels(folder: Path) -> Path:
    raw = yaml.safe_load((folder / FILE_NAME).read_text(encoding="utf-8"))
    (folder / FILE_NAME).write_text(yaml.safe_dump({k: v for k, v in raw.items() if k != "labels"}), encoding="utf-8")
    return folder


def test_an_unlabelled_reference_set_has_no_label_counts(alder: Path) -> None:
    done = check(without_labels(alder).rename(alder.parent / "reference"))
    assert done.exit_code == 0 and "Visits per label: none" in done.output


def test_a_hospital_without_labels_is_refused_as_every_run_refuses_it(alder: Path, tiny: Path, tmp_path: Path) -> None:
    done = check(without_labels(alder))
    assert done.exit_code == 1 and "Site 'alder' has no labels" in str(done.exception)
    assert "in a folder named 'reference'" in str(done.exception)
    shutil.copytree(tiny, tmp_path / "sites")
    for site in ("birch", "reference"):
        without_labels(tmp_path / "sites" / site)
    done = check(tmp_path / "sites")
    assert done.exit_code == 1 and re.findall("Refused: (.*) has no labels", done.output) == ["Site 'birch'"]


def test_two_sites_of_one_name_are_refused_as_a_run_on_own_data_refuses_them(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "sites")
    shutil.copytree(tiny / "alder", tmp_path / "sites" / "cedar")
    done = check(tmp_path / "sites")
    assert done.exit_code == 1 and re.findall("Refused: (.*)", done.output) == [
        "The manifests in 'alder' and 'cedar' name their site 'alder' alike. Give each a name of its own."
    ]


def test_a_missing_file_is_listed_with_its_row_and_column(alder: Path) -> None:
    rows = len(pd.read_csv(alder / "patients.csv"))
    lost = lose_notes(alder, 2)
    done = check(alder)
    assert done.exit_code == 1
    assert f"Visits used: {rows - 2} of {rows} rows" in done.output and "Findings: 2" in done.output
    assert listed(done.output) == lost


def test_a_site_that_refuses_lists_every_fault_too(alder: Path) -> None:
    lost = lose_notes(alder, 9)
    done = check(alder)
    assert done.exit_code == 1 and "Findings: 9" in done.output
    rows = len(pd.read_csv(alder / "patients.csv"))
    assert f"Rows with a fault: 9 of {rows}, limits.bad_rows is 0.05" in done.output
    assert listed(done.output) == lost
    assert isinstance(done.exception, TooManyFaults) and "9" not in str(done.exception)


def test_rows_that_name_one_visit_are_listed(alder: Path) -> None:
    table = pd.read_csv(alder / "patients.csv")
    pd.concat([table, table.iloc[[4]]]).to_csv(alder / "patients.csv", index=False)
    done = check(alder)
    assert done.exit_code == 1 and isinstance(done.exception, TooManyFaults)
    assert listed(done.output) == [("patients.csv", str(len(table) + 2), "visit_id")] and "row 6" in done.output


def test_a_fault_is_judged_by_the_task_of_the_experiment(alder: Path) -> None:
    change(alder, "unit: mmol/L", "unit: mg/dL")
    refused = check(alder).exception
    assert isinstance(refused, ConsiliumError)
    assert "'labs.lactate' is in 'mg/dL', the task counts it in 'mmol/L'" in str(refused)
    unknown = check(alder, "--experiment", "demmo").exception
    assert isinstance(unknown, ConsiliumError) and "did you mean 'demo'?" in str(unknown)


def test_a_refusal_is_one_message_and_exit_code_1(
    alder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change(alder, "unit: mmol/L", "unit: mg/dL")
    monkeypatch.setattr("sys.argv", ["consilium-client", "check", str(alder)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("Error: Manifest of site 'alder': 'labs.lactate' is in 'mg/dL'")


def test_a_column_that_tells_nothing_is_a_warning_and_no_fault(alder: Path) -> None:
    for file in (alder / "labs").iterdir():
        pd.read_parquet(file).assign(LAC=1.5).to_parquet(file)
    done = check(alder)
    assert done.exit_code == 0, done.output
    assert "Findings: 0" in done.output and "Warnings: 1" in done.output
    assert [line[:2] for line in listed(done.output) if line[0]] == [("patients.csv", "1")]


def test_a_folder_of_sites_is_checked_whole_and_its_patients_are_compared(tiny: Path, tmp_path: Path) -> None:
    sites = tmp_path / "sites"
    shutil.copytree(tiny, sites)
    done = check(sites)
    assert done.exit_code == 0, done.output
    assert re.findall("Site: (.*)", done.output) == ["alder", "birch", "reference"]
    assert (
        done.output.splitlines()[-1]
        == "In all: 0 refused (see above), 0 visit(s) left out, 0 warning(s) within sites, 3 between sites"
    )
    shutil.copytree(sites / "alder", sites / "cedar")
    change(sites / "cedar", "site: alder", "site: cedar")
    change(sites / "birch", "unit: a", "unit: mo")
    done = check(sites)
    assert done.exit_code == 1
    assert "Refused: " in done.output and "is in 'mo'" in " ".join(done.output.split())
    table = pd.read_csv(sites / "alder" / "patients.csv")
    assert f"{table['patient_id'].nunique()} patient(s), here the first, are also at site 'alder'" in " ".join(
        done.output.split()
    )
    assert not any(str(name) in done.output for name in table["patient_id"])
    table.drop(columns="patient_id").to_csv(sites / "alder" / "patients.csv", index=False)
    done = check(sites)
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    assert "lacks column(s) patient_id" in " ".join(done.output.split())


def test_files_are_checked_for_a_task_of_ones_own(alder: Path, tmp_path: Path) -> None:
    task = {"name": "own", "type": "binary", "outputs": ["deterioration"], "modalities": {"notes": {"kind": "text"}}}
    (tmp_path / "TASK.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    refused = check(alder, "--task", tmp_path / "TASK.yaml").exception
    assert isinstance(refused, ConsiliumError) and "modality 'labs' is not in task 'own'" in str(refused)


def with_own_task(tiny: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Returns a task file with the labs of the demonstration, and two hospitals that hold them."""
    raw = yaml.safe_load((Path(demo.__file__).parents[2] / "configs" / "task" / "demo.yaml").read_text(encoding="utf-8"))
    (tmp_path / "TASK.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return tmp_path / "TASK.yaml", Path(shutil.copytree(tiny, tmp_path / "sites"))


def test_splits_are_shown_as_a_run_on_own_data_will_have_them(tiny: Path, tmp_path: Path) -> None:
    task, sites = with_own_task(tiny, tmp_path)
    tested = [int(n) for n in re.findall(r"validation \d+, test (\d+)", check(sites, "--task", task).output)]
    assert len(tested) == 3 and min(tested[:2]) > 0 and tested[2] == 0
    raw = yaml.safe_load((sites / "birch" / FILE_NAME).read_text(encoding="utf-8"))
    (sites / "birch" / FILE_NAME).write_text(yaml.safe_dump(raw | {"role": "evaluate"}), encoding="utf-8")
    tested = [int(n) for n in re.findall(r"validation \d+, test (\d+)", check(sites, "--task", task).output)]
    assert tested == [0, len(pd.read_csv(sites / "birch" / "patients.csv")), 0]


def test_a_folder_without_a_manifest_is_warned_of_by_name_and_hidden_ones_are_not(tiny: Path, tmp_path: Path) -> None:
    sites = Path(shutil.copytree(tiny, tmp_path / "sites"))
    (sites / "cedar").mkdir()
    (sites / ".cache").mkdir()
    done = check(sites)
    assert done.exit_code == 0 and "Warnings between sites: 4" in done.output and ".cache" not in done.output
    assert listed(done.output)[0][0] == "cedar/manifest.yaml"  # the others are of patients, numbered alike everywhere
    assert "0 warning(s) within sites, 4 between sites" in done.output


def test_several_folders_may_be_named_and_are_compared(tiny: Path, tmp_path: Path) -> None:
    twin = Path(shutil.copytree(tiny / "alder", tmp_path / "twin"))
    done = check(tiny / "alder", twin)
    assert re.findall("Site: (.*)", done.output) == ["alder", "alder"]
    assert "are also at site 'alder'" in " ".join(done.output.split())


def test_many_rows_with_the_same_problem_are_told_once(alder: Path) -> None:
    change(alder, "site: alder", "limits: {bad_rows: 1}\nsite: alder")
    lost = lose_notes(alder, 30)
    done = check(alder)
    assert "Findings: 30" in done.output and "the same in 20 more rows" in done.output
    assert listed(done.output) == [*lost[:10], ("patients.csv", f"to {lost[-1][1]}", "notes")]
    assert "consilium-client check" not in done.output


def test_a_missing_file_that_all_visits_share_is_one_line_with_file_and_manifests_key(tmp_path: Path) -> None:
    task, folder = make_task(modalities=["labs"]), tmp_path / "ash"
    write_folder(folder, task, limits={"bad_rows": 1.0})
    (folder / "labs.parquet").unlink()
    (tmp_path / "TASK.yaml").write_text(yaml.safe_dump(TypeAdapter(Task).dump_python(task, mode="json")), encoding="utf-8")
    done = check(folder, "--task", tmp_path / "TASK.yaml")
    assert done.exit_code == 1 and "Visits used: 0 of 40 rows" in done.output and "Findings: 30" in done.output
    assert [line for line in listed(done.output) if line[0]] == [
        ("labs.parquet", "1", "labs"),
        *(("patients.csv", str(row), "") for row in range(4, 42, 4)),
        ("patients.csv", "1", "patient_id"),
    ]
    assert "modalities.labs in the manifest" in done.output and "(30 visits)" in done.output


def test_visits_that_hold_nothing_are_told_and_counted_and_no_fault(tiny: Path, tmp_path: Path) -> None:
    sites = Path(shutil.copytree(tiny, tmp_path / "sites"))
    table = pd.read_csv(sites / "alder" / "patients.csv").astype(object)
    table.loc[[3, 8, 9], ["labs", "notes"]] = None
    table.to_csv(sites / "alder" / "patients.csv", index=False)
    done = check(sites)
    assert done.exit_code == 0 and f"Visits used: {len(table) - 3} of {len(table)} rows" in done.output
    assert "Left out, and no fault: 3" in done.output and "every modality is empty" in done.output
    assert [line for line in listed(done.output) if line[0] and not line[2]] == [
        ("patients.csv", row, "") for row in ("5", "10", "11")
    ]
    assert "0 refused (see above), 3 visit(s) left out" in done.output


def test_a_site_of_another_task_is_told_to_name_it(alder: Path) -> None:
    change(alder, "deterioration: ", "class: ")
    said = str(check(alder).exception)
    assert "label 'class' is not in task 'demo-deterioration'" in said and "Pass --task TASK.yaml if the site is for" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"outputs": ["a", "b", "c"]}, "TASK.yaml: outputs: a binary task has exactly one output, yours has 3"),
        ({"type": "multilabel", "outputs": [True, False]}, "TASK.yaml: outputs: YAML reads yes and no as true and false"),
        ({"modalities": {"m": {"kind": "tabel", "features": ["a"]}}}, "m.kind='tabel'; did you mean 'table'? Known: audio,"),
        ({"modalities": {"m": {"kind": "table"}}}, "TASK.yaml: modalities.m: a modality of kind 'table' needs 'features'"),
        ({"modalities": [{"kind": "table", "features": ["SECRET"]}]}, "TASK.yaml: task.modalities: Input should be"),
    ],
)
def test_a_fault_of_the_task_is_told_once_with_file_and_key_and_without_the_task(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    task = {"name": "t", "type": "binary", "outputs": ["a"], "modalities": {"m": {"kind": "table", "features": ["SECRET"]}}}
    (tmp_path / "TASK.yaml").write_text(yaml.safe_dump(task | change), encoding="utf-8")
    told = str(check(tmp_path, "--task", tmp_path / "TASK.yaml").exception)
    assert told.count(said) == 1 and "SECRET" not in told and told.count("TASK.yaml") == 1


def test_a_site_that_refuses_is_not_sent_to_the_command_that_it_runs(alder: Path) -> None:
    lose_notes(alder, 30)
    assert "consilium-client" not in str(check(alder).exception)


def without_series(folder: Path) -> tuple[Path, Path]:
    """Returns a task of two tables, and a site of it whose third visit holds nothing; nobody there has a scan."""
    folder.mkdir()
    modalities = {name: {"kind": "table", "features": [name]} for name in ("crp", "ct")}
    task = {"name": "own", "type": "binary", "outputs": ["ill"], "modalities": modalities}
    (folder / "TASK.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    head = {"site": "ash", "patients": "patients.csv", "patient": "row", "visit": "row", "labels": {"ill": "ill"}}
    held = {name: {"kind": "table", "variables": "same"} for name in modalities}
    (folder / FILE_NAME).write_text(yaml.safe_dump(head | {"modalities": held}), encoding="utf-8")
    table = pd.DataFrame({"row": range(40), "ill": [0, 1] * 20, "crp": [i / 7 for i in range(40)], "ct": None})
    table.loc[2, "crp"] = None
    table.to_csv(folder / "patients.csv", index=False)
    return folder, folder / "TASK.yaml"


def test_a_modality_that_no_visit_has_is_a_warning(tmp_path: Path) -> None:
    folder, task = without_series(tmp_path / "ash")
    done = check(folder, "--task", task)
    said = " ".join(done.output.replace("│", " ").split())
    assert done.exit_code == 0 and "Warnings: 1" in said and "no visit that is used has a value of 'ct'" in said
    assert ("patients.csv", "1", "") in listed(done.output)
    change(folder, "  ct:\n    kind: table\n    variables: same\n", "")
    assert "Warnings" not in check(folder, "--task", task).output
    done = check(tmp_path, "--task", task)  # a folder of sites, of which somebody has to hold it
    assert done.exit_code == 0 and ("task file", "1", "ct") in listed(done.output)
    assert "0 warning(s) within sites, 1 between sites" in done.output
    assert "task file" not in check(tmp_path, "--task", task, "--predict").output


@pytest.mark.parametrize(("held", "warned"), [(4, True), (20, False)])
def test_a_modality_that_too_few_visits_have_for_a_run_is_a_warning_between_sites(
    tmp_path: Path, held: int, warned: bool
) -> None:
    folder, task = without_series(tmp_path / "ash")
    table = pd.read_csv(folder / "patients.csv").astype({"ct": float})
    table.loc[: held - 1, "ct"] = [i / 3 for i in range(held)]
    table.to_csv(folder / "patients.csv", index=False)
    assert (("task file", "1", "ct") in listed(check(tmp_path, "--task", task).output)) == warned
    shutil.copytree(folder, tmp_path / "birch")  # of the same name, or refused: it may hold what the other lacks
    (tmp_path / "birch" / FILE_NAME).write_text("site: birch\n", encoding="utf-8")
    assert "task file" not in check(tmp_path, "--task", task).output


def test_series_are_spoken_of_only_where_the_task_has_some(tmp_path: Path) -> None:
    folder, task = without_series(tmp_path / "ash")
    said = " ".join(check(folder, "--task", task).output.replace("│", " ").split())
    assert "every modality is empty. Fill one in" in said and "series" not in said


@pytest.mark.parametrize("alone", [True, False])
def test_a_folder_that_shall_only_be_predicted_is_checked_without_labels(tmp_path: Path, alone: bool) -> None:
    folder, task = without_series(tmp_path / "ash")
    without_labels(folder)
    place = folder if alone else tmp_path
    refused = check(place, "--task", task)
    assert refused.exit_code == 1 and "has no labels" in f"{refused.output}{refused.exception}"
    done = check(place, "--task", task, "--predict")
    assert done.exit_code == 0 and "Visits per label: none" in done.output, done.output
    table = pd.read_csv(folder / "patients.csv").astype(object)
    table.loc[:9, "crp"] = "?"
    table.drop(columns="ill").to_csv(folder / "patients.csv", index=False)
    done = check(place, "--task", task, "--predict")
    assert done.exit_code == 1 and "Findings: 10" in done.output and "Visits used: 30 of 40 rows" in done.output
