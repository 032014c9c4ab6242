"""Cells of real methods, on two generated hospitals and with short training."""

from __future__ import annotations

import json
import re
import shutil
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from common.arrays import read_arrays
from common.config import load_config
from common.data.cohort import Batch, Cohort, concatenate
from common.evaluation.predictions import predict_patterns
from common.learning.loop import derive_seed
from server.record import Record
from server.run import read_config
from simulations import baselines
from simulations.ablations import Ablation
from simulations.baselines import fedavg, local, median, open_consortium, ridge
from simulations.benchmarks.base import Benchmark, Split
from simulations.cells import _with_patients, methods
from simulations.consortium import write_tiny
from simulations.finished import load_cell
from simulations.work import Job, Work
from simulations.workers import run_one
from tests.common.samples import make_cohort, make_task, write_folder


def prepare(folder: Path, split: Split) -> dict[str, Any]:
    write_tiny(folder)
    return {"n": {}, "exclusions": {}, "data_checksum": ""}


TINY = Benchmark("tiny", "two hospitals", "tiny", "generated", "tiny consortium", "binary", (), prepare, tuple(methods()))


OF_NUMBERS = {"median", "ridge"}
NUMBERS = ("task.type=regression", "+task.log=[deterioration]")  # 0 and 1 are numbers, too


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """A run directory whose sites are prepared."""
    work = Work(TINY, tmp_path_factory.mktemp("tiny"), None, "inproc", True, None)
    for split in {work.split(Job(method, 0, 0)) for method in methods()}:
        work.prepare(split)
    return work


@pytest.mark.parametrize("method", sorted({*methods()} - OF_NUMBERS))
def test_every_method_can_be_tried_with_short_training(work: Work, method: str) -> None:
    job = Job(method, 0, 0)
    run_one(work, job)
    cell = load_cell(work.cell(job), "binary")
    assert (cell.method, cell.seed, cell.fold) == (method, 0, 0)
    assert set(cell.predictions["site"]) == {"alder", "birch"}
    assert cell.curves and max(max(c["round"], c.get("step", 0)) for c in cell.curves) <= 2
    phases = {c["phase"] for c in cell.curves}
    assert ("refining" in phases) == method.startswith("student")


def test_baselines_of_numbers_are_refused_elsewhere(work: Work) -> None:
    job = Job("ridge", 0, 0)
    run_one(work, job)
    assert "leave them out of a benchmark whose task is no regression" in str(work.fault(job))


@pytest.mark.parametrize("method", ["student", "fedavg", "local", "central", "median", "ridge"])
def test_every_method_predicts_numbers(work: Work, tmp_path: Path, method: str) -> None:
    benchmark = replace(TINY, task_type="regression", overrides={method: NUMBERS})
    shutil.copytree(work.folder / "sites", tmp_path / "sites")
    job = Job(method, 0, 0)
    numbers = replace(work, benchmark=benchmark, folder=tmp_path)
    run_one(numbers, job)
    cell = load_cell(numbers.cell(job), "regression")
    assert set(cell.predictions["label"]) == {0.0, 1.0}
    assert cell.predictions["score"].between(-5, 5).all() and cell.parameters


def test_fedavg_carries_its_steps_on_by_the_students_momentum(work: Work) -> None:
    losses = []
    for momentum in (0.0, 0.5):
        config = load_config("tiny", [f"refine.momentum={momentum}", "refine.rounds=2"])
        curves = fedavg(open_consortium(work.sites(work.split(Job("fedavg", 0, 0))), config)).curves
        losses.append([c["loss"] for c in curves])
    plain, carried = losses
    assert len(plain) == 3
    assert [a == b for a, b in zip(plain, carried, strict=True)] == [True, True, False], "the first round has no step to carry on"


def test_central_weighs_the_unimodal_heads_as_the_student_does(work: Work) -> None:
    students = []
    for alpha in (0.0, 1.0):
        config = load_config("tiny", [f"distill.alpha={alpha}", "distill.epochs=1"])
        consortium = open_consortium(work.sites(work.split(Job("central", 0, 0))), config)
        students.append(baselines._alone(config, concatenate(consortium.training.values()), "central")[0].heads.state_dict())
    unlearned, learned = students
    assert any(not torch.equal(values, learned[name]) for name, values in unlearned.items())


