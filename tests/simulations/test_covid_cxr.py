"""COVID-19 Image Data Collection: the official layout, made up and real; patients at one site and in one fold; masked notes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from common.config import load_config
from common.data.cohort import Cohort
from common.data.folder import open_cohort
from common.data.manifest import load_manifest
from common.errors import ConsiliumError
from common.evaluation.results import load_results
from simulations import bench
from simulations.ablations import MAIN
from simulations.benchmarks import covid_cxr as benchmark
from simulations.benchmarks.base import Split
from simulations.datasets import covid_cxr
from simulations.datasets.covid_cxr import CovidImages, load, masked_note, write_sites
from simulations.workers import run_one

PATIENTS, FOLDS = 40, 5
PLACES = ("Hospital, Hannover, Germany", "Valencia, Spain", "Edinburgh, United Kingdom", "Cleveland, Ohio, USA")
TELLING = {"survival", "intubated", "intubation_present", "in_icu", "needed_supplemental_O2", "extubated", "finding", "went_icu"}
TELLING |= {"location", "license", "url", "doi", "date", "leukocyte_count", "note"}


def row(patient: int, image: int) -> dict[str, Any]:
    """Returns a row of the table: even patients were in intensive care, every fifth has another disease."""
    known = {"license": "CC BY-NC-SA", "modality": "X-ray", "folder": "images", "view": ("PA", "AP", "AP Supine")[patient % 3]}
    return (
        known
        | {
            "patientid": f"{patient}{'a' if patient == 7 else ''}",
            "offset": image,
            "sex": ("M", "F", None)[patient % 3],
            "age": 50 + patient if patient % 4 else None,
            "finding": "Legionella" if patient % 5 == 0 else "COVID-19, ARDS" if patient == 1 else "COVID-19",
            "went_icu": "Y" if patient % 2 == 0 else "N",
            "pO2_saturation": 90.5 if patient % 4 == 1 else None,
            "location": PLACES[patient % 4],
            "clinical_notes": "Fever. Intubated in the ICU" if patient % 4 else None,
            "filename": f"case-{patient}-{image}.{'jpg' if image else 'png'}",
        }
        | dict.fromkeys(
            ["temperature", "lymphocyte_count", "neutrophil_count", *(TELLING - {"finding", "went_icu", "location", "license"})]
        )
    )


def rows() -> list[dict[str, Any]]:
    """Returns the table: two images per patient, then rows that are left out, each for a reason of its own."""
    found = [row(patient, image) for patient in range(PATIENTS) for image in range(2)]
    found[3] |= {"location": PLACES[3]}  # the second image of a patient from Spain
    found[5] |= {"location": None}
    others = (
        {"view": "L"},
        {"modality": "CT"},
        {"folder": "volumes"},
        {"license": None},
        {"license": "CC BY-NC-ND"},
        {"filename": "gone.png"},
    )
    found += [row(100 + k, 0) | change for k, change in enumerate(others)]
    found += [row(110, 0) | {"went_icu": None, "finding": "todo"}, row(111, 0) | {"went_icu": "Would have been stated"}]
    return found


def picture(seed: int, size: tuple[int, int] = (224, 224)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, size[::-1], dtype=np.uint8))


def write(root: Path, table: list[dict[str, Any]]) -> None:
    """Writes the official layout: one image as its original, wider than high and in colours, the others cropped already."""
    (root / "images").mkdir(parents=True)
    pd.DataFrame(table).to_csv(root / "metadata.csv", index=False)
    for number, line in enumerate(table):
        name = Path(line["filename"])
        if number == 1:
            picture(number, (300, 240)).convert("RGB").save(root / "images" / name)
        elif name.stem != "gone":
            picture(number).save(root / "images" / f"{name.stem}.png")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with made-up images in the official layout."""
    monkeypatch.setattr(covid_cxr, "ROWS", 2 * PATIENTS + 8)
    monkeypatch.setattr(covid_cxr, "COUNTS", {"images": 82, "icu": (80, 40), "covid": (81, 65)})
    monkeypatch.setattr(covid_cxr, "NOT_DISTRIBUTED", ("gone.png",))
    write(tmp_path / covid_cxr.FOLDER, rows())
    return tmp_path / covid_cxr.FOLDER


@pytest.fixture(scope="module")
def real(data_root: Path) -> CovidImages:
    if not (data_root / covid_cxr.FOLDER).is_dir():
        pytest.skip(f"CONSILIUM_DATA holds no folder {covid_cxr.FOLDER}")
    return load(data_root / covid_cxr.FOLDER)


def opened(sites: Path, variant: str | None) -> dict[str, Cohort]:
    """Returns the sites as they open for the task of a variant."""
    config = load_config("covid-cxr", benchmark.BENCHMARK.protocols.get(variant or "", ()))
    found = {}
    for folder in sorted(sites.iterdir()):
        found[folder.name] = open_cohort(folder, load_manifest(folder), config.task, config.split, 0)
    return found


