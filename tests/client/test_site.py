"""Where a site finds its patients, and what it allows."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from client.site import Site, open_site, site_folder
from common.arrays import moments_arrays, standardisation_of
from common.config import Config
from common.errors import ConsiliumError
from tests.client.conftest import context_of, limited
from tests.common.samples import make_config, make_task, write_folder


def refused(context: object, config: Config) -> str:
    with pytest.raises(ConsiliumError) as error:
        open_site(context, config)  # type: ignore[arg-type]
    return str(error.value)


def test_a_manifest_is_found_by_its_folder_or_its_file(folder: Path, config: Config) -> None:
    for place in (folder, folder / "manifest.yaml"):
        assert site_folder(context_of(place)) == (folder, 1)
    assert open_site(context_of(folder / "manifest.yaml"), config).manifest.site == "riverside"


def test_a_file_of_another_name_is_refused_instead_of_reading_the_manifest_beside_it(folder: Path, config: Config) -> None:
    assert "names neither a folder nor a file manifest.yaml" in refused(context_of(folder / "patients.csv"), config)


def test_nodes_of_a_simulation_are_the_folders_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(modalities=["admission"])
    for name in ("b", "a", "reference"):
        write_folder(tmp_path / name, config.task, 20, site=name)
    monkeypatch.setenv("CONSILIUM_SITES", str(tmp_path))
    found = [open_site(context_of(**{"partition-id": i}), config) for i in range(2)]
    assert [(s.manifest.site, s.sites_here) for s in found] == [("a", 2), ("b", 2)]
    text = refused(context_of(**{"partition-id": 2}), config)
    assert "Node 2 has no hospital" in text
    assert "num-supernodes=2" in text


def test_the_nodes_own_manifest_prevails_over_the_environment(
    folder: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSILIUM_SITES", str(folder.parent / "elsewhere"))
    assert site_folder(context_of(folder)) == (folder, 1)


def test_a_node_without_a_place_says_how_to_name_one(config: Config) -> None:
    text = refused(context_of(), config)
    assert "--node-config" in text
    assert "CONSILIUM_SITES" in text


def test_a_missing_folder_says_what_is_missing(tmp_path: Path, config: Config) -> None:
    assert "No manifest: manifest.yaml" in refused(context_of(tmp_path / "nowhere" / "manifest.yaml"), config)


def test_a_hospital_without_labels_is_refused_because_it_would_teach_that_nobody_dies(tmp_path: Path, config: Config) -> None:
    write_folder(tmp_path / "a", config.task, 20, labels={})
    assert "names no 'labels'" in refused(context_of(tmp_path / "a"), config)


def test_faulty_rows_are_listed_in_the_hospitals_folder_and_their_number_stays_there(folder: Path, config: Config) -> None:
    table = pd.read_csv(folder / "patients.csv")
    pd.concat([table, table.iloc[[4]]]).to_csv(folder / "patients.csv", index=False)
    told = refused(context_of(folder), config)
    assert ".consilium/findings.csv" in told and not re.search(r"\d", told)
    (found,) = pd.read_csv(folder / ".consilium" / "findings.csv").to_dict("records")
    assert (found["row"], found["column"]) == (len(table) + 2, "visit_id")


def test_a_site_is_opened_once_until_its_files_task_or_seed_change(folder: Path, config: Config) -> None:
    context = context_of(folder)
    first = open_site(context, config)
    assert open_site(context, config) is first
    assert open_site(context, replace(config, seed=1)) is not first
    table = pd.read_csv(folder / "patients.csv").iloc[:60]
    table.to_csv(folder / "patients.csv", index=False)
    os.utime(folder / "patients.csv", (2_000_000_000, 2_000_000_000))
    assert len(open_site(context, config).cohort) == 60


@pytest.mark.parametrize("change", ["content", "older", "new", "gone", "moved"])
def test_a_change_in_a_sub_folder_opens_the_site_again(folder: Path, config: Config, change: str) -> None:
    image = folder / "images" / "chest" / "1.txt"
    image.parent.mkdir(parents=True)
    image.write_text("one")
    first = open_site(context_of(folder), config)
    assert open_site(context_of(folder), config) is first
    if change == "content":
        image.write_text("other")
    elif change == "older":
        os.utime(image, (1_000_000_000, 1_000_000_000))
    elif change == "new":
        shutil.copy2(image, image.parent / "2.txt")
    elif change == "gone":
        image.unlink()
    else:
        image.rename(folder / "1.txt")
    assert open_site(context_of(folder), config) is not first


def test_links_that_lead_nowhere_or_round_in_circles_do_no_harm(folder: Path, config: Config) -> None:
    (folder / "images").mkdir()
    (folder / "images" / "again").symlink_to(folder)
    (folder / "images" / "nowhere").symlink_to(folder / "nowhere")
    first = open_site(context_of(folder), config)
    assert open_site(context_of(folder), config) is first


def test_what_a_run_leaves_in_the_folder_does_not_open_the_site_again(folder: Path, config: Config) -> None:
    first = open_site(context_of(folder), config)
    first.store_predictions("toy-1", pd.DataFrame({"score": [0.5]}))
    assert open_site(context_of(folder), config) is first


def test_ready_patients_follow_every_number_of_the_standardisation(site: Site) -> None:
    arrays = moments_arrays(site.cohort.moments())
    first = site.ready(standardisation_of(arrays))
    assert site.ready(standardisation_of(arrays)) is first
    for name in ("count", "mean", "variance"):
        other = arrays | {"labs": arrays["labs"] | {name: arrays["labs"][name] + 1}}
        assert site.ready(standardisation_of(other)) is not first


def test_trainable_groups_are_those_held_and_allowed(site: Site, config: Config) -> None:
    assert site.trainable(config) == ["admission/linear", "cxr/small", "labs/linear", "labs/small", "note/linear"]
    assert limited(site, largest="linear").trainable(config) == ["admission/linear", "labs/linear", "note/linear"]
    teachers = {**config.model.teachers, "image": ("lenet", "densenet"), "series": ("trend", "gru")}
    others = replace(config, model=replace(config.model, teachers=teachers))
    assert limited(site, largest="linear").trainable(others) == ["admission/linear", "labs/trend", "note/linear"]
    assert {"cxr/lenet", "labs/gru"} <= set(limited(site, largest="small").trainable(others))
    assert "cxr/densenet" not in limited(site, largest="small").trainable(others)
    assert replace(site, manifest=replace(site.manifest, role="evaluate")).trainable(config) == []
    blind = site.cohort.select((~site.cohort.present[:, 1]).numpy())
    assert "cxr/small" not in replace(site, cohort=blind).trainable(config)


def test_a_modality_that_only_test_patients_hold_is_not_trainable(site: Site, config: Config) -> None:
    cohort = site.cohort
    present = cohort.present.clone()
    present[:, 3] &= torch.from_numpy(cohort.split != "train")
    assert "note/linear" not in replace(site, cohort=replace(cohort, present=present)).trainable(config)


def test_epochs_are_capped_by_the_hospital(site: Site) -> None:
    assert [limited(site, epochs=3).epochs(n) for n in (0, 2, 3, 99)] == [0, 2, 3, 3]


# The checksum and the site's own folder.


def test_the_checksum_is_the_same_in_another_process_and_says_nothing_without_the_key(folder: Path, config: Config) -> None:
    first = open_site(context_of(folder), config).checksum()
    code = (
        "import sys; from pathlib import Path; from client.site import Site; from common.data.manifest import load_manifest; "
        "folder = Path(sys.argv[1]); print(Site(folder, load_manifest(folder), None).checksum())"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, folder], cwd=root, env={"PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert done.stdout.strip() == first, done.stderr
    assert re.fullmatch("[0-9a-f]{64}", first)
    key = folder / ".consilium" / "checksum.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    key.unlink()
    other = open_site(context_of(folder), config).checksum()
    assert other != first
    assert len(key.read_bytes()) == 32


@pytest.mark.parametrize("file", ["manifest.yaml", "patients.csv", "labs.parquet", "image-0.dcm", "note-0.txt"])
def test_the_checksum_follows_every_file_that_the_manifest_points_to(folder: Path, config: Config, file: str) -> None:
    site = open_site(context_of(folder), config)
    first = site.checksum()
    (folder / "diary.txt").write_text("not a patient's")
    assert site.checksum() == first
    (folder / file).write_bytes((folder / file).read_bytes() + b"\n")
    assert site.checksum() != first


@pytest.mark.parametrize("file", ["labs.parquet", "image-0.dcm"])
def test_the_checksum_follows_a_file_that_is_gone(folder: Path, config: Config, file: str) -> None:
    site = open_site(context_of(folder), config)
    first = site.checksum()
    (folder / file).unlink()
    assert site.checksum() != first


def test_a_shared_table_counts_by_its_content_and_a_visits_own_file_by_name_size_and_time(folder: Path, config: Config) -> None:
    site = open_site(context_of(folder), config)
    first = site.checksum()
    for file in ("manifest.yaml", "patients.csv", "labs.parquet"):
        os.utime(folder / file, (2_000_000_000, 2_000_000_000))
    assert site.checksum() == first
    os.utime(folder / "image-0.dcm", (2_000_000_000, 2_000_000_000))
    assert site.checksum() != first


@pytest.mark.parametrize("act", ["enrol", "findings", "predictions"])
def test_a_site_that_cannot_write_into_its_own_folder_says_so(site: Site, act: str) -> None:
    (site.folder / ".consilium").write_text("in the way")
    acts: dict[str, Callable[[], object]] = {
        "enrol": site.checksum,
        "findings": site.store_findings,
        "predictions": lambda: site.store_predictions("toy-1", pd.DataFrame({"score": [0.5]})),
    }
    with pytest.raises(ConsiliumError, match=r"'riverside' cannot write into its folder \.consilium") as error:
        acts[act]()
    assert str(site.folder) not in str(error.value)


def test_a_damaged_key_is_named(site: Site) -> None:
    site.checksum()
    (site.folder / ".consilium" / "checksum.key").write_bytes(b"")
    with pytest.raises(ConsiliumError, match=r"checksum\.key .* Delete it"):
        site.checksum()


@pytest.mark.parametrize("run", ["../evil", "a/b", "/etc/evil", "", ".hidden", "..", "a\\b", "a b", "a\n", "-x", "é"])
def test_a_run_name_that_could_be_a_path_is_refused(site: Site, run: str) -> None:
    before = sorted(site.folder.parent.rglob("*"))
    with pytest.raises(ConsiliumError, match="run's name") as error:
        site.store_predictions(run, pd.DataFrame({"score": [0.5]}))
    assert "evil" not in str(error.value)
    assert sorted(site.folder.parent.rglob("*")) == before


def test_predictions_stay_in_the_hospitals_own_folder(site: Site) -> None:
    site.store_predictions("demo-20260101", pd.DataFrame({"score": [0.5]}))
    assert pd.read_parquet(site.folder / ".consilium" / "demo-20260101" / "predictions.parquet")["score"].tolist() == [0.5]


def test_a_site_of_another_task_is_refused_by_name(folder: Path) -> None:
    config = make_config("multilabel")
    assert "label 'death' is not in task 'toy'. Known: aki, shock" in refused(context_of(folder), config)
    other = replace(make_config(), task=make_task(modalities=["labs"]))
    assert "'admission' is not in task" in refused(context_of(folder), other)
