"""A server that is killed, and the run that goes on as if nothing had happened."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from common.arrays import read_arrays
from common.errors import ConsiliumError
from server.record import Record
from simulations.inproc import run_inproc
from tests.server import killing

RESULTS = ("student.safetensors", "consilium.safetensors", "teachers/labs-small.safetensors", "teachers/cxr-base.safetensors")
TRANSITIONS = [
    ("enrolling", 0),
    ("teaching", 0),
    ("distilling", 0),
    ("refining", 1),
    ("evaluating", 0),
    ("finished", 0),
]


def assert_same_results(run: Path, other: Path) -> None:
    for name in RESULTS:
        a, b = read_arrays(run / name), read_arrays(other / name)
        assert {k: (v.dtype, v.shape, v.tobytes()) for k, v in a.items()} == {
            k: (v.dtype, v.shape, v.tobytes()) for k, v in b.items()
        }
    assert (run / "weights.json").read_bytes() == (other / "weights.json").read_bytes()
    states = [json.loads((folder / "state.json").read_text(encoding="utf-8")) for folder in (run, other)]
    for key in ("phase", "curves", "best", "evaluation", "prior", "sites"):
        assert states[0][key] == states[1][key], key


@pytest.mark.parametrize(("phase", "number"), TRANSITIONS)
def test_killed_after_a_transition_a_run_ends_with_the_same_student(
    phase: str, number: int, tiny: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert killing.killed(killing.run_until_transition, tiny, run, phase, number)
    assert json.loads((run / "state.json").read_text(encoding="utf-8"))["phase"] == phase
    run_inproc(sites=tiny, run_dir=run, experiment="tiny", resume=True)
    assert_same_results(run, undisturbed)
    events = [e["event"] for e in Record(run).events()]
    assert events.count("started") == events.count("resumed") == events.count("finished") == 1


def test_killed_within_a_round_a_run_ends_with_the_same_student(tiny: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert killing.killed(killing.run_until_message, tiny, run, "train.teach/1", 1)
    state = json.loads((run / "state.json").read_text(encoding="utf-8"))
    assert (state["phase"], state["round"]) == ("teaching", 1)
    run_inproc(sites=tiny, run_dir=run, experiment="tiny", resume=True)
    assert_same_results(run, undisturbed)


def without(sites: Path) -> None:
    shutil.rmtree(sites / "reference")


def one_value_changed(sites: Path) -> None:
    file = sites / "reference" / "admission.csv"
    table = pd.read_csv(file)
    table.loc[0, "age"] += 1
    table.to_csv(file, index=False)


@pytest.mark.parametrize(("change", "visits"), [(without, 0), (one_value_changed, 60)])
def test_a_run_is_not_resumed_with_another_reference_set(
    change: Callable[[Path], None], visits: int, tiny: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run, sites = tmp_path / "run", tmp_path / "sites"
    assert killing.killed(killing.run_until_transition, tiny, run, "distilling", 0)
    shutil.copytree(tiny, sites)
    change(sites)
    with pytest.raises(ConsiliumError, match=rf"another reference set: 60 visits \(checksum \w+\), now there are {visits} "):
        run_inproc(sites=sites, run_dir=run, experiment="tiny", resume=True)
    state = json.loads((run / "state.json").read_text(encoding="utf-8"))
    assert (state["phase"], state["failed_in"]) == ("failed", "distilling")
    assert "Let CONSILIUM_SITES or CONSILIUM_REFERENCE name the same one" in state["reason"]
    assert [e["phase"] for e in Record(run).events("round")].count("enrol") == 1  # no site was asked again
    run_inproc(sites=tiny, run_dir=run, experiment="tiny", resume=True)
    assert_same_results(run, undisturbed)


def test_a_hospital_whose_patients_changed_is_left_out_when_the_run_is_resumed(tiny: Path, tmp_path: Path) -> None:
    run, sites = tmp_path / "run", tmp_path / "sites"
    assert killing.killed(killing.run_until_transition, tiny, run, "refining", 0)
    shutil.copytree(tiny, sites)
    table = pd.read_csv(sites / "alder" / "patients.csv")
    table.loc[0, "deterioration_48h"] = 1 - table.loc[0, "deterioration_48h"]
    table.to_csv(sites / "alder" / "patients.csv", index=False)
    run_inproc(sites=sites, run_dir=run, experiment="tiny", resume=True)
    (event,) = Record(run).events("left-out")
    assert (event["site"], "not those that it enrolled with" in event["reason"]) == ("alder", True)
    later = [e for e in Record(run).events("round") if e["phase"] in ("refine", "patterns")]
    assert [(e["accepted"], e["left_out"]) for e in later] == [(["birch"], {"alder": event["reason"]})] * 4
