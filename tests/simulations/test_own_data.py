"""docs/your-own-data.md does what it says: its commands are run as they stand there."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner

import client.cli
import simulations.cli
from common.config import load_config
from common.evaluation.results import Results, load_results
from common.messages import EnrolReply, EvaluateReply, RefineReply, TeachReply
from common.models.registry import SIZES, architectures, size_of

DOC = Path(__file__).resolve().parents[2] / "docs" / "your-own-data.md"
REAL = DOC.with_name("real-sites.md")
PROGRAMS = {"consilium-bench": simulations.cli.app, "consilium-client": client.cli.app}
SHORT = "--seeds 1 --only student --only teachers"
BANDS = {"top": "r0_*,r1_*", "brow": "r2_*", "eyes": "r3_*", "nose": "r4_*", "lips": "r5_*", "chin": "r6_*,r7_*"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)


def command(line: str) -> str:
    program, *words = shlex.split(line)
    done = CliRunner().invoke(PROGRAMS[program], words)
    assert done.exit_code == 0, (line, done.output, done.exception)
    return done.output


def best_single(results: Results, metric: str) -> tuple[float, float]:
    """Returns the student's metric with whatever a patient has, and that of the best teacher of a single modality."""
    rows = [r for r in results.rows if r.metric == metric and (r.site, r.fold, r.output, r.published) == (None,) * 4]
    student = next(r.mean for r in rows if (r.method, r.pattern) == ("student", "all"))
    teachers = [r.mean for r in rows if r.method.startswith("teacher:") and "/" not in r.method]
    assert student is not None
    return student, max(m for m in teachers if m is not None)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CONSILIUM_RUNS", raising=False)
    return tmp_path


def test_the_worked_example_trains_a_student_that_is_better_than_its_best_single_modality(
    here: Path, record_property: Any
) -> None:
    (table,) = blocks("python")
    exec(compile(table, str(DOC), "exec"), {})  # noqa: S102
    split, run, check, predict = (line for block in blocks("sh") for line in block.splitlines())
    assert "test" in command(split)
    assert "cells/student-0-0/run/student.safetensors (how to use it" in command(f"{run} {SHORT}")
    found = load_results(next((here / "runs" / "custom").glob("*/results.json")))
    (cell,) = (here / "runs" / "custom").glob("*/cells/student-0-0/predictions.parquet")
    ran = pd.read_parquet(cell).query("model == 'student' and pattern == 'all'")
    command(predict.replace("<time>", cell.parents[2].name))
    used = pd.read_csv("scores.csv")
    assert used["subtype"].to_numpy() == pytest.approx(ran["score"].to_numpy(), abs=1e-5) and len(used) > 100
    assert list(used) == ["row", "pattern", "subtype"] and used["row"].tolist() == (ran["row"] + 2).tolist()
    assert not any("prot" in r.pattern for r in found.rows)
    student, single = best_single(found, "auroc")
    record_property("AUROC of the student, and of its best single modality", (round(student, 3), round(single, 3)))
    assert student > single
    assert "Findings: 0" in command(check)


def test_six_tables_and_ten_classes_run_from_one_csv(here: Path, record_property: Any) -> None:
    digits = load_digits()
    table = pd.DataFrame(digits.data, columns=[f"r{i // 8}_c{i % 8}" for i in range(64)]).assign(y=digits.target).head(900)
    table.to_csv("digits.csv", index=False)
    modalities = " ".join(f"--modality {name}={columns}" for name, columns in BANDS.items())
    command(
        f"consilium-bench split digits.csv --task T.yaml --out sites --sites 3 --test 0.25 --missing 0.2 --label y {modalities}"
    )
    command(f"consilium-bench run custom --task T.yaml --sites sites {SHORT} --set teach.rounds=5 --set refine.rounds=3")
    found = load_results(next((here / "runs" / "custom").glob("*/results.json")))
    student, single = best_single(found, "accuracy")
    record_property("accuracy of the student, and of its best single modality", (round(student, 3), round(single, 3)))
    assert student > single + 0.1
    assert len({r.pattern for r in found.rows if r.method == "student"}) == 1 + 6 + 6 + 1


