"""MIMIC's twin, its care units as sites, and the three benchmarks on it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from common.config import load_config
from common.data.folder import open_cohort
from common.data.manifest import check_against_task, load_manifest
from common.errors import ConsiliumError
from common.evaluation.results import load_results
from simulations import bench
from simulations.benchmarks import mind_mortality, mind_phenotyping, pb_mortality
from simulations.benchmarks.base import Benchmark, Split
from simulations.datasets.mimic import sites, twin, twin_signs
from simulations.datasets.mimic.layout import FOLDER
from tests.simulations.mimic_files import PATIENTS, SEED, small_twin

BENCHMARKS = {b.BENCHMARK.name: b.BENCHMARK for b in (mind_mortality, mind_phenotyping, pb_mortality)}
COHORTS: dict[str, sites.Cohort] = {"mind-mortality": "mortality", "mind-phenotyping": "phenotyping", "pb-mortality": "admission"}


@pytest.fixture(scope="module")
def home() -> Path:
    """A folder for CONSILIUM_DATA."""
    return Path(small_twin()[0].name)


def patients(folder: Path) -> pd.DataFrame:
    """The patient tables of all sites."""
    tables = [pd.read_parquet(p / "patients.parquet").assign(site=p.name) for p in folder.iterdir() if p.is_dir()]
    return pd.concat(tables, ignore_index=True)


def test_equal_seeds_give_equal_files_and_other_seeds_other_ones(home: Path, tmp_path: Path) -> None:
    one, again = home / FOLDER, tmp_path / "again"
    twin.write_twin(again, seed=SEED, patients=PATIENTS)
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert all((one / f).read_bytes() == (again / f).read_bytes() for f in files)
    other = twin.draw_truth(PATIENTS, np.random.default_rng([twin.VERSION, SEED + 1]))
    assert set(other.stays["stay_id"]).isdisjoint(small_twin()[1].stays["stay_id"])
    with pytest.raises(ConsiliumError, match=r"exists\. A twin is written into a new folder"):
        twin.write_twin(one, seed=SEED)


def test_the_truth_is_what_its_docstring_says() -> None:
    truth = twin.draw_truth(60_000, np.random.default_rng(1))
    death = truth.stays["y_true"]

    def auroc(*names: str) -> float:
        return float(roc_auc_score(death, np.sum([truth.severity[n] for n in names], axis=0)))

    assert death.mean() == pytest.approx(twin.DEATHS, abs=0.01)
    assert auroc(*twin.SEVERITIES) == pytest.approx(0.92, abs=0.01)
    assert auroc("lungs", "circulation", "metabolism", "brain") == pytest.approx(0.84, abs=0.01)
    assert auroc("heart", "brain", "frailty") == pytest.approx(0.79, abs=0.01)
    assert auroc("circulation", "metabolism", "frailty") == pytest.approx(0.79, abs=0.01)
    assert auroc("heart", "lungs") == pytest.approx(0.74, abs=0.01)
    conditions = truth.stays[list(twin.CONDITIONS)]
    assert conditions.mean().between(0.14, 0.26).all()


def test_signs_tell_of_death_and_two_kinds_of_them_tell_more() -> None:
    rng = np.random.default_rng(SEED)
    truth = twin.draw_truth(1500, rng)
    death, train = truth.stays["y_true"].to_numpy(), np.arange(len(truth.stays)) % 2 == 0
    series = twin_signs.draw_series(truth.severity, np.full(len(death), 24.0), rng).drop(columns="Hours")
    charted = series.groupby("stay")[["Heart Rate", "Oxygen saturation", "Respiratory rate", "Mean blood pressure", "pH"]].mean()
    severities = [{name: float(values[row]) for name, values in truth.severity.items()} for row in range(len(death))]
    written = pd.Series([twin_signs.draw_summary(s, False, rng) for s in severities])
    said = pd.DataFrame({ill: written.str.contains(ill) for pairs in twin_signs.FINDINGS.values() for ill, _ in pairs})
    found = {}
    for name, features in (
        ("series", charted),
        ("text", said.astype(float)),
        ("both", pd.concat([charted, said.astype(float)], axis=1)),
    ):
        filled = (features - features.mean()) / features.std()
        model = LogisticRegression(C=0.1).fit(filled.fillna(0)[train], death[train])
        found[name] = roc_auc_score(death[~train], model.decision_function(filled.fillna(0)[~train]))
    assert min(found.values()) > 0.65
    assert found["both"] > max(found["series"], found["text"]) + 0.02


@pytest.mark.parametrize("name", BENCHMARKS)
def test_units_are_sites_that_every_hospital_could_open(home: Path, tmp_path: Path, name: str) -> None:
    config = load_config(BENCHMARKS[name].experiment)
    stays = sites.load(home / FOLDER, COHORTS[name])
    said = sites.write_sites(stays, tmp_path / "sites", seed=1)
    assert said["data"] == "generated" and said["data_version"].endswith(f"seed {SEED}")
    held = {}
    for folder in sorted((tmp_path / "sites").iterdir()):
        manifest = load_manifest(folder)
        check_against_task(manifest, config.task)
        cohort = open_cohort(folder, manifest, config.task, config.split, 0)
        assert cohort.findings == () and len(cohort) > 0
        assert manifest.data == "generated"
        assert manifest.role == ("evaluate" if folder.name.startswith("test-") else "train")
        held[folder.name] = set(manifest.modalities)
    everything = set(BENCHMARKS[name].modalities)
    assert set(stays.modalities) == everything == held["reference"]
    assert all(modalities == everything for site, modalities in held.items() if site.startswith("test-"))
    units = {site: m for site, m in held.items() if not site.startswith("test-") and site != "reference"}
    assert sum(m == everything for m in units.values()) == 2 and all(units.values())
    assert said["n"]["test"]["with cxr"] == said["n"]["test"]["stays"], "only stays with an X-ray"


def test_the_lists_decide_who_trains_validates_and_tests(home: Path, tmp_path: Path) -> None:
    stays = sites.load(home / FOLDER, "mortality")
    said = sites.write_sites(stays, tmp_path / "sites", seed=1, paired=False, masked=False)
    table = patients(tmp_path / "sites")
    part = stays.stays.set_index("visit")["part"]
    tested = table["site"].str.startswith("test-")
    assert set(table.loc[tested, "visit"]) == set(part.index[part == "test"])
    assert set(table.loc[table["split"] == "validation", "visit"]) == set(part.index[part == "val"])
    reference = table["site"] == "reference"
    assert set(part[table.loc[reference, "visit"]]) == {"train"}
    assert set(table.loc[reference, "patient"]).isdisjoint(table.loc[~reference, "patient"])
    people = stays.stays.loc[stays.stays["part"] == "train", "patient"].nunique()
    assert said["n"]["reference"]["patients"] == round(0.1 * people + 0.49)
    assert sum(n["stays"] for n in said["n"].values()) == len(stays.stays) == len(table)
    assert said["n"]["train"]["for validation"] == (part == "val").sum()
    assert "stays without an X-ray" not in said["exclusions"]


def test_the_seed_decides_the_reference_set_and_who_lacks_what(home: Path, tmp_path: Path) -> None:
    stays = sites.load(home / FOLDER, "mortality")
    drawn, told = {}, {}
    for name, options in (
        ("one", {"seed": 1}),
        ("again", {"seed": 1}),
        ("two", {"seed": 2}),
        ("full", {"seed": 1, "masked": False}),
    ):
        told[name] = sites.write_sites(stays, tmp_path / name, **options)["data_checksum"]
        drawn[name] = set(pd.read_parquet(tmp_path / name / "reference" / "patients.parquet")["visit"])
    assert drawn["one"] == drawn["again"] == drawn["full"] != drawn["two"]
    assert told["one"] == told["again"] != told["two"]
    assert all(set(load_manifest(p).modalities) == {"cxr", "series"} for p in (tmp_path / "full").iterdir())
    none = sites.write_sites(stays, tmp_path / "none", seed=1, reference=0)
    assert "reference" not in none["n"] and not (tmp_path / "none" / "reference").exists()


def test_without_the_data_a_twin_takes_their_place_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_DATA", str(tmp_path / "empty"))
    asked = []

    def write(root: Path, *, seed: int) -> None:
        asked.append(seed)
        twin.write_twin(root, seed=SEED, patients=PATIENTS)

    monkeypatch.setattr(sites, "write_twin", write)
    for name in ("0-0", "0-0-full"):
        said = mind_mortality.prepare(tmp_path / "sites" / name, Split(0, 0, masked=name == "0-0"))
        assert said["data"] == "generated"
        assert said["warnings"][0].startswith("These patients are generated: CONSILIUM_DATA has no folder 'mimic'.")
    assert asked == [twin.FINAL_SEED] != [SEED], "written once, with the seed of the table"


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=BENCHMARKS)
def test_a_benchmark_runs_on_its_twin_and_its_table_says_generated(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, benchmark: Benchmark
) -> None:
    monkeypatch.setenv("CONSILIUM_DATA", str(home))
    console = Console(file=io.StringIO())
    methods = ("student", "fedavg")
    # Of texts every word is a token of the bottleneck: a test has few.
    short = ("task.modalities.text.tokens=48",) if "text" in benchmark.modalities else ()
    wanted = replace(benchmark, methods=methods, overrides=dict.fromkeys(methods, short))
    outcome = bench.run(wanted, debug=True, out=tmp_path, workers=1, console=console)
    assert outcome.missing == {}
    results = load_results(outcome.folder / "results.json")
    assert results.data == "generated" and results.environment["data_version"].startswith("generated twin of MIMIC")
    assert results.exclusions["stays without an X-ray"] > 0
    found = {(r.method, r.pattern) for r in results.rows if r.published is None and r.site is None and r.fold is None}
    assert {("student", "all"), ("student", "cxr"), ("fedavg", "all")} <= found
    outputs = {r.output for r in results.rows if r.method == "student" and r.output}
    assert len(outputs) == (25 if benchmark.task_type == "multilabel" else 0)


def test_splits_of_real_and_generated_patients_never_share_a_table(home: Path) -> None:
    from simulations.scores import build_results

    said = {"n": {}, "exclusions": {}, "data_checksum": "a", "data": "generated"}
    options = {"seeds": [0, 1], "folds": [0], "variant": None, "run": {}}
    assert build_results(mind_mortality.BENCHMARK, [], prepared=[said, said], **options).data == "generated"
    with pytest.raises(ConsiliumError, match="hold real patients and others generated ones"):
        build_results(mind_mortality.BENCHMARK, [], prepared=[said, said | {"data": "real"}], **options)
