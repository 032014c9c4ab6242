"""BraTS as the organisers publish it, on its twin: who becomes which site, what they lack, and what is wrong with folders."""

from __future__ import annotations

import gzip
import io
import re
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import yaml
from rich.console import Console
from scipy.ndimage import distance_transform_edt

from common.config import load_config
from common.data.folder import open_cohort
from common.data.manifest import load_manifest
from common.errors import ConsiliumError
from common.evaluation.results import load_results
from simulations import bench
from simulations.baselines import open_consortium
from simulations.benchmarks import brain_twin as brain_twin_benchmark
from simulations.benchmarks import metakd_brats2018, metakd_brats2019, metakd_brats2020
from simulations.benchmarks.base import Benchmark, Split
from simulations.datasets import brain_twin, brats
from simulations.datasets.files import MARK
from simulations.metakd import SETTINGS

FEW = {"CBICA": 2, "2013": 4, "TCIA03": 3}
HOW = "Get it there."
CUBES = [f"task.modalities.{m}.voxels=[16,16,16]" for m in brats.MODALITIES]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("brats") / "twin"
    brain_twin.write_twin(place, seed=1, edge=16, cases=FEW)
    return place


def cases_of(root: Path) -> list[str]:
    return sorted(p.name.removesuffix("_seg.nii.gz") for p in root.rglob("*_seg.nii.gz"))


def few(tmp_path: Path) -> Path:
    """A twin of three cases."""
    brain_twin.write_twin(tmp_path / "twin", seed=1, edge=16, cases={"TCIA03": 3})
    return tmp_path / "twin"


def rename(root: Path, case: str, name: str) -> str:
    folder = next(root.rglob(case))
    for file in list(folder.iterdir()):
        file.rename(file.with_name(file.name.replace(case, name)))
    folder.rename(folder.with_name(name))
    return name


def refused(root: Path, match: str) -> None:
    """Asserts that a folder is refused with such a message, and that it names no case."""
    with pytest.raises(ConsiliumError, match=match) as error:
        brats.load(root, HOW)
    assert not re.search(r"brats\d\d_", str(error.value), re.IGNORECASE)


def test_institutions_become_the_reference_set_and_clients_that_lack_modalities(root: Path, tmp_path: Path) -> None:
    said = brats.write_sites(brats.load(root, HOW), tmp_path / "sites", seed=0)
    assert sorted(p.name for p in (tmp_path / "sites").iterdir()) == ["client-1", "client-3", "client-6", "reference"]
    assert said["n"] == {
        "reference": {"cases": 2, "sites": 1}, "test": {"cases": 3, "sites": 3}, "train": {"cases": 4, "sites": 3},
    }  # fmt: skip
    task = load_config("brain-twin", [*CUBES, "model.patch=null"]).task
    config = load_config("brain-twin")
    for site, held in {**brats.CLIENTS, "reference": brats.MODALITIES}.items():
        folder = tmp_path / "sites" / site
        if not folder.is_dir():
            continue
        manifest = load_manifest(folder)
        assert manifest.data == "generated"
        cohort = open_cohort(folder, manifest, task, config.split, 0)
        assert not cohort.findings
        for split, present in zip(cohort.split, cohort.present.tolist(), strict=True):
            everything = split == "test" or site == "reference"
            assert [m for m, p in zip(task.modalities, present, strict=True) if p] == [
                m for m in task.modalities if everything or m in held
            ]
        whole, core, enhancing = cohort.labels.bool().unbind(1)
        assert (core <= whole).all() and (enhancing <= core).all()


def test_without_masks_over_modalities_nobody_lacks_anything(root: Path, tmp_path: Path) -> None:
    brats.write_sites(brats.load(root, HOW), tmp_path / "sites", seed=0, masked=False)
    for folder in (tmp_path / "sites").iterdir():
        table = pd.read_parquet(folder / "patients.parquet")
        assert table[list(brats.MODALITIES)].notna().all().all()