def test_the_task_and_the_manifest_of_the_document_belong_together(here: Path) -> None:
    """Both are copied as they stand there, beside files such as their comments describe."""
    task, manifest = (block for block in blocks("yaml") if "flair" not in block)
    site = here / "sites" / "riverside"
    (site / "slides").mkdir(parents=True)
    (here / "TASK.yaml").write_text(task, encoding="utf-8")
    (site / "manifest.yaml").write_text(manifest, encoding="utf-8")
    rng, ids = np.random.default_rng(0), [f"v{i}" for i in range(24)]
    slides = [f"slides/{i:04d}.png" for i in range(24)]
    for slide in slides:
        Image.fromarray(rng.integers(0, 255, (40, 40), dtype=np.uint8)).save(site / slide)
    genes = pd.DataFrame(rng.normal(size=(24, 3)), columns=["TP53", "BRCA1", "ESR1"])
    said: dict[str, Any] = {
        "subtype": np.tile(["luminal", "basal", "her2"], 8),
        "clinic": "clinic.csv",
        "labs": "labs.csv",
        "slide_file": slides,
    }
    said |= {"patient_id": ids, "visit_id": ids, "report": [f"Grade {i % 3}, margins free" for i in range(24)]}
    genes.assign(**said).to_csv(site / "patients.csv", index=False)
    clinic = {"id": ids, "age": rng.integers(30, 90, 24), "sex": np.tile(["F", "M"], 12)}
    pd.DataFrame(clinic).to_csv(site / "clinic.csv", index=False)
    labs = pd.DataFrame({"id": ids * 2, "hour": np.repeat([0.5, 7.25], 24), "lact": rng.uniform(0.5, 4, 48)})
    labs.to_csv(site / "labs.csv", index=False)
    done = command(next(line for block in blocks("sh") for line in block.splitlines() if " check " in line))
    assert "Visits per modality: rna 24, clinic 24, labs 24, slide 24, report 24" in done
    assert "Visits per label: luminal 8, basal 8, her2 8" in done
    assert "0 refused (see above), 0 visit(s) left out, 0 warning(s) within sites" in done
    command("consilium-bench run custom --task TASK.yaml --sites sites --debug --only student")
    found = load_results(next((here / "runs" / "custom").glob("*/results.json")))
    alone = {r.pattern for r in found.rows if r.method == "student" and r.mean is not None}
    assert {"rna", "clinic", "labs", "slide", "report"} <= alone
    labs.assign(hour="2024-05-01 07:15").to_csv(site / "labs.csv", index=False)
    refused = CliRunner().invoke(client.cli.app, ["check", "sites", "--task", "TASK.yaml"])
    assert refused.exit_code == 1 and "column 'hour' holds text or infinity where a number is expected" in refused.output


def test_every_network_is_in_the_documents_table_under_its_size() -> None:
    table = DOC.read_text(encoding="utf-8").split("### Networks")[1].split("\n\n")[2]
    told = {}
    for kind, *cells in (line.strip("| ").split("|") for line in table.splitlines()[2:]):
        named = (re.findall(r"`([\w-]+)`", cell) for cell in cells)
        told[kind.strip(" `")] = {(size, name) for size, names in zip(SIZES, named, strict=True) for name in names}
    kinds = ("audio", "image", "series", "table", "text", "volume")
    assert told == {kind: {(size_of(kind, name), name) for name in architectures(kind)} for kind in kinds}


