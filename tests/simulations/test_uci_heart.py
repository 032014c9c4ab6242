"""UCI heart disease: FLamby's rows and split, made up and real."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml
from pydantic import TypeAdapter

from common.config import SplitConfig, load_config
from common.data.folder import open_cohort
from common.data.manifest import check_against_task, load_manifest
from common.errors import ConsiliumError
from common.task import Task
from simulations.benchmarks import heart_disease
from simulations.benchmarks.base import Split
from simulations.datasets import uci_heart
from simulations.datasets.uci_heart import HeartRows

TASK_FILE = Path(__file__).resolve().parents[2] / "configs" / "task" / "heart-disease.yaml"
TINY = {"cleveland": 30, "hungarian": 24, "switzerland": 12, "va": 21}


def made_up(row: int, centre: str) -> str:
    """Returns a row as UCI writes it; every sixth has an empty cell among those that are kept."""
    chol = "0" if centre == "switzerland" else str(200 + row)
    fbs = "?" if row % 6 == 5 else "0"
    grade = row % 3 if centre != "switzerland" else 1 + row % 2
    return f"{40 + row}.0,{row % 2}.0,{row % 4 + 1}.0,{120 + row},{chol},{fbs},{row % 3},150,1,.5,?,?,?,{grade}"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with four made-up centres in the official layout."""
    monkeypatch.setattr(uci_heart, "ROWS", TINY)
    folder = tmp_path / uci_heart.FOLDER
    folder.mkdir()
    for centre, number in TINY.items():
        (folder / f"processed.{centre}.data").write_text("\n".join(made_up(row, centre) for row in range(number)) + "\n")
    return folder


@pytest.fixture(scope="module")
def real(data_root: Path) -> HeartRows:
    if not (data_root / uci_heart.FOLDER).is_dir():
        pytest.skip(f"CONSILIUM_DATA holds no folder {uci_heart.FOLDER}")
    return uci_heart.load(data_root / uci_heart.FOLDER)


@pytest.fixture(scope="module")
def task() -> Task:
    return TypeAdapter(Task).validate_python(yaml.safe_load(TASK_FILE.read_text()))


def test_rows_with_an_empty_cell_are_left_out_and_counted_and_a_zero_that_cannot_be_is_empty(root: Path) -> None:
    heart = uci_heart.load(root)
    assert heart.exclusions == {"rows with an empty cell": sum(number // 6 for number in TINY.values())}
    assert len(heart.rows) == sum(TINY.values()) - 14
    assert not {"slope", "ca", "thal", "num"} & set(heart.rows)
    assert (heart.rows["chol"].isna() == (heart.rows["centre"] == "switzerland")).all()
    assert (heart.rows["disease"] == (heart.rows["age"].sub(40).mod(3).gt(0) | (heart.rows["centre"] == "switzerland"))).all()


def test_centres_are_sites_whose_tables_fix_the_split(root: Path, tmp_path: Path, task: Task) -> None:
    heart = uci_heart.load(root)
    said = uci_heart.write_sites(heart, tmp_path / "sites")
    assert sorted(p.name for p in (tmp_path / "sites").iterdir()) == sorted(TINY)
    tested = 0
    for centre in TINY:
        manifest = load_manifest(tmp_path / "sites" / centre)
        check_against_task(manifest, task)
        cohort = open_cohort(tmp_path / "sites" / centre, manifest, task, SplitConfig(), seed=0)
        mine = heart.rows[heart.rows["centre"] == centre]
        assert cohort.findings == () and len(cohort) == len(mine)
        assert list(cohort.split) == list(mine["split"])
        tested += len(cohort.part("test"))
    assert said["n"]["test"]["patients"] == tested == (heart.rows["split"] == "test").sum()
    with pytest.raises(ConsiliumError, match="is not empty"):
        uci_heart.write_sites(heart, tmp_path / "sites")


def rewrite(file: Path, old: str, new: str) -> None:
    file.write_text(file.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda root: (root / "processed.va.data").unlink(), r"processed\.va\.data is missing"),
        (lambda root: rewrite(root / "processed.va.data", "150,1", "high,1"), r"processed\.va\.data is no table of 14 columns"),
        (lambda root: (root / "processed.va.data").write_text(made_up(0, "va")), r"processed\.va\.data holds 1 rows, .* has 21"),
        (
            lambda root: rewrite(root / "processed.cleveland.data", ",2\n", ",1\n"),
            r"processed\.cleveland\.data: 'num' knows no grade",
        ),
        (
            lambda root: (root / "SHA256SUMS").write_text("0  processed.va.data\n"),
            r"processed\.va\.data differs from its checksum",
        ),
    ],
)
def test_data_that_are_not_the_official_ones_are_named_with_their_home(root: Path, harm, message: str) -> None:
    harm(root)
    with pytest.raises(ConsiliumError, match=rf"{message}.*https://archive\.ics\.uci\.edu/dataset/45"):
        uci_heart.load(root)


def test_the_benchmark_has_no_reference_set_and_says_where_the_data_come_from(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSILIUM_DATA", str(root.parent))
    assert heart_disease.prepare(tmp_path / "sites", Split(0, 0))["n"]["train"]["sites"] == 4
    with pytest.raises(ConsiliumError, match="no reference set"):
        heart_disease.prepare(tmp_path / "other", Split(0, 0, reference=0.1))
    monkeypatch.delenv("CONSILIUM_DATA")
    with pytest.raises(ConsiliumError, match=r"CONSILIUM_DATA is not set.*'uci_heart'"):
        heart_disease.prepare(tmp_path / "other", Split(0, 0))


def test_every_override_of_a_method_is_a_valid_configuration() -> None:
    for overrides in heart_disease.BENCHMARK.overrides.values():
        load_config(heart_disease.BENCHMARK.experiment, overrides)


def test_the_real_rows_are_flambys(real: HeartRows) -> None:
    counts = pd.crosstab(real.rows["centre"], real.rows["split"])
    assert counts["train"].to_dict() == {"cleveland": 199, "hungarian": 172, "switzerland": 30, "va": 85}
    assert counts["test"].to_dict() == {"cleveland": 104, "hungarian": 89, "switzerland": 16, "va": 45}
    assert real.exclusions == {"rows with an empty cell": 180}
    assert real.rows["patient"].is_unique
