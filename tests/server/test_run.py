"""Whole runs on the tiny consortium: real files, the ordinary ClientApp and ServerApp, in this process."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from client import handlers
from client.app import app as client_app
from client.site import Site
from common.arrays import read_arrays
from common.config import Config, load_config, to_json
from common.data.manifest import FILE_NAME, hospital_folders, load_manifest
from common.errors import ConsiliumError
from common.evaluation.results import load_results
from common.learning import modality_weights
from common.messages import RefineReply, RefineRequest
from common.models.ensemble import Calibration
from server import checkpoint, distillation
from server.app import play
from server.record import Record
from server.rounds import RunFailed
from server.run import Run, open_run
from simulations.inproc import InProcessGrid, run_inproc

QUICK = ["teach.rounds=1", "distill.epochs=1", "weights.estimator=uniform", "refine.rounds=0"]
TEACHERS = {"admission": ["linear", "small"], "cxr": ["base", "small"], "labs": ["linear", "small"], "notes": ["base", "linear"]}


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def identifiers(folder: Path) -> set[str]:
    """Every patient and visit of a folder of hospitals."""
    found: set[str] = set()
    for file in folder.glob(f"*/{FILE_NAME}"):
        manifest = load_manifest(file)
        path = file.parent / manifest.patients
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
        found |= {str(v) for column in (manifest.patient, manifest.visit) for v in table[column]}
    return found


def leaks(run: Path, sites: Path) -> set[str]:
    """Identifiers of the sites' patients that occur in a file, or a file's name, of a run directory."""
    files = [p for p in run.rglob("*") if p.is_file()]
    everything = b"\n".join(p.read_bytes() + str(p.relative_to(run)).encode() for p in files)
    return {i for i in identifiers(sites) if i.encode() in everything}


@pytest.fixture
def own(tiny: Path, tmp_path: Path) -> Path:
    """The tiny consortium, for a test that changes it."""
    return Path(shutil.copytree(tiny, tmp_path / "sites"))


def test_a_run_finishes_with_everything_that_people_read(undisturbed: Path) -> None:
    assert sorted(p.stem for p in (undisturbed / "teachers").iterdir()) == [
        f"{m}-{a}" for m, mine in TEACHERS.items() for a in mine
    ]
    assert read(undisturbed / "config.json") == to_json(load_config("tiny"))
    environment = read(undisturbed / "environment.json")
    assert {"flwr", "torch", "numpy"} <= set(environment["packages"])
    state = checkpoint.load(undisturbed)
    assert (state.phase, state.reason, sorted(state.sites)) == ("finished", None, ["alder", "birch"])
    assert {"omega", "prior"} <= set(read_arrays(undisturbed / "student.safetensors"))
    assert set(read_arrays(undisturbed / "consilium.safetensors")) == {"scale", "bias", "prior", "omega"}
    phases = [(e["phase"], e["round"]) for e in Record(undisturbed).events("transition")]
    teach, refine = ([(phase, n) for n in range(3)] for phase in ("teaching", "refining"))
    assert phases == [("enrolling", 0), *teach, ("distilling", 0), *refine, ("evaluating", 0), ("finished", 0)]
    models = {r["model"] for r in state.evaluation}
    assert {"student", "teachers"} <= models
    assert any(m.startswith("teacher:") for m in models)
    assert all(0 <= r["value"] <= 1 for r in state.evaluation if r["metric"] == "auroc")


def test_the_results_of_a_run_speak_of_every_site_and_of_no_pool(undisturbed: Path) -> None:
    found = load_results(undisturbed / "results.json")
    assert (found.benchmark, found.data, found.seeds) == ("tiny", "generated", [0])
    assert {r.method for r in found.rows} >= {"student", "teachers", "teacher:labs/small"}
    assert {r.site for r in found.rows} <= {"alder", "birch"}
    assert all(r.published is None and r.ci95 is None for r in found.rows)
    assert all(r.parameters for r in found.rows if r.method == "student")
    assert found.exclusions == {"alder": 0, "birch": 0, "reference": 0}
    assert {w.modality for w in found.weights} == set(TEACHERS)


def test_a_run_has_a_plain_name_of_its_own_whatever_its_folder_is_called(tmp_path: Path) -> None:
    folders = ["demo/20261130-120000", "试验/1", "研究/1", "试验/运行", "my runs/1", "my-runs/1"]
    names = [Run(tmp_path / f, None, None, None, None).name for f in folders]  # type: ignore[arg-type]
    assert names[0] == "demo-20261130-120000" and len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) for name in names)


def test_weights_and_traffic_are_kept_over_time(undisturbed: Path) -> None:
    weights = read(undisturbed / "weights.json")
    assert {w["phase"] for w in weights} == {"distilling", "refining"}
    sums = pd.DataFrame(weights).groupby(["phase", "round", "step"])["value"].sum()
    np.testing.assert_allclose(sums, 1.0, rtol=1e-6)
    traffic = read(undisturbed / "traffic.json")
    assert {s: sorted(t) for s, t in traffic.items()} == {s: ["enrol", "patterns", "refine", "teach"] for s in ("alder", "birch")}
    assert all(sent > 0 and received > 0 for phases in traffic.values() for sent, received in phases.values())


def test_no_file_of_a_run_names_a_patient(undisturbed: Path, tiny: Path) -> None:
    assert len(identifiers(tiny)) > 300
    assert leaks(tiny, tiny) == identifiers(tiny)
    assert leaks(undisturbed, tiny) == set()


def test_a_second_run_with_the_seed_gives_the_same_student_bit_by_bit(undisturbed: Path, tiny: Path, tmp_path: Path) -> None:
    run_inproc(sites=tiny, run_dir=tmp_path / "again", experiment="tiny")
    run_inproc(sites=tiny, run_dir=tmp_path / "other", experiment="tiny", overrides=["seed=1"])
    first, again, other = (read_arrays(f / "student.safetensors") for f in (undisturbed, tmp_path / "again", tmp_path / "other"))
    assert {k: v.tobytes() for k, v in first.items()} == {k: v.tobytes() for k, v in again.items()}
    assert any(first[k].tobytes() != other[k].tobytes() for k in first)


def test_without_a_reference_set_the_sites_make_student_and_weights(own: Path, tiny: Path, tmp_path: Path) -> None:
    shutil.rmtree(own / "reference")
    run_inproc(sites=own, run_dir=tmp_path / "none", experiment="tiny")
    run_inproc(sites=tiny, run_dir=tmp_path / "off", experiment="tiny", overrides=["distill.reference=false"])
    state = checkpoint.load(tmp_path / "none")
    assert (state.phase, state.reference) == ("finished", 0)
    moved = [w for w in state.weights if w["phase"] == "refining"]
    assert {w["round"] for w in moved} == {0, 1}
    assert any(abs(w["value"] - 0.25) > 1e-3 for w in moved)
    assert all(w["value"] == 0.25 for w in state.weights if w["phase"] == "distilling")
    assert {r["model"] for r in state.evaluation} >= {"student", "teachers"}
    none, off = (read_arrays(tmp_path / name / "student.safetensors") for name in ("none", "off"))
    assert {k: v.tobytes() for k, v in none.items()} == {k: v.tobytes() for k, v in off.items()}


def relabel(sites: Path, outputs: dict[str, str]) -> None:
    """Gives every visit more labels: a second output, one of three classes, and a number."""
    for file in sites.glob(f"*/{FILE_NAME}"):
        manifest = yaml.safe_load(file.read_text(encoding="utf-8"))
        path = file.parent / manifest["patients"]
        table = pd.read_csv(path)
        known = table[manifest["labels"]["deterioration"]]
        second = np.arange(len(table)) % 2
        days = np.exp(2 * known + second)
        table = table.assign(
            second=second, days=days, stage=np.where(known == 1, "late", np.where(second == 1, "middle", "early"))
        )
        table.to_csv(path, index=False)
        manifest["labels"] = {k: v or manifest["labels"]["deterioration"] for k, v in outputs.items()}
        file.write_text(yaml.safe_dump(manifest), encoding="utf-8")


@pytest.mark.parametrize("reference", ["true", "false"])
@pytest.mark.parametrize(
    ("labels", "task"),
    [
        ({"class": "stage"}, ["task.type=multiclass", "task.outputs=[early,middle,late]", "weights.per_output=true"]),
        ({"deterioration": "", "second": "second"}, ["task.type=multilabel", "task.outputs=[deterioration,second]"]),
        ({"days": "days", "second": "second"}, ["task.type=regression", "task.outputs=[days,second]", "+task.log=[days]"]),
    ],
)
def test_tasks_with_several_outputs_go_all_the_way(
    labels: dict[str, str], task: list[str], reference: str, own: Path, tmp_path: Path
) -> None:
    relabel(own, labels)
    short = ["teach.rounds=1", "refine.rounds=1", "distill.epochs=1", "weights.steps=1"]
    short += ["split.meta=0.25", f"distill.reference={reference}"]
    run_inproc(sites=own, run_dir=tmp_path / "run", experiment="tiny", overrides=[*task, *short])
    state = checkpoint.load(tmp_path / "run")
    outputs = load_config("tiny", task).task.outputs
    assert (state.phase, len(state.prior)) == ("finished", len(outputs))
    assert state.evaluation
    assert {w["output"] for w in state.weights} == ({*outputs} if "class" in labels else {None})
    assert any(w["omega"] for w in state.weights if w["phase"] == "refining")
    numbers = "days" in labels
    assert ("labels" in state.standardisation()) == numbers and (state.prior == [0.0] * len(outputs)) == numbers
    assert {r["metric"] for r in state.evaluation} >= ({"mae", "r2", "rmse:1"} if numbers else {"accuracy"})


def test_with_uniform_weights_omega_stays_where_it_is(tiny: Path, tmp_path: Path) -> None:
    run_inproc(sites=tiny, run_dir=tmp_path / "run", experiment="tiny", overrides=["weights.estimator=uniform"])
    assert not read_arrays(tmp_path / "run" / "student.safetensors")["omega"].any()


def test_weights_that_are_not_resolved_better_on_the_reference_set_stay_equal(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[Calibration] = []
    original = distillation.calibrated
    monkeypatch.setattr(distillation, "calibrated", lambda *args: starts.append(args[-1]) or original(*args))  # type: ignore[func-returns-value]
    run_inproc(sites=tiny, run_dir=tmp_path / "run", experiment="tiny", overrides=["weights.guard=true"])
    state = checkpoint.load(tmp_path / "run")
    assert len(starts) == 3 and len({id(s) for s in starts}) == 1, "learned and equal weights are calibrated from the same start"
    assert state.equal_weights and len(Record(tmp_path / "run").events("equal-weights")) == 1
    assert any(w["omega"] for w in state.weights)  # they were learned, and left
    assert {w["phase"] for w in state.weights} == {"distilling"}  # no site was asked for gradients of them
    assert not read_arrays(tmp_path / "run" / "student.safetensors")["omega"].any()


@pytest.mark.parametrize(("least", "start", "times"), [(10**6, "evidence", 1), (1, "evidence", 0), (10**6, "uniform", 0)])
def test_a_start_from_evidence_that_tells_too_little_is_recorded(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int, start: str, times: int
) -> None:
    monkeypatch.setattr(modality_weights, "LEAST_COMPLETE", least)
    overrides = [*QUICK[:2], "weights.steps=1", "refine.rounds=0", f"weights.start={start}"]
    run_inproc(sites=tiny, run_dir=tmp_path / "run", experiment="tiny", overrides=overrides)
    assert len(Record(tmp_path / "run").events("equal-start")) == times


def test_no_site_finds_gradients_of_scale_and_bias_where_the_reference_set_tells_them(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[set[str]] = []
    honest = handlers.refine

    def spied(site: Site, config: Config, request: RefineRequest) -> RefineReply:
        reply = honest(site, config, request)
        sent.append(set(reply.meta))
        return reply

    monkeypatch.setattr(handlers, "refine", spied)
    run_inproc(sites=tiny, run_dir=tmp_path / "run", experiment="tiny", overrides=["weights.guard=false"])
    assert {"omega"} in sent and not any(meta & {"scale", "bias"} for meta in sent)


def test_the_reference_set_may_lie_elsewhere(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = shutil.move(own / "reference", tmp_path / "public")
    monkeypatch.setenv("CONSILIUM_REFERENCE", str(elsewhere))
    run_inproc(sites=own, run_dir=tmp_path / "run", experiment="tiny", overrides=QUICK)
    assert checkpoint.load(tmp_path / "run").reference == 60


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"role": "evaluate"}, "'role: evaluate': the student would learn from test patients.*take the line out"),
        ({"split": "fold"}, "'split: fold', but its patients are split by the server.*take the line out"),
    ],
)
def test_a_reference_set_with_test_patients_is_refused_before_anything_starts(
    line: dict[str, str], reason: str, own: Path, tmp_path: Path
) -> None:
    file = own / "reference" / FILE_NAME
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text(encoding="utf-8")) | line), encoding="utf-8")
    with pytest.raises(ConsiliumError, match=reason):
        run_inproc(sites=own, run_dir=tmp_path / "run", experiment="tiny", overrides=QUICK)
    assert not (tmp_path / "run").exists()


def test_a_faulty_reference_set_fails_the_run_before_any_site_is_asked(own: Path, tmp_path: Path) -> None:
    for note in (own / "reference" / "notes").iterdir():
        note.unlink()
    with pytest.raises(ConsiliumError, match=r"refuses: .* patient rows have a fault"):
        run_inproc(sites=own, run_dir=tmp_path / "run", experiment="tiny", overrides=QUICK)
    assert Record(tmp_path / "run").events("round") == []
    assert "patient rows have a fault" in read(tmp_path / "run" / "state.json")["reason"]


def test_a_few_faulty_rows_are_left_out_and_many_keep_the_site_away(own: Path, tmp_path: Path) -> None:
    notes = sorted((own / "alder" / "notes").iterdir())
    notes[0].unlink()
    run_inproc(sites=own, run_dir=tmp_path / "few", experiment="tiny", overrides=QUICK)
    assert {e["site"]: e["excluded"] for e in Record(tmp_path / "few").events("enrolled")} == {"alder": 1, "birch": 0}
    for note in notes[1:10]:
        note.unlink()
    run_inproc(sites=own, run_dir=tmp_path / "many", experiment="tiny", overrides=QUICK)
    (event,) = (e for e in Record(tmp_path / "many").events("round") if e["phase"] == "enrol")
    (reason,) = event["left_out"].values()
    assert "Site 'alder' refuses: more than limits.bad_rows" in reason and "in .consilium/findings.csv" in reason
    assert "notes" not in reason
    findings = (own / "alder" / ".consilium" / "findings.csv").read_text(encoding="utf-8")
    assert findings.count("the file does not exist") == 10
    assert sorted(checkpoint.load(tmp_path / "many").sites) == ["birch"]
    assert leaks(tmp_path / "many", own) == set()


def test_a_task_whose_modalities_no_site_holds_fails_before_anything_is_trained(own: Path, tmp_path: Path) -> None:
    shutil.rmtree(own / "birch")
    with pytest.raises(RunFailed, match="no site trains on admission, cxr, which task 'demo-deterioration' asks for"):
        run_inproc(sites=own, run_dir=tmp_path / "run", experiment="tiny", overrides=QUICK)
    assert {e["phase"] for e in Record(tmp_path / "run").events("round")} == {"enrol"}


def test_without_a_reference_set_somebody_must_train_the_student_unless_only_teachers_are_asked_for(
    own: Path, tmp_path: Path
) -> None:
    shutil.rmtree(own / "reference")
    with pytest.raises(RunFailed, match=r"nothing would train the student.*refine\.rounds = 0"):
        run_inproc(sites=own, run_dir=tmp_path / "none", experiment="tiny", overrides=QUICK)
    run_inproc(sites=own, run_dir=tmp_path / "teachers", experiment="tiny", overrides=[*QUICK, "distill.epochs=0"])
    assert load_results(tmp_path / "teachers" / "results.json").rows


def test_too_few_nodes_for_the_hospitals_name_the_command(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"holds 2 hospitals.*flwr run \. --stream --federation-config 'num-supernodes=2'"):
        run_inproc(sites=tiny, run_dir=tmp_path / "run", experiment="tiny", nodes=1)


def test_more_nodes_than_hospitals_are_left_out(tiny: Path, tmp_path: Path) -> None:
    run_inproc(sites=tiny, run_dir=tmp_path / "run", experiment="tiny", overrides=QUICK, nodes=3)
    (event,) = (e for e in Record(tmp_path / "run").events("round") if e["phase"] == "enrol")
    assert list(event["left_out"]) == ["node:3"]
    assert "Node 2 has no hospital" in event["left_out"]["node:3"]


def test_two_hospitals_of_one_name_are_one_too_many(own: Path, tmp_path: Path) -> None:
    shutil.copytree(own / "birch", own / "birch-copy")
    run_inproc(sites=own, run_dir=tmp_path / "run", experiment="tiny", overrides=QUICK)
    (event,) = Record(tmp_path / "run").events("left-out")
    assert (event["site"], len(hospital_folders(own))) == ("birch", 3)
    assert sorted(checkpoint.load(tmp_path / "run").sites) == ["alder", "birch"]


def test_nodes_without_a_manifest_say_how_to_name_one(tmp_path: Path) -> None:
    assert "CONSILIUM_SITES" not in os.environ
    run = open_run(InProcessGrid(client_app, 2), tmp_path / "run", load_config("tiny"))
    with pytest.raises(RunFailed, match=r"no site could enrol.*does not know its manifest.*--node-config.*CONSILIUM_SITES"):
        play(run)
