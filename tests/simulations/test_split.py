"""One table becomes sites: whole patients, alike in outcome, with what they were told to hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from common.config import SplitConfig, load_config
from common.data.cohort import Cohort
from common.data.folder import open_cohort
from common.data.manifest import load_manifest
from common.errors import ConsiliumError
from simulations.split import Wish, split_table

RNA = ["rna_1", "rna_2"]
MODALITIES = ["rna=rna_*", "clinic=age,sex"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """240 visits of 120 patients at three hospitals: two genes, an age, a sex, three classes and two events."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"pid": [f"p{i // 2}" for i in range(240)], "ward": np.repeat(["St. Anne", "north", "south"], 80)})
    frame[RNA] = rng.normal(size=(240, 2)).round(3)
    frame["age"] = rng.integers(20, 90, 240).astype(float)
    frame["sex"] = rng.choice(["F", "M"], 240)
    frame["stage"] = np.repeat(rng.permutation(np.repeat(["I", "II", "III"], 40)), 2)
    frame["died"], frame["bled"] = (frame["stage"] == "III").astype(int), frame["age"] > 50
    frame.loc[5, RNA] = np.nan
    frame.to_csv(tmp_path / "all.csv", index=False)
    return tmp_path / "all.csv"


def split(table: Path, said: list[str] | None = None, **wish: Any) -> tuple[pd.DataFrame, Path, Path]:
    """Returns what was told, the task file and the sites."""
    task, out = table.parent / "TASK.yaml", table.parent / "sites"
    wish = {"labels": ["died"], "modalities": MODALITIES} | wish
    return split_table(table, task, out, Wish(**wish), (said if said is not None else []).append), task, out


def opened(out: Path, task: Path) -> dict[str, Cohort]:
    config = load_config("custom", [f"task_file={task}"])
    return {f.name: open_cohort(f, load_manifest(f), config.task, SplitConfig(), 0) for f in sorted(out.iterdir())}


def test_every_visit_is_at_one_site_and_patients_stay_whole(table: Path) -> None:
    told, task, out = split(table, sites=3, patient="pid", test=0.25, reference=0.1)
    cohorts = opened(out, task)
    assert list(cohorts) == list(told["site"]) == ["reference", "site-1", "site-2", "site-3", "test"]
    assert sum(map(len, cohorts.values())) == told["visits"].sum() == 240
    people = [set(pd.read_csv(out / s / "patients.csv")["pid"]) for s in cohorts]
    assert sum(map(len, people)) == len(set.union(*people)) == 120
    assert (told["patients"] * 2 == told["visits"]).all()
    shares = told.set_index("site")["patients"] / 120
    assert shares["test"] == pytest.approx(0.25, abs=0.02) and shares["reference"] == pytest.approx(0.1, abs=0.02)
    assert shares[["site-1", "site-2", "site-3"]].max() - shares[["site-1", "site-2", "site-3"]].min() < 0.02
    events = [float(c.labels.mean()) for c in cohorts.values()]
    assert max(events) - min(events) < 0.1
    assert load_manifest(out / "test").role == "evaluate"
    assert not any(c.findings for c in cohorts.values())


def test_numbers_and_categories_are_told_apart_and_values_stay(table: Path) -> None:
    _, task, out = split(table, sites=1, reference=0.0)
    raw = yaml.safe_load(task.read_text())
    assert raw["modalities"] == {
        "rna": {"kind": "table", "features": RNA},
        "clinic": {"kind": "table", "features": {"age": {}, "sex": {"codes": ["F", "M"]}}},
    }
    cohort = opened(out, task)["site-1"]
    frame = pd.read_csv(table)
    np.testing.assert_allclose(cohort.inputs["rna"].numpy(), frame[RNA].to_numpy(np.float32))
    assert cohort.present[:, 0].tolist() == frame["rna_1"].notna().tolist()
    assert cohort.inputs["clinic"][:, 1].tolist() == (frame["sex"] == "F").astype(float).tolist()


@pytest.mark.parametrize(
    ("labels", "kind", "outputs", "manifest"),
    [
        (["died"], "binary", ["died"], {"died": "died"}),
        (["bled"], "binary", ["bled"], {"bled": "bled"}),
        (["died", "bled"], "multilabel", ["died", "bled"], {"died": "died", "bled": "bled"}),
        (["stage"], "multiclass", ["I", "II", "III"], {"class": "stage"}),
        (["age"], "regression", ["age"], {"age": "age"}),
    ],
)
def test_labels_tell_the_kind_of_task(table: Path, labels: list[str], kind: str, outputs: list[str], manifest: Any) -> None:
    _, task, out = split(table, sites=2, labels=labels, modalities=["rna=rna_*"])
    raw = yaml.safe_load(task.read_text())
    assert (raw["type"], raw["outputs"], load_manifest(out / "site-1").labels) == (kind, outputs, manifest)
    assert all(c.labelled and not c.findings for c in opened(out, task).values())


def test_a_column_names_the_sites(table: Path) -> None:
    told, task, out = split(table, by="ward", patient="pid", reference=0.0)
    assert list(told["site"]) == ["St.-Anne", "north", "south"]
    assert [len(c) for c in opened(out, task).values()] == [80, 80, 80]


def test_sites_hold_only_what_they_are_told_to(table: Path) -> None:
    told, task, out = split(table, sites=2, test=0.2, hold=["site-1=clinic", "test=rna"])
    assert told.set_index("site").loc[["site-1", "test"], ["rna", "clinic"]].min(axis=1).tolist() == [0, 0]
    assert list(load_manifest(out / "site-1").modalities) == ["clinic"]
    assert set(RNA).isdisjoint(pd.read_csv(out / "site-1" / "patients.csv"))
    assert opened(out, task)["test"].present.any(0).tolist() == [True, False]


def test_visits_lack_modalities_at_random_and_never_the_last_one(table: Path) -> None:
    _, task, out = split(table, sites=1, reference=0.0, missing=0.5)
    cohort = opened(out, task)["site-1"]
    assert len(cohort) == 240
    assert 0.55 < float(cohort.present.float().mean()) < 0.8
    again, other = table.parent / "again", table.parent / "other"
    for folder, seed in ((again, 0), (other, 1)):
        split_table(table, task, folder, Wish(sites=1, reference=0.0, missing=0.5, seed=seed))
    assert (again / "site-1" / "patients.csv").read_bytes() == (out / "site-1" / "patients.csv").read_bytes()
    assert (other / "site-1" / "patients.csv").read_bytes() != (out / "site-1" / "patients.csv").read_bytes()


def test_a_task_that_is_there_already_names_the_columns(table: Path) -> None:
    task = {
        "name": "own",
        "type": "multiclass",
        "outputs": ["II", "I", "III"],
        "modalities": {"clinic": {"kind": "table", "features": ["age"]}},
    }
    (table.parent / "TASK.yaml").write_text(yaml.safe_dump(task))
    _, file, out = split(table, sites=2, labels=["stage"], modalities=[])
    assert yaml.safe_load(file.read_text()) == task
    assert {"age", "stage"} <= set(pd.read_csv(out / "site-1" / "patients.csv")) - {"sex", *RNA}


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"sites": 2, "by": "ward"}, "either how many sites"),
        ({}, "either how many sites"),
        ({"sites": 2, "test": 0.9}, "leave nobody to train on"),
        ({"sites": 2, "labels": []}, "needs --label COLUMN"),
        ({"sites": 2, "labels": ["dyed"]}, "no column 'dyed'; did you mean 'died'"),
        ({"sites": 2, "labels": ["died", "stage"]}, "column 'stage' holds other values"),
        ({"sites": 2, "labels": ["pid"]}, "120 classes, more than 50"),
        ({"sites": 44}, r"216 patients are left for them, fewer than 5 each.*at most 43"),
        ({"sites": 2, "modalities": ["rna=rns_*"]}, r"no column fits 'rns_\*'"),
        ({"sites": 2, "modalities": ["rna"]}, "is not of the form NAME=COLUMN"),
        ({"sites": 2, "modalities": ["genes=rna_1,died"]}, "'died' is a label"),
        ({"sites": 2, "modalities": [*MODALITIES, "labs=age"]}, "'age' stands in the modalities 'clinic' and 'labs'"),
        ({"sites": 2, "modalities": ["who=pid"]}, r"all\.csv: column 'pid' holds 120 different texts"),
        ({"sites": 2, "modalities": ["1st=age"]}, "--modality 1st: '1st' is no name for a modality"),
        ({"sites": 2, "modalities": ["all=*"]}, "--modality all: 'all' is no name for a modality"),
        ({"sites": 2, "modalities": ["rna=RNA_*"]}, r"no column fits 'RNA_\*'; did you mean 'rna_\*'\?$"),
        ({"sites": 2, "hold": ["site-3=rna"]}, "no site 'site-3'; did you mean"),
        ({"sites": 2, "hold": ["site-1=rnb"]}, "no modality 'rnb'; did you mean 'rna'"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(table: Path, wish: dict[str, Any], said: str) -> None:
    with pytest.raises(ConsiliumError, match=said):
        split(table, **wish)
    assert [f.name for f in table.parent.iterdir()] == ["all.csv"]


def test_stray_words_in_columns_of_numbers_are_named_with_file_and_row(table: Path) -> None:
    frame = pd.read_csv(table, dtype=str)
    frame.loc[7, "age"], frame.loc[[3, 4], "rna_2"] = "<20", "1,4"
    frame.to_csv(table, index=False)
    said = r"all\.csv: 2 column\(s\) hold .*: 'rna_2' in 2 row\(s\), first row 5, 'age' in 1 row\(s\), first row 9\. A decimal"
    with pytest.raises(ConsiliumError, match=said):
        split(table, sites=2)


def test_a_folder_with_content_is_left_alone(table: Path) -> None:
    (table.parent / "sites").mkdir()
    (table.parent / "sites" / "mine.txt").write_text("keep")
    with pytest.raises(ConsiliumError, match="is not empty"):
        split(table, sites=2)
    assert (table.parent / "sites" / "mine.txt").read_text() == "keep"


def test_columns_of_true_and_false_may_be_taken_away(table: Path) -> None:
    frame = pd.read_csv(table)
    frame["smoker"] = np.arange(len(frame)) % 3 == 0
    frame.to_csv(table, index=False)
    _, task, out = split(table, sites=2, modalities=[*MODALITIES, "habits=smoker"], missing=0.4)
    cohorts = opened(out, task)
    held = sum(int(c.present[:, list(c.task.modalities).index("habits")].sum()) for c in cohorts.values())
    assert 0 < held < 240 and not any(c.findings for c in cohorts.values())


def test_sites_of_a_regression_name_the_unit_of_their_task(table: Path) -> None:
    task = {"name": "age", "type": "regression", "outputs": ["age"], "units": {"age": "a"}}
    modalities = {"rna": {"kind": "table", "features": RNA}}
    (table.parent / "TASK.yaml").write_text(yaml.safe_dump(task | {"modalities": modalities}))
    told, file, out = split(table, sites=2, labels=["age"], modalities=(), test=0.2, reference=0.1)
    assert sum(map(len, opened(out, file).values())) == 239  # one row has no gene
    assert told.set_index("site")["patients"][["reference", "test"]].tolist() == pytest.approx([24, 48], abs=2)


OF_NUMBERS = {"type": "regression", "outputs": ["los"]}
OF_CLASSES = {"type": "multiclass", "outputs": ["I", "II"]}
OF_EVENTS = {"type": "binary", "outputs": ["death"]}


@pytest.mark.parametrize(
    ("task", "column", "said"),
    [
        (
            OF_NUMBERS,
            "stage",
            r"is of type regression: column 'stage' must hold a number, and does not in 240 row\(s\), first row 2",
        ),
        (OF_CLASSES, "stage", r"column 'stage' must hold one of the classes I, II, and does not in 80 row\(s\)"),
        (OF_EVENTS, "age", r"is of type binary: column 'age' must hold 0 or 1"),
    ],
)
def test_labels_that_do_not_fit_a_task_that_is_there_are_refused(table: Path, task: Any, column: str, said: str) -> None:
    modalities = {"rna": {"kind": "table", "features": RNA}}
    (table.parent / "TASK.yaml").write_text(yaml.safe_dump({"name": "own", "modalities": modalities} | task))
    with pytest.raises(ConsiliumError, match=said):
        split(table, sites=2, labels=[column], modalities=())
    assert not (table.parent / "sites").exists()


def test_a_label_column_of_another_name_is_said_to_be_the_output(table: Path) -> None:
    modalities = {"rna": {"kind": "table", "features": RNA}}
    (table.parent / "TASK.yaml").write_text(yaml.safe_dump({"name": "own", "modalities": modalities} | OF_EVENTS))
    said: list[str] = []
    split(table, said, sites=2, labels=["bled"], modalities=())
    assert said[0] == "Column 'bled' is taken for output 'death' of task 'own'." and len(said) == 2


@pytest.mark.parametrize(
    ("features", "wish", "named"),
    [
        (["age", "died"], {"sites": 2}, "died"),
        (["pid", "age"], {"sites": 2, "patient": "pid"}, "pid"),
        (["ward"], {"by": "ward"}, "ward"),
    ],
)
def test_a_task_that_is_there_may_not_read_labels_or_names(table: Path, features: Any, wish: Any, named: str) -> None:
    task = {"name": "own", "modalities": {"clinic": {"kind": "table", "features": features}}} | OF_EVENTS
    (table.parent / "TASK.yaml").write_text(yaml.safe_dump(task))
    with pytest.raises(
        ConsiliumError, match=rf"TASK\.yaml: feature '{named}' of modality 'clinic' is a label, or names patients"
    ):
        split(table, labels=["died"], modalities=(), **wish)
    assert not (table.parent / "sites").exists()
    split(table, labels=["bled"] if named == "died" else ["died"], modalities=(), sites=2)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["died"], "120 row(s) without 'died' are left out (first: row 3)."),
        (["bled", "died"], "160 row(s) without 'bled' or 'died' are left out (first: row 2)."),
    ],
)
def test_rows_without_a_label_are_left_out_and_said_to_be(table: Path, labels: list[str], said: str) -> None:
    frame = pd.read_csv(table)
    frame["died"], frame["bled"] = (
        frame["died"].where(frame.index % 2 == 0),
        frame["bled"].astype(float).where(frame.index % 3 > 0),
    )
    frame.to_csv(table, index=False)
    told: list[str] = []
    dealt, task, out = split(table, told, sites=2, labels=labels)
    assert told[len(labels)] == said and len(told) == len(labels) + 2
    assert dealt["visits"].sum() == int(frame[labels].notna().all(axis=1).sum()) == 240 - int(said.split()[0])
    assert not any(c.findings for c in opened(out, task).values())