def test_the_median_is_that_of_the_pooled_patients_and_ridge_regression_finds_what_tells_the_number(work: Work) -> None:
    consortium = open_consortium(work.sites(work.split(Job("ridge", 0, 0))), load_config("tiny", NUMBERS))
    training = concatenate(c for _, c in sorted(consortium.training.items()))
    age = training.inputs["admission"][:, :1].nan_to_num(60.0)
    numbers = replace(consortium, training={"a": replace(training, labels=age)})
    site, test = max(consortium.testing.items(), key=lambda place: len(place[1].holding("admission")))
    said = {}
    for baseline in (median, ridge):
        speaker, scaling = baseline(numbers).speaker(site)
        found = predict_patterns(test, [speaker], scaling)
        said[baseline] = found[found["pattern"] == "admission"]["score"].to_numpy()
    truth = test.holding("admission").inputs["admission"][:, 0].numpy()
    assert said[median] == pytest.approx(np.full(len(truth), age.median().item()), rel=0.01)
    assert np.corrcoef(said[ridge], truth)[0, 1] > 0.9


def test_a_site_that_only_evaluates_gets_a_local_student_that_can_read_something_there(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "_alone", lambda config, cohort, place: (place, place, []))
    monkeypatch.setattr(baselines, "_reading_only", lambda student, known: student)
    monkeypatch.setattr(baselines, "parameters_of", lambda student: 1)
    whole = open_consortium(work.sites(work.split(Job("local", 0, 0))), load_config("tiny"))
    some = concatenate(whole.training.values())

    def holding(*at: int) -> Cohort:
        present = torch.zeros_like(some.present)
        present[:, list(at)] = True
        return replace(some, present=present)

    training = {"ash": holding(0), "elm": holding(1), "fir": holding(1, 2), "yew": holding(2)}
    tests = {f"{kind}-{i}": holding(*at) for kind, at in {"second": [1], "any": [0, 1, 2]}.items() for i in range(20)}
    draw = local(replace(whole, training=training, testing=tests | {"none": holding(3), "test-fir": holding(0, 1, 2)})).speaker
    assert draw("test-fir")[0] == "fir", "patients of a place are predicted by the student of that place"
    assert {draw(f"second-{i}")[0] for i in range(20)} == {"elm", "fir"}
    names = sorted(training)
    of_all = {site: names[derive_seed(whole.config.seed, "local", site) % 4] for site in tests | {"none": None}}
    assert {s: draw(s)[0] for s in of_all if not s.startswith("second")} == {
        s: n for s, n in of_all.items() if not s.startswith("second")
    }


def test_a_patient_has_one_key_whether_or_not_a_cell_of_the_column_is_empty(tmp_path: Path) -> None:
    keys = {}
    for name, last in (("whole", "9"), ("gap", "")):
        write_folder(tmp_path / name, make_task(modalities=["admission"]), 4, site=name)
        table = pd.read_csv(tmp_path / name / "patients.csv", dtype=str)
        table["patient_id"] = ["7", "7", "8", last]
        table.to_csv(tmp_path / name / "patients.csv", index=False)
        keys[name] = _with_patients(tmp_path / name, pd.DataFrame({"row": [0, 1, 2]}))["patient"].tolist()
    assert keys["whole"] == keys["gap"]
    assert keys["gap"][0] == keys["gap"][1] != keys["gap"][2]


def test_a_validation_loss_looks_at_one_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = make_cohort(make_task(modalities=["admission"]), 24)
    alive: list[weakref.ref[Batch]] = []
    most = 0

    def parts(cohort: Cohort, patch: object) -> Iterator[Batch]:
        nonlocal most
        for index in torch.arange(len(cohort)).split(4):
            batch = cohort.batch(index)
            alive.append(weakref.ref(batch))
            most = max(most, sum(held() is not None for held in alive))
            yield batch

    class Silent(torch.nn.Module):
        def forward(self, batch: Batch) -> torch.Tensor:
            return torch.zeros(len(batch), 1)

    monkeypatch.setattr(baselines, "parts_of", parts)
    loss = baselines._pooled_loss(Silent(), [cohort, cohort.part("nowhere"), cohort], None)
    assert loss == pytest.approx(np.log(2)) and len(alive) == 12
    assert most == 2, "the one that is looked at, and the next"


def run(work: Work, method: str) -> Path:
    """Runs a cell; returns its folder."""
    job = Job(method, 0, 0)
    run_one(work, job)
    assert work.fault(job) is None
    return work.cell(job)


def events(cell: Path) -> list[str]:
    return [event["event"] for event in Record(cell / "run").events()]


