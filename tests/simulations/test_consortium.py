"""The demonstration consortium: real files, the promised holes and skews, identical bytes, and the promised difficulty."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import yaml
from pydantic import TypeAdapter
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

import configs
from common.data.manifest import Manifest, check_against_task, load_manifest
from common.errors import ConsiliumError
from common.task import Task
from simulations.consortium import DEMO, SHIFT, TINY, draw_cohort, write_demo, write_tiny

HOLDS = {
    "harbour-general": {"admission", "cxr", "labs", "notes"},
    "kestrel-radiology": {"cxr"},
    "lindenhof": {"admission", "cxr"},
    "marsh-lane": {"notes"},
    "ostwall-clinic": {"labs"},
    "reference": {"admission", "cxr", "labs", "notes"},
    "st-brigid": {"admission", "cxr", "labs", "notes"},
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("consortium") / "demo"
    write_demo(folder)
    return folder


@pytest.fixture(scope="module")
def task() -> Task:
    file = Path(configs.__path__[0]) / "task" / "demo.yaml"
    text = file.read_text(encoding="utf-8")
    assert text.startswith("# @package task\n")
    return TypeAdapter(Task).validate_python(yaml.safe_load(text))


def patient_table(site: Path) -> tuple[Manifest, pd.DataFrame]:
    manifest = load_manifest(site)
    file = site / manifest.patients
    return manifest, pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file, dtype=str, keep_default_na=False)


def held(table: pd.DataFrame, column: str) -> "pd.Series[bool]":
    return table[column].notna() & (table[column].astype(str) != "")


def fingerprint(folder: Path) -> Mapping[str, str]:
    files = (f for f in folder.rglob("*") if f.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_every_manifest_speaks_of_the_task(demo: Path, task: Task) -> None:
    folders = sorted(f.name for f in demo.iterdir() if f.is_dir())
    assert folders == sorted(HOLDS)
    for slug in folders:
        manifest = load_manifest(demo / slug)
        check_against_task(manifest, task)
        assert manifest.site == slug
        assert set(manifest.labels) == {"deterioration"}
        assert set(manifest.modalities) == HOLDS[slug]
        for name, source in manifest.modalities.items():
            assert set(source.variables) == set(task.modalities[name].features)
        if "admission" in manifest.modalities:
            features = task.modalities["admission"].features
            for name, variable in manifest.modalities["admission"].variables.items():
                assert set(variable.codes.values()) == set(features[name].codes)


def test_every_cell_points_at_a_file_and_every_file_is_pointed_at(demo: Path) -> None:
    for slug in HOLDS:
        manifest, table = patient_table(demo / slug)
        pointed = {"manifest.yaml", manifest.patients}
        for source in manifest.modalities.values():
            if source.column is not None:
                pointed |= set(table.loc[held(table, source.column), source.column])
        assert pointed == set(fingerprint(demo / slug))
        assert table[manifest.visit].is_unique


def test_full_hospitals_lack_some_modalities_of_some_patients_but_never_all(demo: Path) -> None:
    for slug in ("harbour-general", "st-brigid"):
        manifest, table = patient_table(demo / slug)
        holds = pd.DataFrame({m: held(table, str(s.column)) for m, s in manifest.modalities.items()})
        assert holds.any(axis=1).all()
        for modality in HOLDS[slug]:
            assert 0.6 < holds[modality].mean() < 1
        assert holds.all(axis=1).sum() > 100


def test_hospitals_differ_in_size_prevalence_and_visits_per_patient(demo: Path) -> None:
    prevalence = {}
    for slug in HOLDS:
        manifest, table = patient_table(demo / slug)
        prevalence[slug] = pd.to_numeric(table[manifest.labels["deterioration"]]).mean()
        people = table[manifest.patient].nunique()
        if slug == "marsh-lane":
            assert people == 40
        else:
            assert 200 <= len(table) <= 400
        assert (people < len(table)) == (slug != "reference")
    assert prevalence["st-brigid"] == pytest.approx(0.12, abs=0.01)
    assert prevalence["ostwall-clinic"] == pytest.approx(0.45, abs=0.01)


def test_columns_and_codes_differ_between_hospitals(demo: Path) -> None:
    ages, sexes = set(), set()
    for slug in ("harbour-general", "lindenhof", "st-brigid"):
        manifest = load_manifest(demo / slug)
        source = manifest.modalities["admission"]
        file = demo / slug / ("admission.csv" if source.column else manifest.patients)
        table = pd.read_csv(file, dtype=str)
        ages.add(source.variables["age"].column)
        sexes.add(tuple(source.variables["sex"].codes))
        for variable in source.variables.values():
            assert variable.column in table
            if variable.codes:
                assert set(table[variable.column]) == set(variable.codes)
    assert len(ages) == len(sexes) == 3


def test_images_are_valid_dicom_that_use_their_range(demo: Path) -> None:
    polarity, bits, modalities = set(), set(), set()
    for slug in ("harbour-general", "kestrel-radiology", "lindenhof", "reference", "st-brigid"):
        uids = set()
        files = sorted((demo / slug / "cxr").iterdir())
        for file in files[:20]:
            image = pydicom.dcmread(file)
            pixels = image.pixel_array / (2**image.BitsStored - 1)
            assert pixels.shape == (image.Rows, image.Columns)
            assert pixels.max() <= 1
            assert np.ptp(pixels) > 0.5
            middle, corner = pixels[image.Rows // 2].mean(), pixels[:4, :4].mean()
            assert (middle > corner) == (image.PhotometricInterpretation == "MONOCHROME2")  # the air beside the neck is dark
            assert image.PatientIdentityRemoved == "YES"
            uids |= {image.SOPInstanceUID, image.SeriesInstanceUID, image.StudyInstanceUID}
        assert len(uids) == 60
        polarity.add(image.PhotometricInterpretation)
        bits.add(image.BitsStored)
        modalities.add(image.Modality)
    assert polarity == {"MONOCHROME1", "MONOCHROME2"}
    assert bits == {8, 10, 12, 14}
    assert modalities == {"CR", "DX"}


def test_labs_are_hourly_plausible_and_irregularly_missing(demo: Path) -> None:
    labs = pd.read_parquet(demo / "reference" / "labs.parquet")
    assert labs["hour"].between(0, 24, inclusive="left").all()
    assert labs["spo2"].max() <= 100
    assert labs["heart_rate"].median() == pytest.approx(90, abs=15)
    assert labs["creatinine"].min() > 0
    assert 0.05 < labs["heart_rate"].isna().mean() < 0.25
    assert 0.8 < labs["creatinine"].isna().mean() < 0.98
    one = pd.read_parquet(next((demo / "harbour-general" / "labs").iterdir()))
    assert (one["hour"] % 1 > 0).any()


def test_notes_are_utf8_of_a_few_sentences(demo: Path) -> None:
    notes = [f.read_bytes().decode("utf-8") for f in (demo / "reference" / "notes").iterdir()]
    assert len(set(notes)) == len(notes)
    assert all(15 < len(note.split()) < 128 for note in notes)
    assert any("°C" in note for note in notes)
    for pair in (("denies dyspnoea", "dyspnoeic"), ("afebrile", "febrile with rigors")):
        assert all(any(words in note for note in notes) for words in pair)


def test_equal_seeds_give_identical_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 2026), ("b", 2026), ("c", 1)):
        write_tiny(tmp_path / name, seed=seed)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    same = set(fingerprint(tmp_path / "a").values()) & set(fingerprint(tmp_path / "c").values())
    assert same == {v for k, v in fingerprint(tmp_path / "a").items() if k.endswith("manifest.yaml")}


def test_the_tiny_consortium_fits_the_task_too(tmp_path: Path, task: Task) -> None:
    write_tiny(tmp_path / "tiny")
    for hospital in TINY:
        manifest, table = patient_table(tmp_path / "tiny" / hospital.slug)
        check_against_task(manifest, task)
        assert table[manifest.patient].nunique() == 60
    image = pydicom.dcmread(next((tmp_path / "tiny" / "birch" / "cxr").iterdir()))
    assert image.pixel_array.shape == (16, 16)


def test_a_written_consortium_is_reused_and_nothing_else_is_touched(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    write_tiny(folder)
    before = {f: f.stat().st_mtime_ns for f in folder.rglob("*")}
    write_tiny(folder)
    assert before == {f: f.stat().st_mtime_ns for f in folder.rglob("*")}
    with pytest.raises(ConsiliumError, match="already holds"):
        write_tiny(folder, seed=7)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConsiliumError, match="already holds"):
        write_demo(tmp_path / "other")
    assert [f.name for f in (tmp_path / "other").iterdir()] == ["thesis.txt"]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["other", "tiny"]


def test_patients_sets_the_size_of_a_hospital_by_name(tmp_path: Path) -> None:
    few = {h.slug: 12 for h in DEMO} | {"marsh-lane": 7}
    write_demo(tmp_path / "few", patients=few)
    counts = json.loads((tmp_path / "few" / "consortium.json").read_text(encoding="utf-8"))["folders"]
    assert {slug: c["patients"] for slug, c in counts.items()} == few
    with pytest.raises(ConsiliumError, match="did you mean 'lindenhof'"):
        write_demo(tmp_path / "x", patients={"lindenhoff": 5})
    with pytest.raises(ConsiliumError, match="at least 1"):
        write_demo(tmp_path / "x", patients={"lindenhof": 0})


def test_severities_are_as_telling_as_documented() -> None:
    cohort = draw_cohort(replace(DEMO[-1], patients=6000), seed=3)
    half = len(cohort.label) // 2
    severities = np.stack([cohort.severity[m] for m in SHIFT], axis=1)

    def oracle(columns: list[int]) -> float:
        model = LogisticRegression().fit(severities[:half, columns], cohort.label[:half])
        return float(roc_auc_score(cohort.label[half:], model.decision_function(severities[half:, columns])))

    alone = [oracle([i]) for i in range(len(SHIFT))]
    assert min(alone) > 0.72
    assert max(alone) < 0.83
    assert oracle([0, 1, 2, 3]) == pytest.approx(0.91, abs=0.025)
