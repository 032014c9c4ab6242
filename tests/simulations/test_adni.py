"""ADNI in Flex-MoE's layout: what is read of it, its phases as sites, its twin, and the benchmark on it."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from sklearn.metrics import roc_auc_score

from common.config import load_config
from common.data.folder import open_cohort
from common.data.manifest import check_against_task, load_manifest
from common.errors import ConsiliumError
from common.evaluation.results import load_results
from simulations import bench
from simulations.benchmarks import metakd_adni
from simulations.benchmarks.base import MEAN_OF_PATTERNS, Split
from simulations.datasets.adni import genotypes, sites, tables, twin

SEED, SUBJECTS = 3, 260  # another seed than the table's
BED = f"{genotypes.FILE}.bed"
Spoil = Callable[[Path], object]


@cache
def small_twin() -> tuple[TemporaryDirectory[str], twin.Truth]:
    """The folder that holds ``adni``, kept until the process ends, and what it was drawn from."""
    home: TemporaryDirectory[str] = TemporaryDirectory()
    return home, twin.write_twin(Path(home.name) / tables.FOLDER, seed=SEED, subjects=SUBJECTS)


@pytest.fixture(scope="module")
def home() -> Path:
    """A folder for CONSILIUM_DATA."""
    return Path(small_twin()[0].name)


@pytest.fixture
def copy(home: Path, tmp_path: Path) -> Path:
    """The twin, to be spoiled."""
    return Path(shutil.copytree(home / tables.FOLDER, tmp_path / tables.FOLDER))


def rewrite(root: Path, pattern: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    (file,) = root.glob(pattern)
    change(pd.read_csv(file, dtype=str, keep_default_na=False)).to_csv(file, index=False)


def set_first(column: str, value: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda frame: frame.assign(**{column: [value, *frame[column].iloc[1:]]})


def steady() -> pd.DataFrame:
    subjects = small_twin()[1].subjects
    return subjects[subjects["fate"] == "steady"]


def test_equal_seeds_give_equal_files_and_other_seeds_other_ones(home: Path, tmp_path: Path) -> None:
    one, again = home / tables.FOLDER, tmp_path / "again"
    twin.write_twin(again, seed=SEED, subjects=SUBJECTS)
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert all((one / f).read_bytes() == (again / f).read_bytes() for f in files)
    other = twin.draw_truth(SUBJECTS, np.random.default_rng([twin.VERSION, SEED + 1]))
    assert set(other.subjects["PTID"]) != set(small_twin()[1].subjects["PTID"])
    with pytest.raises(ConsiliumError, match=r"exists\. A twin is written into a new folder"):
        twin.write_twin(one, seed=SEED)


def test_the_truth_is_what_its_docstring_says() -> None:
    truth = twin.draw_truth(40_000, np.random.default_rng(1))
    kind = truth.subjects["DIAGNOSIS"]
    assert kind.value_counts(normalize=True)[[1, 2, 3]].to_list() == pytest.approx(twin.SHARES, abs=0.01)

    def auroc(*causes: str) -> float:
        return float(roc_auc_score(kind[kind != 2] == 3, np.sum([truth.causes[c] for c in causes], axis=0)[kind != 2]))

    assert auroc(*twin.CAUSES) == pytest.approx(0.99, abs=0.01)
    assert auroc("genes") == pytest.approx(0.76, abs=0.01)
    assert auroc("atrophy", "vessels") == pytest.approx(auroc("vessels", "frailty"), abs=0.01) == pytest.approx(0.86, abs=0.01)
    assert auroc("amyloid", "atrophy", "genes") == pytest.approx(0.93, abs=0.01)


def test_subjects_with_one_diagnosis_stay_at_the_phase_that_enrolled_them(home: Path) -> None:
    rows = sites.load(home / tables.FOLDER).rows.set_index("patient")
    known = steady().set_index("PTID").loc[rows.index]
    assert (rows["diagnosis"] == known["DIAGNOSIS"].map({1: "CN", 2: "MCI", 3: "AD"})).all()
    assert (rows["phase"] == known["PHASE"].str.lower()).all(), "a subject of ADNI1 who goes on in ADNI2 is ADNI1's"
    told = sites.load(home / tables.FOLDER).exclusions
    fates = small_twin()[1].subjects["fate"].value_counts()
    assert told["subjects whose diagnosis changed"] == fates["changes"]
    assert told["subjects with a visit without a diagnosis"] == fates["empty"]
    assert len(rows) + told["subjects without any modality"] == fates["steady"]


def test_the_latest_value_counts_in_its_unit(home: Path, copy: Path) -> None:
    rows = sites.load(home / tables.FOLDER).rows.set_index("patient")
    assert rows["VSWEIGHT"].dropna().between(50, 100).all() and rows["VSTEMP"].dropna().between(34, 39).all()
    assert rows["VSHEIGHT"].isna().sum() > rows["VSWEIGHT"].isna().sum(), "-4 is no height"
    assert rows["VSPULSE"].max() < 200
    vitals = pd.read_csv(next((copy / "clinical").glob("VITALS*")))
    latest = vitals[(vitals["update_stamp"] > "2006") & (vitals["VSWTUNIT"] == 2)].set_index("PTID")["VSWEIGHT"]
    common = latest.index.intersection(rows.index)
    assert rows.loc[common, "VSWEIGHT"].to_numpy() == pytest.approx(latest[common].to_numpy(), abs=0.01)
    assert rows["ABETA42"].max() == 1700 and rows["ABETA42"].notna().any(), "by RID, and >1700 is 1700"
    apoe = pd.read_csv(next((copy / "biospecimen").glob("APOERES*")))
    apoe = apoe[apoe["update_stamp"] > "2006"].set_index("PTID")["GENOTYPE"].reindex(rows.index).dropna()
    assert (rows.loc[apoe.index, "APOE4"] == apoe.str.count("4")).all()


def with_later(name: str, **said: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Returns what adds one more, later record of a subject."""
    said = {"update_stamp": "2030-01-01 00:00:00.0"} | said
    return lambda frame: pd.concat([frame, frame[frame["PTID"] == name].head(1).assign(**said)], ignore_index=True)


