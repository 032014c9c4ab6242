"""The student of a finished run predicts a folder of visits, by one command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from common.config import load_config, to_json
from common.errors import ConsiliumError, TooManyFaults
from common.evaluation.results import load_results
from simulations import cli
from simulations.inproc import run_inproc
from simulations.predict import find_run, predict
from simulations.split import Wish, split_table

QUICK = ("teach.rounds=1", "distill.epochs=1", "refine.rounds=1", "split.test=0")


def made(folder: Path, kind: str) -> Path:
    """Writes TASK.yaml, sites and a finished run: two omics, and one outcome of that kind."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"pid": [f"secret-{i}" for i in range(120)], "ill": np.tile([0, 1], 60)})
    for name in ("rna", "prot"):
        for i in range(3):
            frame[f"{name}_{i}"] = rng.normal(size=120) + frame["ill"]
    frame["stage"], frame["days"] = frame["ill"].map({0: "I", 1: "II"}), 5 + 3 * frame["rna_0"]
    frame.to_csv(folder / "all.csv", index=False)
    modalities = ["rna=rna_1,rna_2", "prot=prot_*"]
    wish = Wish(sites=2, labels=[kind], modalities=modalities, patient="pid", test=0.25, missing=0.2)
    split_table(folder / "all.csv", folder / "TASK.yaml", folder / "sites", wish)
    run_inproc(
        sites=folder / "sites",
        run_dir=folder / "run",
        experiment="custom",
        overrides=[f"task_file={folder / 'TASK.yaml'}", *QUICK],
    )
    return folder


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("binary"), "ill")


@pytest.fixture
def new(binary: Path, tmp_path: Path) -> Path:
    """A folder of visits whose outcome nobody knows, for a test to change."""
    folder = shutil.copytree(binary / "sites" / "test", tmp_path / "new", ignore=shutil.ignore_patterns(".consilium"))
    file = folder / "manifest.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in yaml.safe_load(file.read_text()).items() if k not in ("labels", "role")}))
    return folder


def in_the_run(folder: Path) -> pd.DataFrame:
    """What the run itself predicted of the test site's visits with what they have, a column per output."""
    (file,) = (folder / "sites" / "test" / ".consilium").glob("*/predictions.parquet")
    found = pd.read_parquet(file).query("model == 'student' and pattern == 'all'")
    return found.pivot_table(index="row", columns="output", values="score")


@pytest.mark.parametrize("kind", ["ill", "stage", "days"])
def test_the_command_predicts_what_the_run_predicted(
    binary: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = binary if kind == "ill" else made(tmp_path, kind)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.app, ["predict", str(folder / "run"), str(folder / "sites" / "test")])
    assert done.exit_code == 0, (done.output, done.exception)
    written, ran = pd.read_csv(tmp_path / "scores.csv"), in_the_run(folder)
    assert list(written) == ["row", "pattern", *(["I", "II"] if kind == "stage" else [kind])]
    assert written["row"].tolist() == (ran.index + 2).tolist() and len(written) == 30
    np.testing.assert_allclose(written[list(ran)], ran, rtol=1e-4)
    assert "secret" not in (tmp_path / "scores.csv").read_text() + done.output


def test_rows_are_those_of_the_file_and_patterns_what_they_hold(binary: Path, new: Path, tmp_path: Path) -> None:
    lines = (new / "patients.csv").read_text().splitlines()
    written = predict(binary / "run", new, tmp_path / "deep" / "scores.csv", print)
    table = pd.read_csv(new / "patients.csv")
    held = {name: table[[c for c in map(str, table) if c.startswith(name)]].notna().any(axis=1) for name in ("prot", "rna")}
    for row, pattern in zip(written["row"], written["pattern"], strict=True):
        assert pattern == "+".join(name for name, there in held.items() if there[row - 2])
        assert lines[row - 1].startswith("secret-")
    assert set(written["pattern"]) == {"prot", "rna", "prot+rna"} and written["ill"].between(0, 1).all()
    assert (tmp_path / "deep" / "scores.csv").is_file()


def test_labels_are_not_needed_and_not_read(binary: Path, new: Path, tmp_path: Path) -> None:
    without = predict(binary / "run", new, tmp_path / "without.csv", print)
    file = new / "manifest.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"labels": {"ill": "ill"}}))
    pd.read_csv(new / "patients.csv").assign(ill="unknown").to_csv(new / "patients.csv", index=False)
    pd.testing.assert_frame_equal(predict(binary / "run", file, tmp_path / "with.csv", print), without)


