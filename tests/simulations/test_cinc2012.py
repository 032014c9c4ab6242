"""PhysioNet 2012: the official layout, made up and real; units as sites; no patient on two sides."""

from __future__ import annotations

import io
import tarfile
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
from simulations.benchmarks import cinc2012_mortality
from simulations.benchmarks.base import Split
from simulations.datasets import cinc2012
from simulations.datasets.cinc2012 import CincStays

TASK_FILE = Path(__file__).resolve().parents[2] / "configs" / "task" / "cinc2012-mortality.yaml"
TINY = 80  # made-up records per set
UNITS = set(cinc2012.UNITS.values())


def made_up(record: int) -> str:
    """Returns a record as PhysioNet writes it, with the slips that its records have."""
    unit, male = record % 4 + 1, record % 3 - 1
    height, weight = (-1, -1) if record % 5 == 0 else (170.2, 80 + record % 7)
    lines = [f"00:00,RecordID,{record}", f"00:00,Age,{50 + record % 40}", f"00:00,Gender,{male}", f"00:00,Height,{height}"]
    lines += [f"00:00,ICUType,{unit}", f"00:00,Weight,{weight}"]
    if record % 20:
        lines += [f"{hour:02d}:{record % 60:02d},HR,{70 + hour % 9}" for hour in range(0, 48, 6)]
        lines += ["01:07,pH,735", "02:07,pH,7.35", "03:00,Temp,-17.8", "05:30,MAP,80", "05:30,MAP,90", "06:00,Weight,81"]
        lines += ["07:00,MechVent,1", "48:00,HR,99"]
    else:
        lines += ["47:00,DiasABP,0"]
    return "\n".join(["Time,Parameter,Value", *lines]) + "\n"


