"""The eICU demo on its real files: counts, leaks, and hospitals and patients kept apart."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from pydantic import TypeAdapter

from common.config import SplitConfig, load_config
from common.data.folder import open_cohort
from common.data.manifest import check_against_task, load_manifest
from common.errors import ConsiliumError
from common.task import Task
from simulations.benchmarks import eicu_mortality
from simulations.benchmarks.base import Split
from simulations.datasets import eicu
from simulations.datasets.eicu import EicuStays

TASK_FILE = Path(__file__).resolve().parents[2] / "configs" / "task" / "eicu-mortality.yaml"
ROOT = Path(os.environ.get("CONSILIUM_DATA", "")) / "eicu_demo"
LEAKS = [
    "diedinhospital",
    "dischargelocation",
    "sicuday",
    "saps3day1",
    "saps3today",
    "saps3yesterday",
    "var03hspxlos",
    "visitnumber",
    "managementsystem",
    "graftcount",
    "amilocation",
    "region",
    "teachtype",
    "bedcount",
    "hospitalid",
    "apacheapsvarid",
    "apachepredvarid",
    "patientunitstayid",
]
needs_data = pytest.mark.skipif(
    "CONSILIUM_DATA" not in os.environ or not ROOT.is_dir(), reason="CONSILIUM_DATA names no folder with eicu_demo"
)


@pytest.fixture(scope="module")
def stays() -> EicuStays:
    return eicu.load(ROOT)


@pytest.fixture(scope="module")
def task() -> Task:
    return TypeAdapter(Task).validate_python(yaml.safe_load(TASK_FILE.read_text()))


@pytest.fixture(scope="module")
def written(stays, tmp_path_factory):
    folder = tmp_path_factory.mktemp("eicu") / "sites"
    return folder, eicu.write_sites(stays, folder, fold=1, seed=3)


@needs_data
def test_hospitals_that_are_not_drawn_for_a_smaller_reference_set_train(written, stays, tmp_path, monkeypatch):
    monkeypatch.setenv("CONSILIUM_DATA", str(ROOT.parent))
    folder, main = written
    counts = {share: eicu_mortality.prepare(tmp_path / str(share), Split(3, 1, reference=share))["n"] for share in (0, 0.05, 0.2)}

    assert not (tmp_path / "0" / "reference").exists() and "reference" not in counts[0]
    hospitals = main["n"]["train"]["hospitals"] + main["n"]["reference"]["hospitals"]
    assert counts[0.05]["reference"]["hospitals"] == round(0.05 * hospitals)
    assert counts[0.2]["reference"] == main["n"]["reference"]
    for what in ("stays", "patients", "deaths", "hospitals"):
        everyone = {n["train"][what] + n.get("reference", {what: 0})[what] for n in counts.values()}
        assert everyone == {main["n"]["train"][what] + main["n"]["reference"][what]}
    tested = [pd.read_parquet(p) for f in (folder, tmp_path / "0") for p in sorted(f.glob("test-*/patients.parquet"))]
    assert len(tested) % 2 == 0
    for ours, theirs in zip(tested[: len(tested) // 2], tested[len(tested) // 2 :], strict=True):
        pd.testing.assert_frame_equal(ours, theirs)


def patients_of(folder: Path, prefix: str) -> pd.DataFrame:
    """Returns the patient tables of the sites whose name begins with the prefix; '' means training sites."""
    sites = [p for p in sorted(folder.iterdir()) if p.name.startswith(prefix)]
    if not prefix:
        sites = [p for p in sites if p.name != "reference" and not p.name.startswith("test-")]
    return pd.concat([pd.read_parquet(p / "patients.parquet").assign(site=p.name) for p in sites], ignore_index=True)


def test_without_a_data_root_the_benchmark_names_folder_home_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("CONSILIUM_DATA", raising=False)
    with pytest.raises(ConsiliumError, match=r"CONSILIUM_DATA is not set.*'eicu_demo'.*Download.*https://physionet\.org/"):
        eicu_mortality.prepare(tmp_path / "sites", Split(0, 0))
    monkeypatch.setenv("CONSILIUM_DATA", str(tmp_path))
    with pytest.raises(
        ConsiliumError,
        match=rf"{tmp_path}/eicu_demo is missing.*https://physionet\.org/.*YAIB.*CONSILIUM_DATA",
    ):
        eicu_mortality.prepare(tmp_path / "sites", Split(0, 0))


@pytest.fixture
def empty(tmp_path) -> Path:
    """Files in the official layout, without checksums, that hold nothing but the names of their columns."""
    root = tmp_path / "eicu_demo"
    (root / eicu.SERIES_FILE).parent.mkdir(parents=True)
    for name, columns in eicu.TABLES.items():
        (root / f"{name}.csv.gz").write_bytes(gzip.compress((",".join(columns) + "\n").encode()))
    pd.DataFrame(columns=["stay_id", "time", *eicu.SERIES]).to_parquet(root / eicu.SERIES_FILE)
    return root


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def one_byte_other(content: bytes) -> bytes:
    return content[:12] + bytes([content[12] ^ 0xFF]) + content[13:]


def a_page(content: bytes) -> bytes:
    return b"<html>not found</html>"


@pytest.mark.parametrize(
    ("name", "damage", "fault"),
    [
        ("patient.csv.gz", half, r"cannot be read \(EOFError\): it is cut short, damaged or no csv\.gz file"),
        ("patient.csv.gz", a_page, r"cannot be read \(BadGzipFile\)"),
        ("patient.csv.gz", one_byte_other, r"cannot be read \(error\)"),
        ("patient.csv.gz", lambda content: gzip.compress(a_page(content)), r"lacks the column\(s\) patientunitstayid, uniquepid"),
        ("apachepredvar.csv.gz", half, r"cannot be read"),
        (eicu.SERIES_FILE, half, r"cannot be read \(ArrowInvalid\): it is cut short, damaged or no parquet file"),
        (eicu.SERIES_FILE, a_page, r"cannot be read"),
    ],
)
def test_a_damaged_file_is_named_with_its_home(empty, name: str, damage: Callable[[bytes], bytes], fault: str):
    (empty / name).write_bytes(damage((empty / name).read_bytes()))
    with pytest.raises(ConsiliumError, match=rf"{name} {fault}.*\. Download it again\. .*https://physionet\.org/"):
        eicu.load(empty)


def test_a_file_that_differs_from_its_checksum_is_named_also_behind_a_blank_line(empty):
    (empty / "SHA256SUMS").write_text(f"\n{'0' * 64} *hospital.csv.gz\n")
    with pytest.raises(
        ConsiliumError, match=r"hospital\.csv\.gz differs from its checksum in .*SHA256SUMS\. Download the file again"
    ):
        eicu.load(empty)


@needs_data
def test_other_spellings_of_the_names_are_the_same_data(stays, tmp_path):
    for name in [*(f"{t}.csv.gz" for t in eicu.TABLES), eicu.SERIES_FILE]:
        place = tmp_path / name.replace("apachea", "apacheA").replace("dx.csv", "Dx.csv")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(ROOT / name)
    again = eicu.load(tmp_path)
    assert (tmp_path / "admissionDx.csv.gz").exists() and again.checksum == stays.checksum
    pd.testing.assert_frame_equal(again.table, stays.table)


def test_the_task_has_no_column_that_knows_the_outcome_or_names_the_hospital(task):
    assert len(task.modalities["series"].features) == 48
    assert set(LEAKS).isdisjoint(task.modalities["table"].features)


@needs_data
def test_cohorts_have_the_published_numbers_of_stays_and_deaths(stays):
    everyone, main = stays.stays, stays.stays[stays.stays["main"]]

    assert (len(everyone), everyone["death"].sum()) == (2241, 184)
    assert (len(main), main["death"].sum()) == (1571, 138)
    assert (everyone["patient"].nunique(), everyone["hospital"].nunique()) == (1731, 185)
    assert (everyone["network"] == "unknown").sum() == 397
    assert everyone["visit"].is_unique


@needs_data
def test_exclusions_account_for_every_stay(stays, written):
    _, info = written
    left_out = [count for name, count in info["exclusions"].items() if name.startswith("stays")]

    assert len(pd.read_csv(ROOT / "patient.csv.gz")) - sum(left_out) == sum(n["stays"] for n in info["n"].values()) == 1571


@needs_data
def test_the_series_equals_the_source_and_ends_before_24_hours(stays):
    source = pd.read_parquet(ROOT / eicu.SERIES_FILE)
    source = source[source["time"] < pd.Timedelta(hours=24)]
    source = source[source["stay_id"].astype(str).isin(stays.stays["visit"])].dropna(how="all", subset=source.columns[2:])

    assert stays.series["hour"].between(0, 23).all()
    assert len(stays.series) == len(source)
    assert np.isclose(stays.series["hr"].sum(), source["hr"].sum())


@needs_data
def test_a_diagnosis_entered_only_after_24_hours_is_not_in_the_text(stays):
    texts = stays.stays.set_index("visit")["text"].fillna("")
    checked = 0
    for name, (offset, column, prefix, between) in eicu.NOTES.items():
        table = pd.read_csv(ROOT / f"{name}.csv.gz").rename(columns={"patientunitstayid": "visit"}).astype({"visit": str})
        first = table[table["visit"].isin(texts.index)].groupby(["visit", column])[offset].min().reset_index()
        entry = first[column].str.replace(prefix, "", regex=True).str.replace(between, ", ", regex=True)
        early = first[offset] < 1440
        for visit, words, known in zip(first["visit"], entry, early, strict=True):
            present = words in texts[visit].split(". ")
            # An entry that holds ". " itself cannot be found by splitting; then it must stand in the text as it is.
            assert present is known or (known and words in texts[visit])
            checked += not known
    assert checked > 900


@needs_data
def test_the_table_marks_missing_values_and_lacks_stays_without_an_apache_record(stays):
    assert len(stays.table) == 2021
    assert not (stays.table.drop(columns=["visit", "sex", "admitsource"]) == -1).any().any()
    assert set(stays.table["admitsource"].dropna()) == set(eicu.ADMIT_SOURCE)
    assert set(stays.table["sex"].dropna()) == {"Female", "Male"}
    assert stays.table["age"].max() == 90
    assert stays.table["ph"].isna().mean() > 0.7


@needs_data
def test_folds_share_no_hospital_and_no_patient_and_are_balanced(stays):
    frame = stays.stays.assign(fold=eicu.folds(stays))

    assert (frame.groupby("hospital")["fold"].nunique() == 1).all()
    assert (frame.groupby("patient")["fold"].nunique() == 1).all()
    for cohort in (frame, frame[frame["main"]]):
        counts = cohort.groupby("fold")["death"].agg(["size", "sum"])
        assert counts["size"].max() < 1.1 * counts["size"].min()
        assert counts["sum"].max() < 1.2 * counts["sum"].min()


@needs_data
@pytest.mark.parametrize(("cohort", "sites"), [("main", "network"), ("all", "hospital")])
def test_no_patient_and_no_hospital_is_on_two_sides(stays, tmp_path, cohort, sites):
    fold_of = dict(zip(stays.stays["visit"], eicu.folds(stays), strict=True))
    hospital_of = stays.stays.set_index("visit")["hospital"]
    for fold in (0, 4):
        folder = tmp_path / str(fold)
        eicu.write_sites(stays, folder, fold=fold, seed=fold, cohort=cohort, sites=sites)
        sides = [patients_of(folder, prefix) for prefix in ("test-", "reference", "")]

        assert sum(map(len, sides)) == (1571 if cohort == "main" else 2241)
        for key in (lambda side: side["patient"], lambda side: side["visit"].map(hospital_of)):
            test, reference, training = (set(key(side)) for side in sides)
            assert test.isdisjoint(reference | training)
            assert reference.isdisjoint(training)
        assert {fold_of[v] for v in sides[0]["visit"]} == {fold}
        assert len(set(sides[1]["visit"].map(hospital_of))) == round(0.2 * (185 - len(set(sides[0]["visit"].map(hospital_of)))))


@needs_data
def test_manifests_fit_the_task_and_say_who_evaluates_and_who_holds_what(written, task):
    folder, info = written
    holders = dict.fromkeys(task.modalities, 0)
    trained, full = 0, 0
    for path in folder.iterdir():
        manifest = load_manifest(path)
        check_against_task(manifest, task)
        held = set(manifest.modalities)
        assert manifest.site == path.name
        assert set(info["sites"][path.name]["modalities"]) == held
        for name in held - {"text"}:
            assert set(manifest.modalities[name].variables) == set(task.modalities[name].features)
        if path.name.startswith("test-") or path.name == "reference":
            assert held == set(task.modalities)
            assert manifest.role == ("train" if path.name == "reference" else "evaluate")
            continue
        assert manifest.role == "train"
        trained, full = trained + 1, full + (len(held) == 3)
        holders = {name: n + (name in held) for name, n in holders.items()}
    assert full == -(-trained // 3)
    assert min(holders.values()) >= 2
    assert {r: n["sites"] for r, n in info["n"].items()}["train"] == trained


@needs_data
def test_a_site_keeps_exactly_the_files_its_patients_point_at(written):
    folder, info = written
    for path in folder.iterdir():
        patients, held = pd.read_parquet(path / "patients.parquet"), info["sites"][path.name]["modalities"]
        assert (len(patients), patients["death"].sum()) == (info["sites"][path.name]["stays"], info["sites"][path.name]["deaths"])
        assert set(patients.columns) == {"patient", "visit", "death", *held}
        assert {p.name for p in path.glob("*.parquet")} == {"patients.parquet"} | {f"{n}.parquet" for n in held if n != "text"}
        for name in set(held) - {"text"}:
            data = pd.read_parquet(path / f"{name}.parquet")
            assert set(data["visit"]) == set(patients.loc[patients[name] == f"{name}.parquet", "visit"])
            assert patients[name].dropna().eq(f"{name}.parquet").all()
            assert set(LEAKS).isdisjoint(data.columns)


@needs_data
def test_the_ordinary_reader_opens_the_sites_without_a_finding(written, task):
    folder, info = written
    for path in sorted(folder.iterdir())[::4]:
        cohort = open_cohort(path, load_manifest(path), task, SplitConfig(), seed=0)
        patients, site = pd.read_parquet(path / "patients.parquet"), info["sites"][path.name]
        present = np.stack(
            [patients[m].notna() if m in patients else np.zeros(len(patients), bool) for m in task.modalities], axis=1
        )
        assert cohort.findings == ()
        assert np.array_equal(cohort.present.numpy(), present[present.any(axis=1)])
        assert (set(cohort.split) == {"test"}) is (site["role"] == "test")


@needs_data
def test_without_masks_the_same_patients_are_at_the_same_sites_with_everything(stays, written, tmp_path):
    folder, masked = written
    info = eicu.write_sites(stays, tmp_path / "full", fold=1, seed=3, masked=False)

    assert {s: (v["role"], v["stays"], v["deaths"]) for s, v in info["sites"].items()} == {
        s: (v["role"], v["stays"], v["deaths"]) for s, v in masked["sites"].items()
    }
    assert all(len(v["modalities"]) == 3 for v in info["sites"].values())
    pd.testing.assert_series_equal(patients_of(folder, "")["visit"], patients_of(tmp_path / "full", "")["visit"])


@needs_data
def test_seed_and_fold_decide_the_reference_and_the_masks(stays, written, tmp_path):
    folder, first = written
    again = eicu.write_sites(stays, tmp_path / "again", fold=1, seed=3)
    other = eicu.write_sites(stays, tmp_path / "other", fold=1, seed=4)

    assert again == first
    assert set(patients_of(tmp_path / "other", "test-")["visit"]) == set(patients_of(folder, "test-")["visit"])
    assert set(patients_of(tmp_path / "other", "reference")["visit"]) != set(patients_of(folder, "reference")["visit"])
    assert other["sites"] != first["sites"]


@needs_data
def test_the_remaining_days_are_a_label_of_the_same_patients_at_the_same_sites(stays, written, tmp_path):
    folder, _ = written
    days = load_config("eicu-los").task
    eicu.write_sites(stays, tmp_path / "los", fold=1, seed=3, label="los")
    hours = pd.read_csv(ROOT / "patient.csv.gz").astype({"patientunitstayid": str})
    hours = hours.set_index("patientunitstayid")["unitdischargeoffset"] / 60
    for path in sorted(folder.iterdir())[::4]:
        manifest = load_manifest(tmp_path / "los" / path.name)
        check_against_task(manifest, days)
        ours, theirs = (pd.read_parquet(root / path.name / "patients.parquet") for root in (tmp_path / "los", folder))
        assert "death" not in ours
        pd.testing.assert_frame_equal(ours.drop(columns="los"), theirs.drop(columns="death"))
        assert np.allclose(ours["los"], (ours["visit"].map(hours) - 24) / 24) and ours["los"].min() >= 0
        assert open_cohort(tmp_path / "los" / path.name, manifest, days, SplitConfig(), seed=0).findings == ()


def test_both_benchmarks_read_the_same_modalities(task):
    days = load_config("eicu-los").task
    assert (days.modalities, days.type, days.units, days.log) == (task.modalities, "regression", {"los": "d"}, ("los",))


@needs_data
def test_a_folder_with_files_is_not_overwritten(stays, written):
    with pytest.raises(ConsiliumError, match="is not empty"):
        eicu.write_sites(stays, written[0], fold=0, seed=0)


@needs_data
def test_a_fold_that_does_not_exist_is_refused(stays, tmp_path):
    with pytest.raises(ConsiliumError, match=r"no fold 5\. Ask for one of 0 to 4"):
        eicu.write_sites(stays, tmp_path / "sites", fold=5, seed=0)


@needs_data
def test_whoever_asks_again_or_writes_reads_no_file_of_the_data_set(stays, tmp_path, monkeypatch):
    for reader in ("read_csv", "read_parquet"):
        monkeypatch.setattr(pd, reader, lambda *a, **k: pytest.fail("a file was read"))
    monkeypatch.setattr(eicu, "verified", lambda *a: pytest.fail("checksums were computed"))
    assert eicu.load(ROOT) is stays
    eicu.write_sites(stays, tmp_path / "sites", fold=0, seed=0)