def test_what_is_left_out_is_counted(root: Path) -> None:
    images = load(root)
    assert dict(images.exclusions) == {
        "rows that are no frontal X-ray": 3,
        "frontal X-rays without a licence that allows changes": 2,
        "frontal X-rays that are not distributed": 1,
    }
    assert images.unknown["icu"] == {
        "images that do not tell of intensive care": 1,
        "images of whose intensive care is only supposed": 1,
    }
    assert images.unknown["covid"] == {"images without a known finding": 1}
    by_patient = images.rows.groupby("patient")
    assert (by_patient["icu"].first()[["0", "1", "7a"]] == [1, 0, 0]).all()
    assert (by_patient["covid"].first()[["0", "1", "2"]] == [0, 1, 1]).all()


def test_an_original_image_becomes_its_grey_centre_and_a_cropped_one_stays_as_it_is(root: Path) -> None:
    images = load(root)
    with Image.open(io.BytesIO(images.files["case-0-1"])) as image:
        assert (image.size, image.mode) == ((224, 224), "L")
        middle = np.asarray(image, dtype=float)
    expected = np.asarray(
        picture(1, (300, 240)).crop((30, 0, 270, 240)).resize((224, 224), Image.Resampling.LANCZOS), dtype=float
    )
    assert np.abs(middle - expected).mean() < 12  # JPEG
    assert images.files["case-0-0"] == (root / "images" / "case-0-0.png").read_bytes()


def test_a_patient_is_where_his_first_image_is(root: Path) -> None:
    sites = load(root).rows.groupby("patient")["site"].unique()
    assert all(len(found) == 1 for found in sites)
    named = {patient: sites[str(patient)][0] for patient in range(6)}
    assert named == {0: "germany", 1: "spain", 2: "europe", 3: "overseas", 4: "germany", 5: "spain"}


@pytest.mark.parametrize(("variant", "held"), [(None, 2), ("without-view", 2), ("with-text", 3), ("covid", 3)])
def test_sites_open_for_their_task_without_a_fault_and_without_a_telling_column(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str | None, held: int
) -> None:
    monkeypatch.setenv("CONSILIUM_DATA", str(root.parent))
    said = benchmark.prepare(tmp_path / "sites", Split(0, 0, variant))
    cohorts = opened(tmp_path / "sites", variant)
    assert list(cohorts) == ["europe", "germany", "overseas", "spain"]
    assert all(cohort.findings == () and cohort.present.shape[1] == held for cohort in cohorts.values())
    assert sum(map(len, cohorts.values())) == (81 if variant == "covid" else 80)
    for site in cohorts:
        columns = set(pd.read_parquet(tmp_path / "sites" / site / "patients.parquet"))
        assert not columns & TELLING
        assert ("text" in columns) == (held == 3) and ("view" in columns) == (variant != "without-view")
    assert said["n"]["train"]["images"] + said["n"]["test"]["images"] == sum(map(len, cohorts.values()))
    if held == 3:
        assert not cohorts["germany"].present[:, 2].any() and cohorts["spain"].present[:, 2].all()


def test_every_image_is_tested_once_and_no_patient_is_on_two_sides(root: Path, tmp_path: Path) -> None:
    images, tested = load(root), []
    for fold in range(FOLDS):
        write_sites(images, tmp_path / str(fold), fold=fold)
        parts = [pd.read_parquet(p / "patients.parquet") for p in (tmp_path / str(fold)).iterdir()]
        table = pd.concat(parts)
        assert (table.groupby("patient")["split"].nunique() == 1).all()
        tested += table.loc[table["split"] == "test", "visit"].tolist()
    assert sorted(tested) == sorted(images.rows.loc[images.rows["icu"].notna(), "visit"])
    with pytest.raises(ConsiliumError, match="no fold 5"):
        write_sites(images, tmp_path / "none", fold=5)
    with pytest.raises(ConsiliumError, match="is not empty"):
        write_sites(images, tmp_path / "0", fold=0)


@pytest.mark.parametrize(
    ("note", "label", "left"),
    [
        ("Severe. Person is INTUBATED with an OG in place.", "icu", "Severe. Person is with an in place."),
        ("Re-intubated, ventilated; later Extubation and mechanical ventilation", "icu", ", ; later and"),
        ("He died on the ward. Deceased, not discharged", "icu", "He on the . , not"),
        ("Required supplemental oxygen by cannula, then high flow. SaO2 93 %", "icu", "Required by , then . SaO2 93 %"),
        ("Diet, wardrobe and lineage stay", "icu", "Diet, wardrobe and lineage stay"),
        ("ICU", "icu", None),
        ("COVID-19 by RT-PCR, fever", "icu", "COVID-19 by RT-PCR, fever"),
        ("COVID-19 and SARS-CoV-2 by RT-PCR, fever", "covid", "-19 and - -2 by RT- , fever"),
        ("E. coli and pneumocystis in the ITU", "covid", "and in the"),
    ],
)
def test_notes_lose_the_words_that_tell_the_label(note: str, label: covid_cxr.Label, left: str | None) -> None:
    assert masked_note(note, label) == left