def test_the_twin_shows_a_region_where_it_should() -> None:
    shown: dict[int, dict[str, float]] = {v: dict.fromkeys(brats.MODALITIES, 0.0) for v in (brain_twin.OEDEMA, brain_twin.RIM)}
    for seed in range(12):
        scans, mask = brain_twin.generate_case(np.random.default_rng(seed))
        healthy = (mask == 0) & (scans["flair"] > 0)
        for value, contrast in shown.items():
            for m, scan in scans.items():
                assert (mask == value).any()
                contrast[m] += float(scan[mask == value].mean() - scan[healthy].mean())
    oedema, rim = shown[brain_twin.OEDEMA], shown[brain_twin.RIM]
    assert max(oedema, key=lambda m: oedema[m]) == "flair"
    assert max(rim, key=lambda m: rim[m]) == "t1ce"
    assert abs(oedema["t1ce"]) < 0.4 * oedema["flair"]


def test_nobody_guesses_the_twins_oedema_from_core_and_rim() -> None:
    found = []
    for seed in range(12):
        _, mask = brain_twin.generate_case(np.random.default_rng(seed))
        apart = distance_transform_edt(~np.isin(mask, (brain_twin.CORE, brain_twin.RIM)))
        guesses = [(apart <= d, mask > 0) for d in range(12)]
        found.append([2 * (guess & whole).sum() / (guess.sum() + whole.sum()) for guess, whole in guesses])
    assert np.mean(found, 0).max() < 0.65


def test_lists_fix_who_is_tested(root: Path, tmp_path: Path) -> None:
    place = tmp_path / "twin"
    brain_twin.write_twin(place, seed=1, edge=16, cases=FEW)
    names = cases_of(place)
    (place / "train.csv").write_text("".join(f"HGG/{c}/\n" for c in names[:6]))
    (place / "test.csv").write_text("".join(f"HGG/{c}\n" for c in names[6:8]))
    loaded = brats.load(place, HOW)
    assert loaded.exclusions == {"cases in no list": 1}
    assert dict(zip(loaded.frame["patient"], loaded.frame["split"], strict=True)) == dict(
        zip(names[:8], ["train"] * 6 + ["test"] * 2, strict=True)
    )
    (place / "test.csv").write_text(f"HGG/{names[0]}\n")
    refused(place, r"test.csv, line 1: this case is in both lists")
    (place / "test.csv").write_text("HGG/Brats18_CBICA_XYZ_1\n")
    refused(place, r"test.csv, line 1: no case below .* has this name")


def test_listed_test_cases_of_the_reference_institution_are_tested_and_teach_nobody(tmp_path: Path) -> None:
    place = tmp_path / "twin"
    brain_twin.write_twin(place, seed=1, edge=16, cases=FEW)
    names = cases_of(place)
    tested = [n for n in names if "CBICA" in n][:1] + [n for n in names if "TCIA03" in n][:1]
    (place / "train.csv").write_text("\n".join(n for n in names if n not in tested))
    (place / "test.csv").write_text("\n".join(tested))
    said = brats.write_sites(brats.load(place, HOW), tmp_path / "sites", seed=0)
    assert said["n"] == {
        "reference": {"cases": 1, "sites": 1}, "test": {"cases": 2, "sites": 2}, "train": {"cases": 6, "sites": 3},
    }  # fmt: skip
    config = load_config("brain-twin", [*CUBES, "model.patch=null"])
    consortium = open_consortium(tmp_path / "sites", config)
    assert {s: len(c) for s, c in consortium.training.items()} == {"client-1": 2, "client-3": 2, "client-6": 2, "reference": 1}
    assert {s: len(c) for s, c in consortium.testing.items()} == {brats.SERVER_TESTS: 1, "client-3": 1}
    assert consortium.testing[brats.SERVER_TESTS].present.all()
    held = [set(pd.read_parquet(f)["patient"]) for f in (tmp_path / "sites").glob("*/patients.parquet")]
    assert sum(map(len, held)) == len(set.union(*held)) == len(names)
    assert said["warnings"] == []