def test_of_two_texts_it_is_said_how_to_make_one_outcome_of_them(table: Path) -> None:
    frame = pd.read_csv(table)
    frame["died"] = frame["died"].map({0: "no", 1: "yes"})
    frame.to_csv(table, index=False)
    told: list[str] = []
    _, task, _ = split(table, told, sites=2)
    assert yaml.safe_load(task.read_text())["outputs"] == ["no", "yes"]
    assert "two values of 'died' are two classes" in told[-1] and "binary: write the column as 0 and 1, remove" in told[-1]


def test_names_of_sites_are_written_in_plain_letters_and_understood_as_they_were(table: Path) -> None:
    frame = pd.read_csv(table)
    frame["ward"] = frame["ward"].replace({"north": "Köln-Süd", "south": "7"})
    frame.to_csv(table, index=False)
    said: list[str] = []
    told, _, out = split(table, said, by="ward", patient="pid", reference=0.0, hold=["Köln-Süd=rna"])
    assert list(told["site"]) == ["7", "Koln-Sud", "St.-Anne"]
    assert said[1:3] == ["Site 'Köln-Süd' is written 'Koln-Sud'.", "Site 'St. Anne' is written 'St.-Anne'."]
    (wrote,) = said[3:]
    assert re.fullmatch(r"Written .*\.yaml: binary, died\. Correct it if .*", wrote), wrote
    assert list(load_manifest(out / "Koln-Sud").modalities) == ["rna"]