def change(root: Path, **cells: Any) -> None:
    table = pd.DataFrame(rows()).astype(object)
    for column, value in cells.items():
        table.loc[0, column] = value
    table.to_csv(root / "metadata.csv", index=False)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda root: (root / "metadata.csv").unlink(), r"metadata\.csv is missing"),
        (lambda root: (root / "metadata.csv").write_bytes(b"\xff\xfe\x00"), r"metadata\.csv is no table"),
        (lambda root: (root / "metadata.csv").write_text("patientid,age\n1,2\n"), r"lacks column\(s\) sex, finding"),
        (lambda root: pd.DataFrame(rows()[:-1]).to_csv(root / "metadata.csv"), r"rows of metadata\.csv: 87 found, 88 published"),
        (lambda root: change(root, view="L"), r"images: 81 found, 82 published"),
        (lambda root: change(root, went_icu=None), r"known 'icu', and positive ones: \(79, 39\) found, \(80, 40\) published"),
        (lambda root: change(root, filename="case-1-0.jpg"), r"names an image twice"),
        (lambda root: change(root, age="old"), r"column 'age' holds what is no number"),
        (lambda root: (root / "images" / "case-3-0.png").unlink(), r"case-3-0\.png is missing"),
        (lambda root: (root / "images" / "case-3-0.png").write_bytes(b"GIF"), r"case-3-0\.png cannot be read as an image"),
        (lambda root: picture(6).save(root / "images" / "case-8-0.png"), r"case-3-0 and case-8-0 are the same image"),
        (lambda root: (root / "SHA256SUMS").write_text("0  images/case-3-0.png\n"), r"case-3-0\.png differs from its checksum"),
    ],
)
def test_data_that_are_not_the_official_ones_are_named_with_their_home(root: Path, harm: Any, message: str) -> None:
    harm(root)
    with pytest.raises(ConsiliumError, match=rf"{message}.*https://github\.com/ieee8023/covid-chestxray-dataset"):
        load(root)


def test_there_is_no_reference_set_and_missing_data_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConsiliumError, match="no reference set"):
        benchmark.prepare(tmp_path / "sites", Split(0, 0, reference=0.1))
    monkeypatch.delenv("CONSILIUM_DATA", raising=False)
    with pytest.raises(ConsiliumError, match=r"CONSILIUM_DATA is not set.*'covid_cxr'"):
        benchmark.prepare(tmp_path / "sites", Split(0, 0))


@pytest.mark.parametrize("variant", [v or "" for v in benchmark.BENCHMARK.variants])
def test_every_method_of_every_variant_is_a_valid_configuration(variant: str) -> None:
    protocol = benchmark.BENCHMARK.protocols.get(variant, ())
    for overrides in ((), *benchmark.BENCHMARK.overrides.values()):
        config = load_config(benchmark.BENCHMARK.experiment, [*protocol, *overrides])
        assert ("text" in config.task.modalities) == (variant in (benchmark.WITH_TEXT, benchmark.COVID))
        assert config.task.outputs == (("covid",) if variant == benchmark.COVID else ("icu",))


@pytest.mark.parametrize("variant", [None, benchmark.WITH_TEXT])
def test_a_debug_run_ends_with_a_table(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str | None) -> None:
    monkeypatch.setenv("CONSILIUM_DATA", str(root.parent))
    # Cells run in processes of their own, which would not see the made-up counts.
    monkeypatch.setattr(bench, "run_jobs", lambda work, jobs, *_: [(work.prepare(work.split(j)), run_one(work, j)) for j in jobs])
    said = io.StringIO()
    outcome = bench.run(
        "covid-cxr", debug=True, only=(MAIN, "central"), variant=variant, out=tmp_path / "runs", console=Console(file=said)
    )
    assert outcome.missing == {}
    results = load_results(outcome.folder / "results.json")
    patterns = {r.pattern for r in results.rows if r.method == MAIN}
    assert ("image+table+text" in patterns) == (variant is not None) and "image+table" in patterns
    assert any(r.published and r.published.startswith("measured") for r in results.rows)
    assert results.exclusions["rows that are no frontal X-ray"] == 3


def test_the_real_images_are_those_that_were_counted(real: CovidImages, tmp_path: Path) -> None:
    assert dict(real.exclusions) == {
        "rows that are no frontal X-ray": 180,
        "frontal X-rays without a licence that allows changes": 257,
        "frontal X-rays that are not distributed": 2,
    }
    assert real.rows["patient"].nunique() == 183
    known = real.rows[real.rows["icu"].notna()]
    assert known["patient"].nunique() == 90
    assert known.groupby("site").size().to_dict() == {"europe": 25, "germany": 105, "overseas": 29, "spain": 35}
    assert (known.groupby("patient")["icu"].nunique() == 1).all()
    write_sites(real, tmp_path / "sites", fold=0, text=True)
    cohorts = opened(tmp_path / "sites", benchmark.WITH_TEXT)
    assert sum(map(len, cohorts.values())) == 194 and not any(cohort.findings for cohort in cohorts.values())