def test_who_is_left_out_is_said_without_naming_anybody(binary: Path, new: Path, tmp_path: Path) -> None:
    file = new / "patients.csv"
    table = pd.read_csv(file, dtype=str)
    omics = [c for c in map(str, table) if c.startswith(("rna", "prot"))]
    table.loc[3, "rna_1"], table.loc[5, omics] = "?", np.nan
    table.to_csv(file, index=False)
    said: list[str] = []
    written = predict(binary / "run", new, tmp_path / "scores.csv", said.append)
    assert {5, 7}.isdisjoint(written["row"]) and len(written) == 28
    text = "\n".join(said)
    assert "patients.csv, row 5, column 'rna_1': column 'rna_1' holds text or infinity" in text
    assert "2 of 30 row(s) are left out: 1 with a fault, 1 with none of rna, prot." in text
    assert "28 visit(s) of task 'all'" in text and "secret" not in text
    table.assign(rna_1=["?"] * 29 + [table["rna_1"].iloc[-1]]).to_csv(file, index=False)
    predicted = predict(binary / "run", new, tmp_path / "one.csv", said.append)
    assert predicted["row"].tolist() == [31] and predicted["ill"].tolist() == pytest.approx(written["ill"].tolist()[-1:])
    assert "... and 19 more faults" in said and "29 of 30 row(s) are left out: 29 with a fault, 0 with none of rna, prot." in said
    table.assign(visit=1, row=1).to_csv(file, index=False)
    with pytest.raises(TooManyFaults, match="names a visit twice"):
        predict(binary / "run", new, tmp_path / "other.csv", said.append)
    table.assign(**dict.fromkeys(omics)).to_csv(file, index=False)
    with pytest.raises(ConsiliumError, match="no visit that can be predicted"):
        predict(binary / "run", new, tmp_path / "other.csv", said.append)


def test_a_run_is_found_by_its_own_directory_a_benchmarks_or_its_student(binary: Path, tmp_path: Path) -> None:
    assert find_run(binary / "run") == find_run(binary / "run" / "student.safetensors") == binary / "run"
    for cell in ("student-no-kd-0-0", "student-1-0", "student-0-0", "teachers-0-0"):
        (tmp_path / "cells" / cell / "run").mkdir(parents=True)
        (tmp_path / "cells" / cell / "run" / "student.safetensors").touch()
    assert find_run(tmp_path).parent.name == "student-0-0"


def test_what_cannot_be_predicted_is_said_and_nothing_is_written(binary: Path, new: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.csv"

    def refused(run: Path, folder: Path, said: str, file: Path = out) -> None:
        with pytest.raises(ConsiliumError, match=said):
            predict(run, folder, file, print)

    refused(binary / "runs", new, r"runs does not exist; did you mean 'run'")
    refused(binary / "sites", new, r"holds no student of a finished run.*runs/custom/<time>")
    refused(binary / "run", binary / "sites", r"No manifest")
    refused(
        binary / "run", new / "patients.csv", r"patients\.csv is a table and no manifest\. Name a folder .*consilium-bench split"
    )
    refused(binary / "run", new, r"patients\.csv exists already.*--out", new / "patients.csv")
    refused(binary / "run", new, r"cannot be written.*--out", new / "patients.csv" / "scores.csv")
    (new / "manifest.yaml").write_text((new / "manifest.yaml").read_text().replace("rna", "dna"))
    refused(binary / "run", new, r"'dna' is not in task 'all'; did you mean 'rna'")
    assert not out.exists()


@pytest.mark.parametrize(
    ("experiment", "override", "said"),
    [
        ("custom", "model.width=7", "does not fit the networks of this version"),
        ("brain-twin", "seed=0", r"finds regions in scans.*writes a table of numbers, and no masks"),
    ],
)
def test_a_student_that_cannot_be_used_is_refused(
    binary: Path, new: Path, tmp_path: Path, experiment: str, override: str, said: str
) -> None:
    run = shutil.copytree(binary / "run", tmp_path / "run")
    words = [override, f"task_file={binary / 'TASK.yaml'}"] if experiment == "custom" else [override]
    (run / "config.json").write_text(json.dumps(to_json(load_config(experiment, words))))
    with pytest.raises(ConsiliumError, match=said):
        predict(run, new, tmp_path / "scores.csv", print)


def test_a_student_whom_nobody_trained_predicts_nothing_and_is_not_evaluated(binary: Path, new: Path, tmp_path: Path) -> None:
    overrides = [f"task_file={binary / 'TASK.yaml'}", *QUICK, "distill.epochs=0", "refine.rounds=0"]
    run_inproc(sites=binary / "sites", run_dir=tmp_path / "run", experiment="custom", overrides=overrides)
    assert {r.method for r in load_results(tmp_path / "run" / "results.json").rows} >= {"teachers", "teacher:rna"}
    assert "student" not in {r.method for r in load_results(tmp_path / "run" / "results.json").rows}
    with pytest.raises(ConsiliumError, match=r"trained teachers alone.*has learned nothing"):
        predict(tmp_path / "run", new, tmp_path / "scores.csv", print)


def test_the_help_of_a_command_tells_its_arguments() -> None:
    assert "Finished run directory" in CliRunner().invoke(cli.app, ["predict", "--help"]).output