def test_lists_may_begin_with_a_byte_order_mark_and_both_are_needed(tmp_path: Path) -> None:
    place = few(tmp_path)
    one, two, three = cases_of(place)
    (place / "train.csv").write_text(f"{one}\n{two}\n", encoding="utf-8-sig")
    refused(place, r"both lists are needed, test\.csv is missing")
    (place / "test.csv").write_text(f"{three}\n", encoding="utf-8-sig")
    assert brats.load(place, HOW).frame["split"].tolist() == ["train", "train", "test"]
    (place / "train.csv").unlink()
    refused(place, r"both lists are needed, train\.csv is missing")


def test_tables_that_cannot_be_read_are_refused_by_name(tmp_path: Path) -> None:
    place = few(tmp_path)
    for content in (b"", b'a,b\n"1', b"\xff\xfe\x00\x01"):
        (place / "name_mapping.csv").write_bytes(content)
        refused(place, r"name_mapping\.csv cannot be read \(")
    (place / "name_mapping.csv").unlink()
    (place / "train.csv").write_bytes(b"\xff\xfe\x00\x01")
    (place / "test.csv").write_text("")
    refused(place, r"train\.csv cannot be read \(UnicodeDecodeError\)")


def test_cases_that_lack_a_file_or_have_an_empty_one_are_counted(tmp_path: Path) -> None:
    place = few(tmp_path)
    _, second, third = (next(place.rglob(f"{c}_t2.nii.gz")) for c in cases_of(place))
    second.unlink()
    next(second.parent.glob("*_flair.nii.gz")).unlink()
    third.write_bytes(b"")
    refused(
        place,
        r"2 of 3 case\(s\) .*the first is number 2, sorted by path\) lack a file with any content: _flair in 1, _t2 in 2\. "
        "Download",
    )
    refused(tmp_path / "nothing", "holds no case")


def test_a_scan_in_two_files_and_a_case_in_two_folders_are_called_what_they_are(tmp_path: Path) -> None:
    place = few(tmp_path)
    scan = next(place.rglob(f"{cases_of(place)[1]}_flair.nii.gz"))
    plain = scan.with_name(scan.name.removesuffix(".gz"))
    plain.write_bytes(gzip.decompress(scan.read_bytes()))
    refused(place, r"1 of 3 case\(s\) .*number 2, .* in two files, \.nii\.gz and \.nii")
    scan.unlink()
    assert plain in set(brats.load(place, HOW).frame["flair"])
    shutil.copytree(plain.parent, place / "again" / plain.parent.name)
    refused(place, r"1 of 4 case\(s\) .* in an earlier folder of the same name too")


def test_validation_cases_are_left_out_and_other_cases_without_a_mask_are_told_of(tmp_path: Path) -> None:
    place = few(tmp_path)
    first, *others = cases_of(place)
    folder = next(place.rglob(first))
    (folder / f"{first}_seg.nii.gz").unlink()
    refused(place, r"1 of 3 case\(s\) .* lack the mask alone, _seg\. .* below a folder whose name holds 'Validation'")
    folder = shutil.move(folder, place / "MICCAI_BraTS_2018_Data_Validation" / first)
    cases = brats.load(place, HOW)
    assert cases.frame["patient"].tolist() == others
    assert cases.exclusions == {"validation cases without a mask": 1}
    (place / "train.csv").write_text(others[0])
    (place / "test.csv").write_text(f"{others[1]}\n{first}")
    refused(place, r"test\.csv, line 2: this case has no mask\. List cases of the training data")
    (folder / f"{first}_t1.nii.gz").unlink()
    refused(place, r"1 of 3 case\(s\) .* lack a file with any content: _t1 in 1, _seg in 1")
    for case in others:
        shutil.rmtree(next(place.rglob(case)))
    refused(place, "lack a file")
    shutil.copy(folder / f"{first}_t2.nii.gz", folder / f"{first}_t1.nii.gz")
    refused(place, "holds validation cases alone")


def test_the_one_mask_that_kaggle_names_otherwise_is_found(tmp_path: Path) -> None:
    place = few(tmp_path)
    case = rename(place, cases_of(place)[0], "BraTS20_Training_355")
    mask = next(place.rglob(f"{case}_seg.nii.gz"))
    mask.rename(mask.with_name("W39_1998.09.19_Segm.nii.gz"))
    cases = brats.load(place, HOW)
    assert cases.frame.set_index("patient").loc[case, "seg"].name == "W39_1998.09.19_Segm.nii.gz"
    brats.write_sites(cases, tmp_path / "sites", seed=0)
    shutil.move(mask.with_name("W39_1998.09.19_Segm.nii.gz"), place / "W39_1998.09.19_Segm.nii.gz")
    refused(place, "lack the mask alone")


