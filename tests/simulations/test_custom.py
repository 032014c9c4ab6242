"""The user's own data as a benchmark: any folder of sites, as it is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from common.errors import ConsiliumError
from simulations import bench, cli
from simulations.benchmarks.base import Benchmark, Split
from simulations.custom import METHODS, custom_benchmark
from simulations.finished import load_cell
from simulations.split import Wish, split_table
from simulations.work import Job, Work
from simulations.workers import run_one

QUICK = ("teach.rounds=1", "distill.epochs=1", "refine.rounds=1", "weights.steps=1")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with TASK.yaml and sites: three omics, four classes, and no 'prot' at the test site."""
    folder = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"stage": np.repeat(["I", "II", "III", "IV"], 45)})
    for name in ("rna", "meth", "prot"):
        for i in range(3):
            frame[f"{name}_{i}"] = rng.normal(size=180) + (frame["stage"] == frame["stage"].unique()[i])
    frame["rna_3"], frame["meth_3"] = 1.0, np.nan
    frame.to_csv(folder / "all.csv", index=False)
    modalities = [f"{name}={name}_*" for name in ("rna", "meth", "prot")]
    wish = Wish(sites=3, labels=["stage"], modalities=modalities, test=0.25, hold=["test=rna,meth", "site-1=prot"], missing=0.1)
    split_table(folder / "all.csv", folder / "TASK.yaml", folder / "sites", wish)
    return folder


@pytest.fixture
def own(written: Path, tmp_path: Path) -> Path:
    """A copy, for a test to change."""
    return shutil.copytree(written, tmp_path / "own")