def test_whole_numbers_stay_whole_where_cells_are_empty(table: Path) -> None:
    _, _, out = split(table, sites=2, reference=0.0, missing=0.4, labels=["died"])
    cells = pd.concat([pd.read_csv(f, dtype=str) for f in out.glob("*/patients.csv")])["age"].dropna()
    assert 0 < len(cells) < 240 and not cells.str.contains(".", regex=False).any()


def test_a_table_without_rows_or_with_one_class_is_called_so(table: Path) -> None:
    frame = pd.read_csv(table)
    frame.assign(stage="I").to_csv(table, index=False)
    with pytest.raises(ConsiliumError, match=r"all\.csv: column 'stage' holds one class alone, 'I'"):
        split(table, sites=2, labels=["stage"])
    frame.iloc[:0].to_csv(table, index=False)
    with pytest.raises(ConsiliumError, match=r"all\.csv has no rows\. Write one per visit"):
        split(table, sites=2)


def test_a_table_that_is_not_there_or_has_semicolons_is_called_so(table: Path) -> None:
    with pytest.raises(ConsiliumError, match=r"al\.csv does not exist; did you mean 'all\.csv'"):
        split(table.with_name("al.csv"), sites=2)
    pd.read_csv(table).to_csv(table, index=False, sep=";")
    with pytest.raises(ConsiliumError, match=r"has no column 'died'\. It is separated by semicolons"):
        split(table, sites=2)
    pd.read_csv(table, sep=";").to_csv(table, index=False, sep=";", decimal=",")
    with pytest.raises(
        ConsiliumError, match=r"all\.csv: the file is separated by semicolons: .* decimal points \(1\.5, not 1,5\)"
    ):
        split(table, sites=2)