def test_cases_of_2020_find_their_institution_in_the_organisers_table(tmp_path: Path) -> None:
    place = tmp_path / "2020"
    brain_twin.write_twin(place, seed=1, edge=16, cases={"TCIA03": 2})
    for at, case in enumerate(cases_of(place)):
        rename(place, case, f"BraTS20_Training_{at + 1:03}")
    assert set(brats.load(place, HOW).frame["institution"]) == {"unknown"}
    pd.DataFrame({"BraTS_2020_subject_ID": ["BraTS20_Training_001"], "BraTS_2019_subject_ID": ["BraTS19_TCIA10_103_1"]}).to_csv(
        place / "name_mapping.csv", index=False
    )
    assert brats.load(place, HOW).frame["institution"].tolist() == ["TCIA10", "unknown"]


def test_what_of_the_protocol_the_cases_cannot_follow_is_said_with_counts(tmp_path: Path) -> None:
    place = tmp_path / "2020"
    brain_twin.write_twin(place, seed=1, edge=16, cases={"CBICA": 1, "TCIA03": 12, "TMC": 1})
    said = brats.write_sites(brats.load(place, HOW), tmp_path / "known", seed=0)
    (others,) = said["warnings"]
    assert others.startswith("1 of 14 cases are of no institution that the protocol knows") and "; 0 of them tell none" in others
    for at, case in enumerate(cases_of(place)):
        rename(place, case, f"BraTS20_Training_{at + 1:03}")
    others, no_reference = brats.write_sites(brats.load(place, HOW), tmp_path / "unknown", seed=0)["warnings"]
    assert others.startswith("14 of 14 cases") and "14 of them tell none" in others and "name_mapping.csv" in others
    assert no_reference == "There is no reference set: none of 14 cases is CBICA's to train on."


def test_a_mask_that_writes_3_for_enhancing_tumour_is_a_finding(root: Path, tmp_path: Path) -> None:
    brats.write_sites(brats.load(root, HOW), tmp_path / "sites", seed=0)
    folder = tmp_path / "sites" / "client-3"
    table = pd.read_parquet(folder / "patients.parquet")
    file = folder / table["seg"][0]
    mask = np.asarray(nibabel.load(file).dataobj).astype(np.int16)
    mask[mask == 4] = 3
    file.unlink()  # a link to the official file
    nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), file)
    manifest = yaml.safe_load((folder / "manifest.yaml").read_text())
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest | {"limits": {"bad_rows": 1.0}}))
    task = load_config("brain-twin", [*CUBES, "model.patch=null"]).task
    cohort = open_cohort(folder, load_manifest(folder), task, load_config("brain-twin").split, 0)
    assert [(f.row, f.column) for f in cohort.findings] == [(2, "seg")]
    assert "the mask holds 3, the task's regions know 1, 2, 4" in cohort.findings[0].problem


def test_the_twin_tests_16_of_its_40_cases_and_six_of_eight_clients_lack_a_modality() -> None:
    cases = [(f"{name}-{at}", name) for name, n in brain_twin.CASES.items() for at in range(n)]
    frame = pd.DataFrame(cases, columns=["patient", "institution"]).assign(split=None)
    for seed in range(5):
        placed = brats.deal(frame, seed)
        assert placed["split"].value_counts().to_dict() == {"train": 24, "test": 16}
        assert set(placed["site"]) == {*brats.CLIENTS, "reference"}
    assert sum(held != brats.MODALITIES for held in brats.CLIENTS.values()) == 6


YEARS: list[Benchmark] = [b.BENCHMARK for b in (metakd_brats2018, metakd_brats2019, metakd_brats2020)]
SMALL = (
    *CUBES,
    "model.patch=[8,16,16]",
    "model.width=4",
    "weights.steps=2",
    "federation.min_patients=1",
)