def benchmark(folder: Path, *settings: str) -> Benchmark:
    return custom_benchmark(folder / "TASK.yaml", folder / "sites", settings)


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(f.relative_to(folder)): (f.read_bytes(), f.stat().st_mtime_ns) for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture(scope="module")
def work(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Work:
    """A run directory whose sites are prepared."""
    work = Work(benchmark(written, *QUICK), tmp_path_factory.mktemp("run"), None, "inproc", False, None)
    work.prepare(Split(0, 0))
    return work


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_where_a_modality_is_absent_at_the_test(work: Work, method: str) -> None:
    job = Job(method, 0, 0)
    run_one(work, job)
    cell = load_cell(work.cell(job), "multiclass")
    assert set(cell.predictions["site"]) == {"test"}
    assert set(cell.predictions["output"]) == {"I", "II", "III", "IV"}
    assert set(cell.predictions["pattern"]) == {"all", "rna", "meth", "meth+rna"}


def test_what_was_prepared_tells_counts_faults_and_columns_that_say_nothing(work: Work) -> None:
    said = work.prepared(Split(0, 0))
    assert said["n"]["test"] == {"visits": 45, "patients": 45, "sites": 1}
    assert said["n"]["train"]["sites"] == 3 and said["n"]["train"]["visits"] + said["n"]["reference"]["visits"] == 135
    assert said["exclusions"] == {}
    silent = {w.split(":")[0] for w in said["warnings"]}
    assert {"test/patients.csv, row 1, column 'rna_3'", "site-1/patients.csv, row 1, column 'meth_3'"} - silent == {
        "site-1/patients.csv, row 1, column 'meth_3'"
    }
    assert "reference/patients.csv, row 1, column 'meth_3'" in silent


def test_the_users_files_stay_as_they_are(work: Work, written: Path) -> None:
    before = files(written)
    assert not any(".consilium" in name for name in before)
    run_one(work, Job("teachers", 0, 0))
    assert files(written) == before
    mirrored = work.sites(Split(0, 0)) / "site-1"
    assert (mirrored / ".consilium").is_dir()
    assert (mirrored / "patients.csv").samefile(written / "sites" / "site-1" / "patients.csv")


def test_a_read_only_folder_of_sites_is_enough(own: Path, tmp_path: Path) -> None:
    for place in [*(own / "sites").rglob("*"), own / "sites"]:
        place.chmod(0o555 if place.is_dir() else 0o444)
    try:
        work = Work(benchmark(own, *QUICK), tmp_path / "run", None, "inproc", False, None)
        work.prepare(Split(0, 0))
        (work.sites(Split(0, 0)) / "site-1" / ".consilium").mkdir()
        shutil.rmtree(work.sites(Split(0, 0)))
    finally:
        for place in [own / "sites", *(own / "sites").iterdir()]:
            place.chmod(0o755)
    assert (own / "sites" / "site-1" / "patients.csv").is_file()


def test_files_that_change_while_a_run_goes_on_end_it(own: Path, tmp_path: Path) -> None:
    planned = benchmark(own)
    with (own / "sites" / "site-2" / "patients.csv").open("a") as file:
        file.write("\n")
    with pytest.raises(ConsiliumError, match="have changed since the run began"):
        planned.prepare(tmp_path / "sites", Split(0, 0))


def test_a_run_is_resumed_only_with_the_same_task_sites_and_settings(own: Path) -> None:
    def plan(*settings: str) -> dict[str, Any]:
        options: dict[str, Any] = {"seeds": None, "only": (), "debug": False, "runtime": "inproc", "variant": None}
        return bench.make_plan(benchmark(own, *settings), **options).as_json()

    first = plan()
    (own / "sites" / "site-1" / ".consilium").mkdir()
    (own / "sites" / "site-1" / ".consilium" / "findings.csv").write_text("file,row\n")
    assert plan() == first
    assert plan("teach.rounds=3") != first
    os.utime(own / "TASK.yaml", (1, 1))
    assert plan() == first
    with (own / "TASK.yaml").open("a") as file:
        file.write("# another\n")
    assert plan() != first


def test_sites_hold_nobody_back_for_what_another_site_or_the_reference_set_does(own: Path) -> None:
    assert benchmark(own).overrides["student"][1:] == ("split.test=0", "split.meta=0")
    assert benchmark(own, "split.test=0.2").overrides["student"][1:] == ("split.test=0", "split.meta=0", "split.test=0.2")
    assert benchmark(own, "weights=lookahead").overrides["student"][1:] == ("split.test=0", "weights=lookahead")
    shutil.rmtree(own / "sites" / "test")
    assert benchmark(own).overrides["student"][1:] == ("split.meta=0",)
    shutil.rmtree(own / "sites" / "reference")
    assert benchmark(own).overrides["student"][1:] == ()
    with pytest.raises(ConsiliumError, match=r"Nobody is left to test on.*split\.test"):
        benchmark(own, "split.test=0")


def change(folder: Path, **fields: Any) -> None:
    file = folder / "manifest.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | fields))


def test_what_cannot_be_run_is_refused_before_anything_starts(own: Path) -> None:
    with pytest.raises(ConsiliumError, match=r"unknown key 'teach.round'"):
        benchmark(own, "teach.round=3")
    with pytest.raises(ConsiliumError, match=r"holds no site.*consilium-bench split"):
        custom_benchmark(own / "TASK.yaml", own)
    with pytest.raises(ConsiliumError, match=r"TSK\.yaml does not exist; did you mean 'TASK\.yaml'"):
        custom_benchmark(own / "TSK.yaml", own / "sites")
    with pytest.raises(ConsiliumError, match=r"site does not exist; did you mean 'sites'"):
        custom_benchmark(own / "TASK.yaml", own / "site")
    (own / "sites" / "forgotten").mkdir()
    with pytest.raises(ConsiliumError, match=r"'forgotten' in .* have no manifest\.yaml\. Write a manifest, or move"):
        benchmark(own)
    (own / "sites" / "forgotten").rename(own / "sites" / ".hidden")
    assert benchmark(own).name == "custom"
    change(own / "sites" / "site-2", site="site-1")
    with pytest.raises(ConsiliumError, match=r"manifests in 'site-\d' and 'site-\d' name their site 'site-1' alike"):
        benchmark(own)
    change(own / "sites" / "site-2", site="site-2", modalities={"rnb": {"kind": "table", "variables": "same"}})
    with pytest.raises(ConsiliumError, match="'rnb' is not in task 'all'; did you mean 'rna'"):
        benchmark(own)
    for site in ("site-1", "site-2", "site-3"):
        shutil.rmtree(own / "sites" / site)
    with pytest.raises(ConsiliumError, match=r"No site in .* trains"):
        benchmark(own)


def test_bad_input_is_named_with_its_site_and_ends_nothing(own: Path, tmp_path: Path) -> None:
    place = own / "sites" / "site-2"
    frame = pd.read_csv(place / "patients.csv", dtype={"rna_0": str})
    frame.loc[3, "rna_0"] = "?"
    frame["stage"] = frame["stage"].replace("IV", "III")
    frame.to_csv(place / "patients.csv", index=False)
    for site in ("site-1", "site-3", "reference"):
        file = own / "sites" / site / "patients.csv"
        pd.read_csv(file).replace({"stage": {"IV": "III"}}).to_csv(file, index=False)
    twice = pd.concat([pd.read_csv(own / "sites" / "test" / "patients.csv"), frame.drop(columns="rna_0").head(2)])
    twice.to_csv(own / "sites" / "test" / "patients.csv", index=False)
    said = benchmark(own).prepare(tmp_path / "sites", Split(0, 0))
    ((reason, number),) = said["exclusions"].items()
    assert reason.startswith("visits of site-2: column 'rna_0' holds text or infinity where a number is expected") and number == 1
    text = "\n".join(said["warnings"])
    assert "No training visit of any site has 'IV'" in text
    assert "test/patients.csv" in text and "2 patient(s), here the first, are also at site 'site-2'" in text


def test_an_unlabelled_reference_sets_faults_and_a_site_with_nobody_to_test_are_told(own: Path, tmp_path: Path) -> None:
    reference, empty = own / "sites" / "reference", shutil.copytree(own / "sites" / "test", own / "sites" / "empty")
    file = reference / "manifest.yaml"
    manifest = yaml.safe_load(file.read_text()) | {"limits": {"bad_rows": 1.0}}
    file.write_text(yaml.safe_dump({k: v for k, v in manifest.items() if k != "labels"}))
    frame = pd.read_csv(reference / "patients.csv", dtype={"rna_0": str})
    frame.loc[frame["rna_0"].notna().idxmax(), "rna_0"] = "?"
    frame.to_csv(reference / "patients.csv", index=False)
    change(empty, site="empty")
    frame = pd.read_csv(empty / "patients.csv")
    frame[[c for c in frame if "_" in c and c[:3] in ("rna", "met")]] = np.nan
    frame.to_csv(empty / "patients.csv", index=False)
    said = benchmark(own).prepare(tmp_path / "sites", Split(0, 0))
    reasons = " ".join(said["exclusions"])
    assert "visits of reference: column 'rna_0' holds text" in reasons and "visits of empty: every modality is empty" in reasons
    assert [w for w in said["warnings"] if w.startswith("empty has nobody to test on")]
    assert said["n"]["test"]["sites"] == 1


def command(*words: object) -> Any:
    return CliRunner().invoke(cli.app, [str(w) for w in words])


def test_the_command_line_runs_and_shows_own_data(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_RUNS", str(own / "runs"))
    options = ("--task", own / "TASK.yaml", "--sites", own / "sites")
    settings = [word for setting in QUICK for word in ("--set", setting)]
    done = command("run", "custom", *options, "--seeds", 1, "--only", "student", "--only", "teachers", *settings)
    assert done.exit_code == 0, done.output
    assert "Tested: 45 visits, 45 patients, 1 sites" in done.output and "Accuracy" in done.output
    assert "every value is the same" in done.output
    (student,) = (own / "runs" / "custom").glob("*/cells/student-0-0/run/student.safetensors")
    assert f"Student: {student}" in done.output
    predicted = command("predict", student.parents[3], own / "sites" / "test", "--out", own / "scores.csv")
    assert predicted.exit_code == 0 and f"Student: {student}" in predicted.output
    assert pd.read_csv(own / "scores.csv")[["I", "II", "III", "IV"]].sum(axis=1).to_numpy() == pytest.approx(
        np.ones(45), abs=1e-4
    )
    again = command("table", "custom")
    assert again.exit_code == 0 and "custom: all: I, II, III, IV from rna, meth, prot" in again.output
    assert "for your own data" in str(command("run", "demo", *options).exception)
    assert "--task TASK.yaml and --sites DIR" in str(command("run", "custom").exception)


def test_only_the_reference_set_may_be_without_labels(own: Path) -> None:
    for site in ("reference", "test"):
        file = own / "sites" / site / "manifest.yaml"
        file.write_text(yaml.safe_dump({k: v for k, v in yaml.safe_load(file.read_text()).items() if k != "labels"}))
        if site == "reference":
            assert benchmark(own).name == "custom"
    with pytest.raises(ConsiliumError, match="Site 'test' has no labels"):
        benchmark(own)


def test_links_are_followed_within_a_site_and_its_own_folder_is_never_taken_along(own: Path, tmp_path: Path) -> None:
    site = own / "sites" / "site-1"
    (site / "files").mkdir()
    (site / "manifest.yaml").rename(site / "files" / "m.yaml")
    (site / "manifest.yaml").symlink_to("files/m.yaml")
    (site / "patients.csv").rename(site / "files" / "p.csv")
    (site / "patients.csv").symlink_to(site / "files" / "p.csv")
    elsewhere = tmp_path / "private"
    elsewhere.mkdir()
    (site / ".consilium").symlink_to(elsewhere)
    outside = own / "sites" / "site-2" / "patients.csv"
    (site / "other.csv").symlink_to(outside)
    said = benchmark(own).prepare(tmp_path / "sites", Split(0, 0))
    assert said["n"]["train"]["sites"] == 3 and not said["exclusions"]
    mirrored = tmp_path / "sites" / "site-1"
    assert not (mirrored / ".consilium").exists() and not any(elsewhere.iterdir())
    assert not (mirrored / "other.csv").resolve().is_relative_to(tmp_path / "sites")


def test_a_site_that_refuses_ends_the_run_in_its_own_words(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_RUNS", str(own / "runs"))
    file = own / "sites" / "site-2" / "patients.csv"
    pd.read_csv(file).assign(rna_0="?").to_csv(file, index=False)
    done = command("run", "custom", "--task", own / "TASK.yaml", "--sites", own / "sites", "--seeds", 1, "--only", "teachers")
    said = str(done.exception)
    assert isinstance(done.exception, ConsiliumError) and "Site 'site-2' refuses" in said, said
    assert "limits.bad_rows" in said and f"consilium-client check {own / 'sites'} --task {own / 'TASK.yaml'}" in said
    assert "memory" not in said and "process" not in said


@pytest.mark.parametrize("kept", [0, 4])
def test_a_modality_that_no_site_trains_on_ends_the_run_before_its_first_cell(own: Path, tmp_path: Path, kept: int) -> None:
    shutil.rmtree(own / "sites" / "site-1")
    for site in ("site-2", "site-3"):
        table = pd.read_csv(own / "sites" / site / "patients.csv")
        table.loc[kept:, [c for c in map(str, table) if c.startswith("prot_")]] = np.nan
        table.to_csv(own / "sites" / site / "patients.csv", index=False)
    with pytest.raises(ConsiliumError, match=r"No site trains on prot, which task 'all' asks for.*Add a site that holds it"):
        benchmark(own).prepare(tmp_path / "sites", Split(0, 0))


def test_a_regression_is_compared_with_the_median(own: Path) -> None:
    raw = yaml.safe_load((own / "TASK.yaml").read_text())
    assert "median" not in benchmark(own).methods
    (own / "TASK.yaml").write_text(yaml.safe_dump(raw | {"type": "regression", "outputs": ["age"]}))
    for file in (own / "sites").glob("*/manifest.yaml"):
        table = file.with_name("patients.csv")
        frame = pd.read_csv(table)
        frame.assign(age=range(len(frame))).to_csv(table, index=False)
        change(file.parent, labels={"age": "age"})
    assert benchmark(own).methods[-1] == "median" and "median" in benchmark(own).overrides