def write_set(root: Path, name: str, records: dict[int, str]) -> None:
    with tarfile.open(root / f"set-{name}.tar.gz", "w:gz") as tar:
        for record, text in records.items():
            member = tarfile.TarInfo(f"set-{name}/{record}.txt")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    outcomes = [f"{record},6,1,5,-1,{int(record % 8 < 2)}" for record in records]
    header = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"
    (root / f"Outcomes-{name}.txt").write_text("\n".join([header, *outcomes]) + "\n")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two made-up sets in the official layout."""
    monkeypatch.setattr(cinc2012, "RECORDS", TINY)
    folder = tmp_path / cinc2012.FOLDER
    folder.mkdir()
    write_set(folder, "a", {132500 + i: made_up(132500 + i) for i in range(TINY)})
    write_set(folder, "b", {142700 + i: made_up(142700 + i) for i in range(TINY)})
    return folder


@pytest.fixture(scope="module")
def real(data_root: Path) -> CincStays:
    if not (data_root / cinc2012.FOLDER).is_dir():
        pytest.skip(f"CONSILIUM_DATA holds no folder {cinc2012.FOLDER}")
    return cinc2012.load(data_root / cinc2012.FOLDER)


@pytest.fixture(scope="module")
def task() -> Task:
    return TypeAdapter(Task).validate_python(yaml.safe_load(TASK_FILE.read_text()))


def patients(folder: Path, *sites: str) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(folder / s / "patients.parquet").assign(site=s) for s in sites], ignore_index=True)


def test_slips_are_left_out_and_counted_and_missing_descriptors_are_empty(root: Path) -> None:
    stays = cinc2012.load(root)
    charted = 2 * TINY * 19 // 20
    assert stays.exclusions == {
        "values of the series that cannot be": 2 * charted + 2 * TINY // 20,
        "stays without a series (kept, with the table alone)": 2 * TINY // 20,
    }
    series, table = stays.series, stays.table
    assert series["pH"].dropna().unique() == pytest.approx([7.35])
    assert series["Temp"].isna().all() and series["DiasABP"].isna().all()
    assert series.loc[series["hour"] == 5.5, "MAP"].unique() == pytest.approx([85])
    assert series["Weight"].dropna().unique() == pytest.approx([81]), "the first weight is a descriptor"
    last = series[series["hour"] >= 47].groupby("visit")["HR"].last()
    assert (last == 99).all() and series["hour"].max() < 48, "48:00 belongs to the last hour"
    assert (table["weight"].isna() == (table["visit"].astype(int) % 5 == 0)).all()
    assert table["sex"].isna().sum() == (table["visit"].astype(int) % 3 == 0).sum()
    assert set(table["sex"].dropna()) == {"F", "M"}


def test_units_are_sites_that_lack_what_the_protocol_takes_from_them(root: Path, tmp_path: Path, task: Task) -> None:
    stays = cinc2012.load(root)
    said = cinc2012.write_sites(stays, tmp_path / "sites", seed=1)
    folders = sorted(p.name for p in (tmp_path / "sites").iterdir())
    assert folders == sorted([*UNITS, *(f"test-{u}" for u in UNITS), "reference"])
    held = {}
    for name in folders:
        manifest = load_manifest(tmp_path / "sites" / name)
        check_against_task(manifest, task)
        assert manifest.site == name
        assert manifest.role == ("evaluate" if name.startswith("test-") else "train")
        held[name] = set(manifest.modalities)
        cohort = open_cohort(tmp_path / "sites" / name, manifest, task, SplitConfig(), seed=0)
        assert cohort.findings == ()
    assert held.pop("medical") == {"series"}
    assert held.pop("cardiac-surgery") == {"table"}
    assert all(both == {"series", "table"} for both in held.values())
    a, b = 132500, 142700
    assert set(patients(tmp_path / "sites", *(f"test-{u}" for u in UNITS))["visit"].astype(int)) == set(range(b, b + TINY))
    train = patients(tmp_path / "sites", "reference", *UNITS)
    assert sorted(train["visit"].astype(int)) == list(range(a, a + TINY))
    for unit in UNITS:
        mine = patients(tmp_path / "sites", unit)["visit"].astype(int)
        assert {cinc2012.UNITS[v % 4 + 1] for v in mine} == {unit}
    assert said["n"]["train"] == {"stays": 72, "deaths": said["n"]["train"]["deaths"], "sites": 4}
    assert said["n"]["reference"]["stays"] == 8
    assert said["n"]["test"]["deaths"] == patients(tmp_path / "sites", *(f"test-{u}" for u in UNITS))["death"].sum() == 20


def test_seed_decides_the_reference_set_and_only_that(root: Path, tmp_path: Path) -> None:
    stays = cinc2012.load(root)
    for name, options in (
        ("one", {"seed": 1}),
        ("again", {"seed": 1}),
        ("two", {"seed": 2}),
        ("full", {"seed": 1, "masked": False}),
    ):
        cinc2012.write_sites(stays, tmp_path / name, **options)
    drawn = {name: set(patients(tmp_path / name, "reference")["visit"]) for name in ("one", "again", "two", "full")}
    assert drawn["one"] == drawn["again"] == drawn["full"] != drawn["two"]
    assert set(load_manifest(tmp_path / "full" / "medical").modalities) == {"series", "table"}
    assert set(patients(tmp_path / "full", "medical")["visit"]) == set(patients(tmp_path / "one", "medical")["visit"])
    none = cinc2012.write_sites(stays, tmp_path / "none", seed=1, reference=0)
    assert "reference" not in none["n"] and not (tmp_path / "none" / "reference").exists()
    with pytest.raises(ConsiliumError, match="is not empty"):
        cinc2012.write_sites(stays, tmp_path / "one", seed=1)


def truncate_records(root: Path) -> None:
    write_set(root, "a", {132500 + i: made_up(132500 + i) for i in range(TINY - 1)})


def cut_hours(root: Path) -> None:
    def early(record: int) -> str:
        return "\n".join(line for line in made_up(record).splitlines() if line[:2] < "30" or line[0] == "T")

    write_set(root, "a", {132500 + i: early(132500 + i) for i in range(TINY)})


def break_a_value(root: Path) -> None:
    write_set(root, "a", {132500 + i: made_up(132500 + i) + "08:00,HR,seventy\n" for i in range(TINY)})


def break_a_time(root: Path) -> None:
    write_set(root, "a", {132500 + i: made_up(132500 + i) + "noon,HR,70\n" for i in range(TINY)})


def drop_the_unit(root: Path) -> None:
    write_set(root, "a", {132500 + i: made_up(132500 + i).replace("ICUType", "Unit") for i in range(TINY)})


def drop_an_outcome(root: Path) -> None:
    (root / "Outcomes-b.txt").write_text("\n".join((root / "Outcomes-b.txt").read_text().splitlines()[:-1]))


def rename_the_outcome(root: Path) -> None:
    text = (root / "Outcomes-b.txt").read_text()
    (root / "Outcomes-b.txt").write_text(text.replace("In-hospital_death", "dead"))


def break_the_archive(root: Path) -> None:
    (root / "set-a.tar.gz").write_bytes((root / "set-a.tar.gz").read_bytes()[:900])


def change_a_file(root: Path) -> None:
    (root / "SHA256SUMS").write_text("\n" + "0" * 64 + "  set-a.tar.gz\n")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (truncate_records, r"set-a\.tar\.gz holds 79 records, the official set has 80"),
        (cut_hours, r"set-a\.tar\.gz: most records end before 36 h"),
        (break_a_value, r"set-a\.tar\.gz: a record is no list of Time,Parameter,Value"),
        (break_a_time, r"set-a\.tar\.gz: a record is no list of Time,Parameter,Value"),
        (drop_the_unit, r"set-a\.tar\.gz: a record names no ICUType"),
        (drop_an_outcome, r"Outcomes-b\.txt does not hold one outcome"),
        (rename_the_outcome, r"Outcomes-b\.txt has no RecordID and In-hospital_death"),
        (break_the_archive, r"set-a\.tar\.gz cannot be read"),
        (change_a_file, r"set-a\.tar\.gz differs from its checksum"),
        (lambda root: (root / "set-b.tar.gz").unlink(), r"set-b\.tar\.gz is missing"),
    ],
)
def test_data_that_are_not_the_official_ones_are_named_with_their_home(root: Path, harm, message: str) -> None:
    harm(root)
    with pytest.raises(ConsiliumError, match=rf"{message}.*https://physionet\.org/content/challenge-2012") as error:
        cinc2012.load(root)
    assert "seventy" not in str(error.value)


def test_without_a_data_root_the_benchmark_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONSILIUM_DATA", raising=False)
    with pytest.raises(ConsiliumError, match=r"CONSILIUM_DATA is not set.*'cinc2012'.*https://physionet\.org/"):
        cinc2012_mortality.prepare(tmp_path / "sites", Split(0, 0))


def test_the_benchmark_prepares_its_splits(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_DATA", str(root.parent))
    said = cinc2012_mortality.prepare(tmp_path / "sites", Split(0, 0, reference=0.2))
    assert said["n"]["reference"]["stays"] == 16
    assert len(said["data_checksum"]) == 64


def test_every_override_of_a_method_or_ablation_is_a_valid_configuration() -> None:
    benchmark = cinc2012_mortality.BENCHMARK
    for overrides in (*benchmark.overrides.values(), *(a.overrides for a in benchmark.ablations)):
        load_config(benchmark.experiment, overrides)


def test_the_task_has_the_series_and_no_feature_that_is_the_site(task: Task) -> None:
    assert list(task.modalities["series"].features) == cinc2012.SERIES
    assert set(cinc2012.SERIES) | {"Height"} == set(cinc2012.POSSIBLE)
    assert set(task.modalities["table"].features) == {"age", "sex", "height", "weight"}


def test_the_real_sets_have_their_published_numbers_of_stays_and_deaths(real: CincStays) -> None:
    counts = real.stays.groupby("set")["death"].agg(["size", "sum"])
    assert counts.loc["a"].tolist() == [4000, 554]
    assert counts.loc["b"].tolist() == [4000, 568]
    units = real.stays[real.stays["set"] == "a"]["unit"].value_counts().to_dict()
    assert units == {"medical": 1481, "surgical": 1068, "cardiac-surgery": 874, "coronary": 577}
    assert real.stays["visit"].is_unique and set(real.table["visit"]) == set(real.stays["visit"])
    assert (
        real.exclusions["stays without a series (kept, with the table alone)"]
        == len(real.stays) - real.series["visit"].nunique()
        == 10
    )


def test_the_real_series_holds_only_values_that_can_be(real: CincStays) -> None:
    for name in cinc2012.SERIES:
        values = real.series[name].dropna()
        least, most = cinc2012.POSSIBLE[name]
        assert len(values) > 500
        assert values.min() >= np.float32(least) and values.max() <= np.float32(most)
    assert real.exclusions["values of the series that cannot be"] < 5000
