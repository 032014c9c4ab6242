"""CREMA-D, S-MNIST and LUMA: what is read, the twins' signal, who is at which site, and the three benchmarks."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from common.config import load_config
from common.data.cohort import Cohort
from common.data.folder import open_cohort
from common.data.manifest import load_manifest
from common.errors import ConsiliumError
from common.evaluation.results import load_results
from simulations import bench
from simulations.benchmarks import mind_cremad, mind_luma, mind_smnist
from simulations.benchmarks.base import Benchmark, Split
from simulations.datasets.mind import cremad, luma, twins
from simulations.datasets.mind.sites import Samples, write_sites
from tests.simulations.mind_files import SEED, SETS, SIZES, WRITERS, small_twin, small_twins

BENCHMARKS: dict[str, Benchmark] = {
    "cremad": mind_cremad.BENCHMARK,
    "smnist": mind_smnist.BENCHMARK,
    "luma": mind_luma.BENCHMARK,
}
CLASSES = {"cremad": 6, "smnist": 10, "luma": 42}
PLACES = ("a", "b", "c", "d")


def samples_of(name: str) -> Samples:
    samples: Samples = SETS[name].load(small_twin(name)[0])
    return samples


def patients(folder: Path) -> pd.DataFrame:
    """The patient tables of all sites."""
    tables = [pd.read_parquet(p / "patients.parquet").assign(site=p.name) for p in folder.iterdir() if p.is_dir()]
    return pd.concat(tables, ignore_index=True)


def ceiling(classes: int, ways: int) -> float:
    """The accuracy of whoever knows how a twin is drawn, by so many modalities."""
    label = np.arange(classes)
    joint = np.ones((classes, 1))
    for way in range(ways):
        told = np.full((classes, classes), twins.LOST / classes)
        told[label, label] += (1 - twins.LOST) * (1 - twins.CONFUSED)
        told[label, twins.partner(label, way, classes)] += (1 - twins.LOST) * twins.CONFUSED
        joint = (joint[:, :, None] * told[:, None, :]).reshape(classes, -1)
    return float(joint.max(0).sum() / classes)


@pytest.mark.parametrize("name", SETS)
def test_equal_seeds_give_equal_files_and_other_seeds_other_ones(name: str, tmp_path: Path) -> None:
    one, _ = small_twin(name)
    tiny = {"cremad": {"actors": 2, "sentences": 1}, "smnist": {"train": 20, "test": 10}, "luma": {"train": 1, "test": 1}}[name]
    for folder, seed in (("a", SEED), ("b", SEED), ("c", SEED + 1)):
        WRITERS[name](tmp_path / folder, seed=seed, **tiny)
    files = [sorted(p.relative_to(tmp_path / f) for p in (tmp_path / f).rglob("*") if p.is_file()) for f in "abc"]
    assert files[0] == files[1]
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files[0])
    kept = [f for f in files[0] if f in files[2] and (tmp_path / "a" / f).read_bytes() != (tmp_path / "c" / f).read_bytes()]
    assert len(kept) > len(files[0]) / 3
    with pytest.raises(ConsiliumError, match=r"exists\. A twin is written into a new folder"):
        WRITERS[name](one, seed=SEED)


def test_the_signal_of_a_twin_is_the_one_that_is_told() -> None:
    for classes, told in ((6, (0.62, 0.84)), (10, (0.61, 0.83)), (42, (0.60, 0.82, 0.94))):
        label = np.arange(classes)
        found = [twins.partner(label, way, classes) for way in range(3)]
        assert all((twins.partner(mate, way, classes) == label).all() for way, mate in enumerate(found))
        assert all((one != other).all() for k, one in enumerate([label, *found]) for other in found[k:])
        assert [ceiling(classes, ways + 1) for ways in range(len(told))] == pytest.approx(told, abs=0.006)
        drawn = np.tile(label, 60_000 // classes)
        shown = twins.shown(drawn, 1, classes, np.random.default_rng(SEED))
        assert (shown == drawn).mean() == pytest.approx(ceiling(classes, 1), abs=0.01)


def flat(cohort: Cohort, name: str) -> NDArray[np.float64]:
    """Inputs as features; words are counted."""
    value = cohort.inputs[name].numpy()
    if cohort.task.modalities[name].kind == "text":
        counts = np.stack([np.bincount(row, minlength=cohort.task.modalities[name].buckets) for row in value])
        return np.asarray(counts[:, 1:], dtype=np.float64)
    return np.nan_to_num(value.reshape(len(value), -1)).astype(np.float64)


@pytest.mark.parametrize("name", SETS)
def test_every_modality_of_a_twin_tells_its_class_and_all_together_more(name: str, tmp_path: Path) -> None:
    said = write_sites(samples_of(name), tmp_path / "sites", seed=1, sites=("a",), masked=False, reference=0)
    assert said["data"] == "generated" and said["data_version"].endswith(f"seed {SEED}")
    config = load_config(BENCHMARKS[name].experiment)
    folder = tmp_path / "sites" / "a"
    cohort = open_cohort(folder, load_manifest(folder), config.task, config.split, 0)
    assert cohort.findings == ()
    assert set(config.task.modalities) == set(BENCHMARKS[name].modalities) == set(samples_of(name).stored)
    cohort = cohort.select(cohort.present.all(1).numpy())
    label, found, evidence = cohort.labels.numpy(), [], np.zeros((len(cohort), CLASSES[name]))
    for modality in config.task.modalities:
        model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=1000.0))
        folds = StratifiedGroupKFold(4)  # a repeated recording would tell its digit
        told = cross_val_predict(
            model, flat(cohort, modality), label, groups=cohort.patient, cv=folds, method="decision_function"
        )
        found.append((told.argmax(1) == label).mean())
        evidence += told
    assert min(found) > 0.3 > 1.5 / CLASSES[name]
    assert (evidence.argmax(1) == label).mean() > max(found) + 0.05


@pytest.mark.parametrize("name", SETS)
def test_no_patient_is_on_two_sides_and_every_sample_at_one_place(name: str, tmp_path: Path) -> None:
    samples = samples_of(name)
    if name == "cremad":  # OGM-GE's lists are drawn by clip
        samples = cremad.new_actors(samples, 1)
    said = write_sites(samples, tmp_path / "sites", seed=1, sites=PLACES, reference=0.2)
    table = patients(tmp_path / "sites")
    assert sorted(table["site"].unique()) == [*PLACES, "reference", "test"]
    assert (table.groupby("patient")["site"].nunique() == 1).all()
    assert sorted(table["visit"]) == sorted(samples.rows["visit"])
    tested = set(samples.rows.loc[samples.rows["part"] == "test", "visit"])
    assert set(table.loc[table["site"] == "test", "visit"]) == tested
    labels = samples.rows.set_index("visit")["label"]
    assert (table.set_index("visit")["class"] == labels[table["visit"]]).all()
    people = samples.rows.loc[samples.rows["part"] == "train", "patient"].nunique()
    assert said["n"]["reference"]["patients"] == pytest.approx(0.2 * people, abs=1)
    assert sum(n["samples"] for n in said["n"].values()) == len(samples.rows)
    held = {site: set(load_manifest(tmp_path / "sites" / site).modalities) for site in (*PLACES, "reference", "test")}
    everything = set(samples.stored)
    assert held["reference"] == held["test"] == everything
    assert sum(held[site] == everything for site in PLACES) == 2 and all(held.values())
    assert {load_manifest(tmp_path / "sites" / site).role for site in PLACES} == {"train"}
    assert load_manifest(tmp_path / "sites" / "test").role == "evaluate"


def test_the_seed_decides_who_is_where_and_who_lacks_what(tmp_path: Path) -> None:
    samples, drawn, told = samples_of("smnist"), {}, {}
    for name, options in (
        ("one", {"seed": 1}),
        ("again", {"seed": 1}),
        ("two", {"seed": 2}),
        ("full", {"seed": 1, "masked": False}),
    ):
        told[name] = write_sites(samples, tmp_path / name, sites=PLACES, **options)["data_checksum"]
        drawn[name] = set(pd.read_parquet(tmp_path / name / "reference" / "patients.parquet")["visit"])
    assert drawn["one"] == drawn["again"] == drawn["full"] != drawn["two"]
    assert told["one"] == told["again"] != told["two"]
    assert all(set(load_manifest(p).modalities) == {"image", "speech"} for p in (tmp_path / "full").iterdir())
    none = write_sites(samples, tmp_path / "none", seed=1, sites=PLACES, reference=0)
    assert "reference" not in none["n"] and not (tmp_path / "none" / "reference").exists()
    with pytest.raises(ConsiliumError, match="training patients cannot make 900 sites"):
        write_sites(samples, tmp_path / "many", seed=1, sites=tuple(f"s{k}" for k in range(900)))


def test_a_clip_of_cremad_has_its_lists_part_and_its_middle_frame(tmp_path: Path) -> None:
    root, truth = small_twin("cremad")
    samples = samples_of("cremad")
    rows, known = samples.rows.set_index("visit"), truth.set_index("clip")
    assert (rows["part"] == known.loc[rows.index, "part"]).all() and (rows["label"] == known.loc[rows.index, "label"]).all()
    assert (rows["patient"] == rows.index.str[:4]).all()
    assert {Path(p).name for p in rows["image"].dropna()} == {"00030.jpg"}
    assert dict(samples.exclusions) == {
        "clips without sound (the face alone)": 3,
        "clips without frames (the sound alone)": 3,
        "clips with neither (left out)": 0,
    }
    write_sites(samples, tmp_path / "sites", seed=1, sites=("a",), masked=False)
    cell = pd.read_parquet(tmp_path / "sites" / "test" / "patients.parquet").dropna().iloc[0]
    written = (tmp_path / "sites" / "test" / cell["image"]).read_bytes()
    assert written == (root / cremad.FRAMES / cell["visit"] / "00030.jpg").read_bytes()


def test_new_actors_test_on_actors_who_do_not_train() -> None:
    rows = cremad.new_actors(samples_of("cremad"), 5).rows
    parts = {part: set(few["patient"]) for part, few in rows.groupby("part")}
    assert len(parts["test"]) == round(0.2 * SIZES["cremad"]["actors"]) and parts["test"].isdisjoint(parts["train"])
    assert parts["test"] != set(cremad.new_actors(samples_of("cremad"), 6).rows.query("part == 'test'")["patient"])


def test_a_spoken_digit_is_a_series_of_39_steps_and_repeated_ones_are_one_patient(tmp_path: Path) -> None:
    root, truth = small_twin("smnist")
    samples = samples_of("smnist")
    of_recording = samples.rows["patient"].groupby([truth["part"], truth["recording"]])
    assert (of_recording.nunique() == 1).all() and samples.rows["patient"].nunique() == len(of_recording)
    assert samples.exclusions["samples that repeat another one's recording (kept, one patient)"] == len(truth) - len(of_recording)
    write_sites(samples, tmp_path / "sites", seed=1, sites=("a",), masked=False, reference=0)
    config = load_config("mind-smnist")
    cohort = open_cohort(tmp_path / "sites" / "test", load_manifest(tmp_path / "sites" / "test"), config.task, config.split, 0)
    spoken = np.load(root / "data_sp_test.npy").reshape(-1, 39, 13)
    np.testing.assert_array_equal(cohort.inputs["speech"].numpy(), spoken)
    written = np.asarray(Image.open(tmp_path / "sites" / "test" / "test-00007.png"))
    np.testing.assert_array_equal(written, np.load(root / "data_wr_test.npy")[7].reshape(28, 28))


def test_lumas_lists_lead_to_the_image_the_word_and_the_passage_of_one_class(tmp_path: Path) -> None:
    truth = small_twin("luma")[1]
    samples = samples_of("luma")
    counts = samples.rows.groupby(["part", "label"]).size()
    assert (counts["test"] == 2).all() and (counts["train"] == 8).all() and len(counts) == 2 * 42
    assert set(samples.rows["label"]) == set(luma.CLASSES)
    assert all(Path(f).name.split("_")[0] == label for f, label in zip(samples.rows["audio"], samples.rows["label"], strict=True))
    said = samples.rows.apply(lambda row: row["label"] in row["text"].lower().strip(".").split(), axis=1)
    assert not said.any() and samples.rows["text"].str.contains(r"\[MASK\]", regex=True, case=False).all()
    assert samples.exclusions["passages that name their class (the word masked)"] == len(truth)
    write_sites(samples, tmp_path / "sites", seed=1, sites=("a",), masked=False, reference=0)
    row = truth[(truth["part"] == "test") & (truth["label"] == "ship")].iloc[1]
    image = np.asarray(Image.open(tmp_path / "sites" / "test" / "ship-001-test.png").convert("L"), dtype=float)
    clear = [twins.draw_picture(k, 32, np.random.default_rng(0)).ravel() for k in range(42)]
    assert np.argmax([np.corrcoef(picture, image.ravel())[0, 1] for picture in clear]) == row["image"]


@pytest.mark.parametrize(
    ("label", "text", "masked"),
    [
        ("man", "A MAN, two men, a mane", "A [MASK], two [MASK], a mane"),
        ("fox", "Foxes outfox a fox.", "[MASK] outfox a [MASK]."),
        ("sea", "The sea's season", "The [MASK]'s season"),
        ("mouse", "mice and a mouse", "[MASK] and a [MASK]"),
    ],
)
def test_a_passage_does_not_name_its_class(label: str, text: str, masked: str) -> None:
    assert luma._masked(pd.DataFrame({"label": [label], "text": [text]})) == ([masked], 1)


@pytest.mark.parametrize("name", SETS)
def test_what_was_recorded_is_counted_against_what_is_reported(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, (root, _) = SETS[name], small_twin(name)
    linked = tmp_path / name
    linked.mkdir()
    for entry in root.iterdir():
        if entry.name != "GENERATED.json":
            (linked / entry.name).symlink_to(entry)
    samples = module.load(linked)
    assert samples.data == "real" and samples.version == module.TITLE
    first, reported = samples.warnings[0], " / ".join(f"{n:,}" for n in module.REPORTED)
    assert first.endswith(f" has {reported}.")
    counts = samples.rows["part"].value_counts()
    monkeypatch.setattr(module, "REPORTED", (counts["train"], counts["test"]))
    module.load.cache_clear()
    assert first not in module.load(linked).warnings
    module.load.cache_clear()


def test_without_the_data_a_twin_takes_their_place_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_DATA", str(tmp_path / "empty"))
    asked = []

    def write(root: Path, *, seed: int) -> None:
        asked.append(seed)
        WRITERS["smnist"](root, seed=SEED, **SIZES["smnist"])

    monkeypatch.setattr(mind_smnist.twins, "write_smnist", write)
    for name in ("0-0", "0-0-full"):
        said = mind_smnist.prepare(tmp_path / "sites" / name, Split(0, 0, masked=name == "0-0"))
        assert said["data"] == "generated"
        assert said["warnings"][0].startswith("These patients are generated: CONSILIUM_DATA has no folder 'smnist'.")
    assert asked == [twins.FINAL_SEED] != [SEED], "written once, with the seed of the table"


def test_ogm_ges_lists_are_told_to_have_actors_on_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_twin("cremad")
    monkeypatch.setenv("CONSILIUM_DATA", small_twins().name)
    main = mind_cremad.prepare(tmp_path / "main", Split(0, 0))
    assert main["warnings"] == [mind_cremad.ACTORS_TWICE]
    other = mind_cremad.prepare(tmp_path / "other", Split(0, 0, mind_cremad.NEW_ACTORS))
    assert other["warnings"] == [] and other["data_checksum"] != main["data_checksum"]
    table = patients(tmp_path / "other")
    assert (table.groupby("patient")["site"].nunique() == 1).all()


@pytest.mark.parametrize("name", SETS)
def test_a_benchmark_runs_on_its_twin_and_its_table_says_generated(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_twin(name)
    monkeypatch.setenv("CONSILIUM_DATA", small_twins().name)
    wanted = replace(BENCHMARKS[name], methods=("student", "fedavg"))
    outcome = bench.run(wanted, debug=True, out=tmp_path, workers=1, console=Console(file=io.StringIO()))
    assert outcome.missing == {}
    results = load_results(outcome.folder / "results.json")
    assert results.data == "generated" and results.environment["data_version"].startswith("generated twin of ")
    found = {(r.method, r.pattern) for r in results.rows if r.published is None and r.site is None and r.fold is None}
    assert {("student", "all"), ("student", "image"), ("fedavg", "all")} <= found
    assert {r.metric for r in results.rows if r.method == "student"} >= {"accuracy", "auroc"}