def test_a_value_counts_in_the_unit_of_its_own_record_and_the_last_known_one_stays(copy: Path) -> None:
    before = sites.load(copy).rows.set_index("patient")
    names = {n: before.index[before[n].notna()] for n in ("VSWEIGHT", "VSPULSE", "PTMARRY", "MH14ALCH", "APOE4", "ABETA42")}
    vitals = pd.read_csv(next((copy / "clinical").glob("VITALS*")))
    pounds = set(vitals.loc[(vitals["update_stamp"] > "2006") & (vitals["VSWTUNIT"] == 1), "PTID"])
    first, second = [p for p in names["VSWEIGHT"] if p in pounds][:2]
    rewrite(copy, "clinical/VITALS*", with_later(first, VSWEIGHT="82.0", VSWTUNIT="", VSPULSE="-4"))
    rewrite(copy, "clinical/VITALS*", with_later(second, VSWEIGHT="-1", VSWTUNIT="2", VSHEIGHT="-4", VSTEMP="-4"))
    rewrite(copy, "clinical/PTDEMOG*", with_later(names["PTMARRY"][0], PTMARRY="5", PTEDUCAT="-4"))
    rewrite(copy, "clinical/MEDHIST*", with_later(names["MH14ALCH"][0], MH14ALCH="-1"))
    rewrite(copy, "biospecimen/APOERES*", with_later(names["APOE4"][0], GENOTYPE="-4"))
    rid = small_twin()[1].subjects.set_index("PTID")["RID"][names["ABETA42"][0]]
    rewrite(copy, "biospecimen/UP*", lambda f: with_later("x", ABETA42="-4")(f.assign(PTID=f["RID"].map({str(rid): "x"}))))
    rewrite(copy, "biospecimen/UP*", lambda f: f.drop(columns="PTID"))
    sites.load.cache_clear()
    pd.testing.assert_frame_equal(sites.load(copy).rows.set_index("patient"), before)
    rewrite(copy, "clinical/VITALS*", with_later(first, VSWEIGHT="82.0", VSWTUNIT="2", update_stamp="2031-01-01 00:00:00.0"))
    sites.load.cache_clear()
    assert sites.load(copy).rows.set_index("patient").loc[first, "VSWEIGHT"] == 82.0


def test_what_tells_the_diagnosis_is_not_read(home: Path) -> None:
    rows = sites.load(home / tables.FOLDER).rows
    assert not [c for c in rows if c.startswith(("PTCOGBEG", "PTADDX", "PTADBEG", "CM"))]
    ad = rows["diagnosis"] == "AD"
    numbers = rows[[n for names in sites.MODALITIES.values() for n in names]].select_dtypes("number")
    alone = {c: roc_auc_score(ad[v.notna()], v.dropna()) for c, v in numbers.items() if v.nunique() > 1}
    assert max(max(a, 1 - a) for a in alone.values()) < 0.9