def test_runs_with_a_task_of_ones_own_are_told_what_there_is(here: Path) -> None:
    """The run-config of both documents is one that the server understands."""
    task = next(block for block in blocks("yaml") if "flair" not in block)
    (here / "TASK.yaml").write_text(task, encoding="utf-8")
    found = [
        overrides
        for file in (DOC, REAL)
        for overrides in re.findall(r"experiment='custom'[^\n]* overrides='([^']*)'", file.read_text(encoding="utf-8"))
    ]
    configs = [load_config("custom", words.replace("/absolute/TASK.yaml", str(here / "TASK.yaml"))) for words in found]
    assert [(c.task.name, c.split.test, c.federation.min_sites) for c in configs] == [
        ("tumour-type", 0.0, 1),
        ("tumour-type", 0.25, 3),
    ]


def test_all_that_a_site_answers_is_told_to_ethics_boards() -> None:
    section = REAL.read_text(encoding="utf-8").split("## What leaves the hospital")[1]
    rows = dict.fromkeys(("enrol", "teach", "refine", "evaluate"), "")
    phase = ""
    for line in (line for line in section.splitlines() if line.startswith("| ")):
        phase = re.split(r"[ ,]", line)[1] if line[2] != "|" else phase
        rows[phase] = rows.get(phase, "") + line
    replies = {"enrol": EnrolReply, "teach": TeachReply, "refine": RefineReply, "evaluate": EvaluateReply}
    for name, reply in replies.items():
        assert {f.name for f in fields(reply)} == set(re.findall(r"`(\w+)`", rows[name])) - {"min_count"}


def test_scans_described_as_the_document_says_are_checked_and_trained_on(here: Path) -> None:
    """The blocks on scans, with a grid as small as these scans."""
    task, manifest = (yaml.safe_load(b) for b in blocks("yaml") if "flair" in b)
    for modality in task["modalities"].values():
        modality["voxels"] = [16, 16, 16]
    (here / "TASK.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    generator = np.random.default_rng(0)
    for site in ("riverside", "hillside"):
        folder = here / "sites" / site
        (folder / "scans").mkdir(parents=True)
        rows = []
        for at in range(12):
            mask = np.zeros((14, 16, 12), np.int16)
            low = generator.integers(2, 6, 3)
            mask[tuple(slice(a, a + 6) for a in low)] = 2
            mask[tuple(slice(a + 2, a + 4) for a in low)] = 4
            mask[:] *= (site, at) not in (("hillside", 3), ("hillside", 10))
            shown = {"flair": mask > 0, "t1ce": mask == 4, "mask": mask}
            files = {f"{part}_file": f"scans/{at}-{part}.nii.gz" for part in shown}
            for part, values in shown.items():
                noise = 0 if part == "mask" else generator.normal(100, 20, mask.shape)
                scan = (noise + values * (1 if part == "mask" else 100)).astype(np.int16)
                nibabel.save(nibabel.Nifti1Image(scan, np.eye(4)), folder / files[f"{part}_file"])
            rows.append({"patient_id": f"p{at}", "visit_id": f"v{at}", **files})
        pd.DataFrame(rows).to_csv(folder / "patients.csv", index=False)
        (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest | {"site": site}), encoding="utf-8")
    assert "Findings: 0" in command("consilium-client check sites --task TASK.yaml")
    settings = "--set model.fusion=weighted --set model.patch=[12,12,12] --set model.width=4 --set refine.rounds=6"
    command(f"consilium-bench run custom --task TASK.yaml --sites sites --seeds 1 --only student {settings}")
    found = load_results(next((here / "runs" / "custom").glob("*/results.json")))
    shared, blank = found.environment["warnings"]
    assert (
        "are also at site" in shared
        and blank.startswith("hillside/patients.csv, row ")
        and "the mask marks no region at all" in blank
    )
    assert blank.endswith("(1 more of its masks are like that: consilium-client check names them)")
    dice = {(r.method, r.pattern, r.output) for r in found.rows if r.metric == "dice" and r.site is None}
    assert {("student", "all", "whole"), ("student", "flair", "core"), ("student", "flair+t1ce", "core")} <= dice