def test_a_cell_begins_behind_the_teach_phase_of_another_and_ends_as_if_it_had_taught(work: Work, tmp_path: Path) -> None:
    work = replace(work, folder=shutil.copytree(work.folder / "sites", tmp_path / "sites").parent)
    alone = run(work, "student-no-kd").rename(tmp_path / "alone")
    run(work, "student")
    after = run(work, "student-no-kd")
    assert "taught" not in events(alone)
    assert events(after)[:2] == ["taught", "resumed"] and Record(after / "run").events("taught")[0]["by"] == "student-0-0"
    assert not [e for e in Record(after / "run").events("round") if e["phase"] == "teach"]
    files = sorted(f.relative_to(alone) for f in alone.rglob("*.safetensors"))
    assert len(files) > 10 and files == sorted(f.relative_to(after) for f in after.rglob("*.safetensors"))
    for file in files:
        ours, theirs = ({n: (a.dtype, a.tobytes()) for n, a in read_arrays(cell / file).items()} for cell in (after, alone))
        assert ours == theirs, file
    # The bytes of teach are those of the cell that taught: its configuration is some letters longer or shorter.
    dropped = {"seconds": 0, "bytes_per_site": 0, "traffic": 0}
    for name in ("cell.json", "run/state.json", "run/config.json"):
        ours, theirs = (json.loads((cell / name).read_text()) | dropped for cell in (after, alone))
        assert ours == theirs, name
    for site, phases in json.loads((after / "run" / "traffic.json").read_text()).items():
        theirs = json.loads((alone / "run" / "traffic.json").read_text())[site]
        assert phases.pop("teach") == pytest.approx(theirs.pop("teach"), rel=1e-2)
        theirs.pop("enrol")
        assert {p: b for p, b in phases.items() if p != "enrol"} == theirs
    pd.testing.assert_frame_equal(*(pd.read_parquet(cell / "predictions.parquet") for cell in (after, alone)))


def test_what_is_left_out_is_counted_in_the_reference_set_too_and_a_hospital_that_refuses_fails_the_cell(tmp_path: Path) -> None:
    work = Work(TINY, tmp_path, None, "inproc", True, None)
    student, central = Job("student", 0, 0), Job("central", 0, 0)
    work.prepare(work.split(student))
    sites = work.sites(work.split(student))
    next((sites / "reference").rglob("*.dcm")).unlink()
    counted = [json.loads((run(work, job.method) / "cell.json").read_text())["excluded"] for job in (student, central)]
    assert counted == [1, 1]
    for note in sorted((sites / "alder").rglob("*.txt"))[::2]:
        note.unlink()
    for job in (student, central):
        run_one(work, job)
    assert re.search(r"alder took no part: .*events\.jsonl says why", str(work.fault(student)))
    assert "limits.bad_rows" in str(work.fault(central))


def test_a_cell_teaches_itself_if_the_other_learned_otherwise_or_from_other_files(tmp_path: Path) -> None:
    other = replace(TINY, overrides={"teachers": ("teach.epochs=2",)})
    work = Work(other, tmp_path, None, "inproc", True, None)
    work.prepare(work.split(Job("student", 0, 0)))
    run(work, "teachers")
    assert events(run(work, "student"))[0] == "started"
    work.prepare(work.split(Job("student", 0, 0)))
    assert events(run(work, "student-uniform"))[0] == "started"


def test_ablations_share_a_teach_phase_where_sites_and_teachers_are_the_same(tmp_path: Path) -> None:
    ablations = (
        Ablation("student-no-refine", "refine", "off", ("refine.rounds=0",)),
        Ablation("student-teachers-linear", "teachers", "linear", ("model.teachers.series=[linear]",)),
        Ablation("student-no-dropout", "dropout and fusion", "off, late", ("distill.dropout=0", "model.fusion=late")),
        Ablation("student-reference-5", "reference set", "5 %", reference=0.05),
    )
    tuned = {"student": ("distill.tau=0.7",), "student-no-dropout": ("distill.tau=0.9",)}
    work = Work(replace(TINY, ablations=ablations, overrides=tuned), tmp_path, None, "inproc", True, None)
    for job in (Job("student", 0, 0), Job("student-reference-5", 0, 0)):
        work.prepare(work.split(job))
    begun = {a.name: events(run(work, a.name))[0] for a in ablations}
    assert begun == {
        "student-no-refine": "started",
        "student-teachers-linear": "started",
        "student-no-dropout": "taught",
        "student-reference-5": "started",
    }
    configs = {a.name: read_config(work.cell(Job(a.name, 0, 0)) / "run") for a in ablations}
    assert {c.distill.tau for c in configs.values()} == {0.7}  # an ablation starts from the student's own setting
    assert configs["student-no-refine"].refine.rounds == 0