def test_components_find_the_genes_and_see_no_test_subject(home: Path, copy: Path) -> None:
    rows = sites.load(home / tables.FOLDER).rows.set_index("patient")
    subjects = small_twin()[1].subjects
    genes = pd.Series(small_twin()[1].causes["genes"], index=subjects["PTID"]).reindex(rows.index)
    held = rows["pc1"].notna()
    assert abs(np.corrcoef(genes[held], rows.loc[held, "pc1"])[0, 1]) > 0.8
    training = set(rows.index[rows["split"] == "train"])
    once = genotypes.read_components(copy, training, set(rows.index), {})
    names = pd.read_csv(copy / f"{genotypes.FILE}.fam", sep=" ", header=None)[1]
    packed = np.fromfile(copy / BED, dtype=np.uint8)
    bits = packed[3:].reshape(-1, -(-len(names) // 4), 1) >> np.array([0, 2, 4, 6], dtype=np.uint8) & 3
    bits = bits.reshape(len(bits), -1)
    bits[:, np.flatnonzero(~names.isin(training))] = 3
    again = (bits.reshape(len(bits), -1, 4) << np.array([0, 2, 4, 6], dtype=np.uint8)).sum(2).astype(np.uint8)
    (copy / BED).write_bytes(packed[:3].tobytes() + again.tobytes())
    spoiled = genotypes.read_components(copy, training, set(rows.index), {})
    mine = once.index.isin(training)
    pd.testing.assert_frame_equal(once[mine], spoiled[mine])
    assert not np.allclose(once[~mine], spoiled[~mine])


def write_genotypes(root: Path, packed: bytes, subjects: int, variants: int) -> list[str]:
    """Writes the three files; returns the names of the subjects."""
    (root / "genomic" / "liftovered").mkdir(parents=True)
    (root / BED).write_bytes(bytes([0x6C, 0x1B, 0x01]) + packed)
    (root / f"{genotypes.FILE}.fam").write_text("".join(f"{k} s{k} 0 0 0 -9\n" for k in range(subjects)))
    (root / f"{genotypes.FILE}.bim").write_text("".join(f"1\trs{k}\t0\t{k}\tA\tG\n" for k in range(variants)))
    return [f"s{k}" for k in range(subjects)]


def test_genotypes_are_read_bit_by_bit(tmp_path: Path) -> None:
    # Four subjects, three variants: copies of the first allele 0 1 2 ?, then all alike, then 2 0 0 0; and again, for the test.
    names = write_genotypes(tmp_path, bytes([0b01_00_10_11] * 2 + [0b11_11_11_11] * 2 + [0b11_11_11_00] * 2), 8, 3)
    counts: dict[str, int] = {}
    found = genotypes.read_components(tmp_path, set(names[:4]), set(names), counts)
    z = np.array([[0, 1, 2, np.nan], [2, 0, 0, 0]])
    z = np.nan_to_num((z - np.nanmean(z, 1, keepdims=True)) / np.nanstd(z, 1, keepdims=True)).T
    scores = found.loc[names[4:]].dropna(axis=1).to_numpy()
    assert scores @ scores.T == pytest.approx(z @ z.T / 2, abs=1e-6)
    assert counts == {
        "subjects of ADNI_final.fam without one diagnosis, or there twice": 0,
        "variants that do not vary among training subjects": 1,
    }


def test_training_and_test_scores_have_one_scale(tmp_path: Path, home: Path) -> None:
    subjects, variants = 240, 4000
    packed = np.random.default_rng(1).integers(0, 256, variants * subjects // 4, dtype=np.uint8)  # nothing is to be learned
    names = write_genotypes(tmp_path, packed.tobytes(), subjects, variants)
    found = genotypes.read_components(tmp_path, set(names[:160]), set(names), {})
    spread = found[:160].std() / found[160:].std()
    assert spread.between(0.7, 1.4).all() and abs(np.log(spread).mean()) < 0.1
    rows = sites.load(home / tables.FOLDER).rows
    trains = rows["split"] == "train"
    spread = rows.loc[trains, [*genotypes.FEATURES]].std() / rows.loc[~trains, [*genotypes.FEATURES]].std()
    assert spread.between(0.6, 1.6).all()


def test_phases_are_sites_that_every_hospital_could_open(home: Path, tmp_path: Path) -> None:
    config = load_config("metakd-adni")
    for name, features in sites.MODALITIES.items():
        assert tuple(config.task.modalities[name].features) == features
    assert {c: set(v.values()) for c, v in tables.CODES.items()} == {
        c: set(config.task.modalities["clinical"].features[c].codes) for c in tables.CODES
    }
    subjects = sites.load(home / tables.FOLDER)
    said = sites.write_sites(subjects, tmp_path / "sites", seed=1)
    assert said["data"] == "generated" and said["data_version"].endswith(f"seed {SEED}")
    opened = {}
    for folder in sorted((tmp_path / "sites").iterdir()):
        manifest = load_manifest(folder)
        check_against_task(manifest, config.task)
        opened[folder.name] = open_cohort(folder, manifest, config.task, config.split, 0)
        assert opened[folder.name].findings == ()
    assert set(opened) == {"adni1", "adnigo", "adni2", "adni3", "reference"}
    assert set(opened["reference"].split) == {"train"}
    assert sum(map(len, opened.values())) == len(subjects.rows) == sum(n["subjects"] for n in said["n"].values())
    patterns = {tuple(row) for cohort in opened.values() for row in cohort.present.tolist()}
    assert len(patterns) > 8, "subjects lack modalities as they do"
    train = said["n"]["train"]["subjects"] + said["n"]["reference"]["subjects"]
    assert said["n"]["reference"]["subjects"] == round(0.1 * train + 0.49)
    assert said["n"]["test"]["subjects"] == round(0.15 * len(steady()))
    assert "reference" not in sites.write_sites(subjects, tmp_path / "none", seed=1, reference=0)["n"]


def test_the_seed_decides_the_reference_set_and_never_who_tests(home: Path, tmp_path: Path) -> None:
    drawn, tested = {}, {}
    for seed in (1, 2):
        sites.write_sites(sites.load(home / tables.FOLDER), tmp_path / str(seed), seed=seed)
        frames = {p.name: pd.read_parquet(p / "patients.parquet") for p in (tmp_path / str(seed)).iterdir()}
        drawn[seed] = set(frames["reference"]["patient"])
        tested[seed] = {p for f in frames.values() for p in f.loc[f["split"] == "test", "patient"]}
    assert drawn[1] != drawn[2] and tested[1] == tested[2] and drawn[1].isdisjoint(tested[1])


def test_the_official_split_is_used_where_it_is_there(copy: Path) -> None:
    names = sorted(steady()["PTID"])
    told = {"training": names[:150], "validation": names[150:170], "testing": [*names[170:-2], "999_S_0001"]}
    (copy / sites.SPLITS).write_text(json.dumps(told))
    found = sites.load(copy)
    assert set(found.rows.loc[found.rows["split"] == "test", "patient"]) <= set(told["testing"])
    assert found.exclusions[f"subjects of {sites.SPLITS} without one diagnosis"] == 1
    assert found.exclusions[f"subjects with one diagnosis whom {sites.SPLITS} leaves out"] == 2
    assert found.warnings == ()
    (copy / sites.SPLITS).write_text(json.dumps(told | {"testing": names[149:]}))
    sites.load.cache_clear()
    with pytest.raises(ConsiliumError, match=r"21 subject\(s\) are in two of training, validation, testing"):
        sites.load(copy)


SPOILT: dict[str, tuple[Spoil, str]] = {
    "no diagnosis file": (lambda r: next(r.glob("diagnosis/*")).unlink(), r"DXSUM_DATE\.csv is expected; it is missing"),
    "two downloads": (
        lambda r: shutil.copy(next(r.glob("clinical/VITALS*")), r / "clinical" / "VITALS_01Jan2025.csv"),
        "VITALS_01Jan2025.csv, VITALS_09May2024.csv are all there: leave the newest",
    ),
    "an older layout": (
        lambda r: rewrite(r, "diagnosis/*", lambda f: f.rename(columns={"DIAGNOSIS": "DXCURREN"})),
        "lacks the column.s. DIAGNOSIS .* DXCURREN and DXCHANGE stand in downloads before",
    ),
    "another diagnosis": (
        lambda r: rewrite(r, "diagnosis/*", set_first("DIAGNOSIS", "7")),
        r"line 2: 'DIAGNOSIS' is neither 1 \(CN\), 2 \(MCI\) nor 3 \(AD\)",
    ),
    "an unknown phase": (lambda r: rewrite(r, "diagnosis/*", set_first("PHASE", "ADNIX")), "line 2: 'PHASE' is none of ADNI1"),
    "no subject": (lambda r: rewrite(r, "diagnosis/*", set_first("PTID", "17")), "line 2: 'PTID' is no subject like 002_S_0413"),
    "a lost column": (
        lambda r: rewrite(r, "biospecimen/UP*", lambda f: f.drop(columns="PTAU")),
        "lacks the column.s. PTAU of ADNI's",
    ),
    "other people": (
        lambda r: rewrite(r, "clinical/NEURO*", lambda f: f.assign(PTID="000_S_0000")),
        r"NEUROEXM_09May2024\.csv holds none of the .* subjects of DXSUM",
    ),
    "no time": (lambda r: rewrite(r, "clinical/MED*", set_first("update_stamp", "soon")), "'UPDATE_STAMP' is no time"),
    "another table": (
        lambda r: rewrite(r, "image/*", lambda f: f[["PTID", "RID", "update_stamp"]]),
        "lacks 173 of 173 columns such as ST10CV: it is no UCSFFSX7",
    ),
    "an empty file": (lambda r: next(r.glob("biospecimen/APOE*")).write_text(""), "cannot be read .* cut short or no CSV"),
    "no genotypes": (lambda r: (r / BED).unlink(), r"ADNI_final\.bed is missing"),
    "genotypes cut short": (lambda r: (r / BED).write_bytes((r / BED).read_bytes()[:-9]), "it is cut short"),
    "another order": (lambda r: (r / BED).write_bytes(b"l\x1b\x00" + (r / BED).read_bytes()[3:]), "plink --make-bed"),
    "an unreadable mark": (lambda r: (r / "GENERATED.json").write_text("{}"), "marks generated patients but cannot be read"),
    "a broken split": (
        lambda r: (r / sites.SPLITS).write_text('{"training": []}'),
        "holds a list of PTID under each of training",
    ),
}


@pytest.mark.parametrize(("spoil", "said"), SPOILT.values(), ids=SPOILT)
def test_a_spoilt_file_is_refused_by_name_without_a_subject(copy: Path, spoil: Spoil, said: str) -> None:
    spoil(copy)
    with pytest.raises(ConsiliumError, match=said) as caught:
        sites.load(copy)
    told = str(caught.value).replace("002_S_0413", "")
    assert not any(name in told for name in small_twin()[1].subjects["PTID"])


def test_regions_that_a_download_lacks_stay_empty_and_are_told(copy: Path) -> None:
    rewrite(copy, "image/*", lambda f: f.drop(columns=["ST1SV", "ST2SV"]))
    found = sites.load(copy)
    assert "lacks 2 of 173 regions, which stay empty: ST1SV, ST2SV." in found.warnings[1]
    assert found.rows["ST1SV"].isna().all() and found.rows["ST29SV"].notna().any()


def test_without_the_data_a_twin_takes_their_place_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_DATA", str(tmp_path / "empty"))
    asked = []

    def write(root: Path, *, seed: int) -> None:
        asked.append(seed)
        twin.write_twin(root, seed=SEED, subjects=SUBJECTS)

    monkeypatch.setattr(sites, "write_twin", write)
    said = metakd_adni.prepare(tmp_path / "sites" / "0-0", Split(0, 0))
    assert said["data"] == "generated" and asked == [twin.FINAL_SEED] != [SEED]
    assert said["warnings"][0].startswith("These patients are generated: CONSILIUM_DATA has no folder 'adni'.")


def test_the_folder_that_is_asked_for_is_the_one_that_is_read(home: Path) -> None:
    there = [p.relative_to(home) for p in (home / tables.FOLDER).rglob("*.*") if p.name != "GENERATED.json"]
    asked = {"adni/diagnosis/DXSUM", "adni/clinical/", "adni/biospecimen/", "adni/image/UCSFFSX7_", "adni/genomic/liftovered/"}
    assert all(place in tables.HOW_TO_GET for place in asked)
    assert all(str(file).startswith(tuple(asked)) for file in there)


def test_the_benchmark_says_that_its_images_are_not_those_of_the_published_figures() -> None:
    assert "MUSE/RAVENS" in metakd_adni.BENCHMARK.comparable and "FreeSurfer" in metakd_adni.BENCHMARK.comparable


def test_the_benchmark_runs_on_its_twin_and_its_table_says_generated(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSILIUM_DATA", str(home))
    wanted = replace(metakd_adni.BENCHMARK, methods=("student", "metakd-faithful"))
    outcome = bench.run(wanted, debug=True, out=tmp_path, workers=1, console=Console(file=io.StringIO()))
    assert outcome.missing == {}
    results = load_results(outcome.folder / "results.json")
    assert results.data == "generated" and results.environment["data_version"].startswith("generated twin of ADNI")
    patterns = {r.pattern for r in results.rows if r.method == "metakd-faithful" and r.site is None and r.fold is None}
    assert len(patterns) == 16, "15 combinations, and what each has"
    told = {(r.method, r.metric): (r.mean, r.pattern) for r in results.rows if r.published}
    assert told["MetaKD", "accuracy"] == (0.6283, MEAN_OF_PATTERNS) and told["MetaKD", "f1"] == (0.4464, MEAN_OF_PATTERNS)