@pytest.mark.parametrize("benchmark", YEARS, ids=lambda b: b.name)
def test_methods_that_train_in_one_phase_alone_have_the_same_budget(benchmark: Benchmark) -> None:
    methods = ("metakd-faithful", "local", "central", "central-full", "central-zero", "fedavg")
    assert set(methods) <= set(benchmark.methods)
    own = {"metakd-faithful": SETTINGS}
    configs = {m: load_config(benchmark.experiment, [*own.get(m, ()), *benchmark.overrides.get(m, ())]) for m in methods}
    epochs = {m: c.refine.rounds * c.refine.epochs if m == "fedavg" else c.distill.epochs for m, c in configs.items()}
    assert set(epochs.values()) == {60}


def test_on_the_twin_every_method_at_one_place_is_tuned_and_fedavg_trains_as_refine_does() -> None:
    twin = brain_twin_benchmark.BENCHMARK
    federated = {m for m in twin.methods if m.startswith("student")} | {"teachers", "fedavg"}
    assert set(twin.overrides) == set(twin.methods) - federated


def test_a_year_runs_on_the_organisers_layout_with_every_kind_of_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_DATA", str(tmp_path))
    brain_twin.write_twin(tmp_path / "brats2018", seed=1, edge=16, cases={"CBICA": 4, "2013": 8, "TCIA03": 5})
    methods = ("student", "metakd-faithful", "central-zero", "fedavg")
    wanted = replace(YEARS[0], methods=methods, overrides=dict.fromkeys(methods, SMALL))
    outcome = bench.run(wanted, debug=True, out=tmp_path / "runs", workers=1, console=Console(file=io.StringIO()))
    assert outcome.missing == {}
    assert {"dice.png", "overlay.png", "patterns-dice.png"} <= {f.name for f in (outcome.folder / "figures").iterdir()}
    rows = load_results(outcome.folder / "results.json").rows
    ours = {(r.method, r.pattern) for r in rows if not r.published and r.site is None and r.metric == "dice"}
    assert {(m, p) for m in methods for p in ("all", "flair", "t1ce+t2")} <= ours
    marks = {str(r.published).partition(":")[0] for r in rows if r.published}
    assert marks == {"published", "second-hand", "inferred"}
    assert load_results(outcome.folder / "results.json").data == "generated", "the mark of the twin lies in its folder"


@pytest.mark.parametrize("benchmark", YEARS, ids=lambda b: b.name)
def test_every_year_reads_its_own_names_and_counts_real_cases(
    benchmark: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSILIUM_DATA", str(tmp_path))
    year = benchmark.name.removeprefix("metakd-brats")
    place = tmp_path / f"brats{year}"
    brain_twin.write_twin(place, seed=1, edge=16, cases={"CBICA": 1, "TCIA03": 19})
    for at, case in enumerate(cases_of(place)):
        rename(place, case, {"2018": case, "2019": case.replace("18", "19", 1)}.get(year, f"BraTS20_Training_{at + 1:03}"))
    generated = benchmark.prepare(tmp_path / "generated", Split(0, 0))
    assert generated["data"] == "generated" and not any("Training cases" in w for w in generated["warnings"])
    (place / MARK).unlink()
    real = benchmark.prepare(tmp_path / "real", Split(0, 0))
    count = {"2018": 285, "2019": 335, "2020": 369}[year]
    assert real["data"] == "real" and real["warnings"][0].startswith(f"Training cases: 20; BraTS {year} has {count}. Unpack all")
    assert len(real["warnings"]) == (3 if year == "2020" else 1), "of 2020 no case tells its institution"


@pytest.mark.parametrize("benchmark", YEARS, ids=lambda b: b.name)
def test_without_the_data_a_year_says_where_they_are_and_names_the_twin(
    benchmark: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSILIUM_DATA", str(tmp_path))
    with pytest.raises(ConsiliumError, match=r"brats\d+ is missing.*Register with.*consilium-bench run brain-twin"):
        benchmark.prepare(tmp_path / "sites", Split(0, 0))
    with pytest.raises(ConsiliumError, match="reference set of BraTS is one institution"):
        benchmark.prepare(tmp_path / "sites", Split(0, 0, reference=0.2))
