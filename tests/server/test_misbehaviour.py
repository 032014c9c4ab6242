"""Sites that answer late, never, twice or nonsense: left out with a reason, while the run goes on with the others."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from common.arrays import read_arrays
from common.messages import EvaluateReply, WireMessage
from server import checkpoint
from server.record import Record
from server.rounds import RunFailed
from tests.server import fakes
from tests.server.fakes import Answer, Script, Site, at, changed, first, in_round

pytestmark = pytest.mark.usefixtures("clock")
DEADLINE_LOOKS = 6  # deadline of 5 s, a look per second


def late(message: Message, reply: WireMessage) -> list[Answer]:
    return [at(message, reply, DEADLINE_LOOKS)]


def never(message: Message, reply: WireMessage) -> None:
    return None


def twice(message: Message, reply: WireMessage) -> list[Answer]:
    return [at(message, reply, 0), at(message, reply, 0)]


def text(message: Message, reply: WireMessage) -> list[Answer]:
    return [(0, Message(RecordDict({"body": ConfigRecord({"json": "{]"})}), reply_to=message))]


def other_kind(message: Message, reply: WireMessage) -> WireMessage:
    return EvaluateReply("cedar")


def nan(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array.flat[0] = np.nan
    return array


TEACH: dict[str, tuple[Script, str]] = {
    "error": (fakes.error("Traceback ...\nConsiliumError: the disk is full"), "answered with an error: ConsiliumError: the disk"),
    "late": (late, "no answer within 5 s"),
    "never": (never, "no answer within 5 s"),
    "undecodable": (text, "no readable body where a TeachReply is expected"),
    "another message": (other_kind, "not a TeachReply"),
    "NaN": (changed(groups=first(nan)), "holds NaN or infinity"),
    "wrong shape": (changed(groups=first(lambda a: a[..., None])), r"float32 \(1, 1\), float32 \(1,\) was sent"),
    "wrong dtype": (changed(groups=first(lambda a: a.astype(np.float64))), "is float64"),
    "wrong array": (changed(groups=lambda g: {n: {"x": np.ones(1, "f4")} for n in g}), "other names than those sent"),
    "unknown group": (changed(groups=lambda g: {**g, "ct/base": {}}), "it holds 'ct/base', which it was not asked for"),
    "another's name": (changed(site="ash"), "answered under another site's name"),
    "too few patients": (changed(counts=lambda c: dict.fromkeys(c, 4)), "rests on 4 training visits, fewer than"),
    "too many patients": (changed(counts=lambda c: dict.fromkeys(c, 41)), "claims 41 training visits, the site enrolled with 40"),
    "no count": (changed(counts={}), "rests on 0 training visits"),
    "NaN validation": (changed(validation={"labs/linear": (float("nan"), 4)}), "validation loss of 'labs/linear' is NaN"),
    "empty validation": (changed(validation={"labs/linear": (0.4, 0)}), "validation loss of 'labs/linear' rests on 0 visits"),
    "too much validation": (
        changed(validation={"labs/linear": (0.1, 10**9)}),
        "rests on 1000000000 visits, the site enrolled with",
    ),
    "NaN training": (changed(training={"labs/linear": float("nan")}), "training loss of 'labs/linear' is NaN"),
    "a loss whose mean is infinite": (changed(training={"labs/linear": 1.7e308}), "training loss of .* above 1e.06"),
    "a loss that nobody can beat": (changed(validation={"labs/linear": (-1e30, 4)}), "validation loss of .* negative"),
    "blank error": (fakes.error("\n"), "answered with an error: code"),
}
REFINE: dict[str, tuple[Script, str]] = {
    "NaN": (changed(student=first(nan)), "holds NaN or infinity"),
    "wrong shape": (changed(student=first(lambda a: a[..., None])), "was sent"),
    "unknown parameter": (
        changed(student=lambda s: {**s, "omega2": np.ones(1)}),
        "it holds 'omega2', which it was not asked for",
    ),
    "unknown block": (changed(student=lambda s: {**s, "heads.ct.bias": np.ones(1)}), "it holds 'heads.ct.bias'"),
    "half a block": (changed(student=lambda s: dict(list(s.items())[1:])), "other names than those sent"),
    "count without block": (changed(student={}), "counts training visits of 'labs' without the block"),
    "another's name": (changed(site="birch"), "answered under another site's name"),
    "NaN gradient": (changed(meta=first(nan)), "'bias' of 'meta' holds NaN or infinity"),
    "wrong gradient": (changed(meta=first(lambda a: a[..., None])), "'bias' of 'meta' is float32"),
    "half a gradient": (changed(meta=lambda m: {"scale": m["scale"]}), "gradients of the modality weights are incomplete"),
    "negative meta count": (changed(meta_count=-1), "gradients claim -1 meta visits"),
    "too many meta visits": (changed(meta_count=10**9), "gradients claim 1000000000 meta visits, the site enrolled with"),
    "NaN validation": (changed(validation=(float("inf"), 3)), "validation loss of 'student' is NaN"),
    "too much validation": (changed(validation=(0.1, 10**9)), "rests on 1000000000 visits, the site enrolled with"),
}
EVALUATE: dict[str, tuple[Script, str]] = {
    "NaN": (changed(rows=[fakes.row("student", float("nan"))]), "auroc of student is NaN"),
    "NaN before a number": (
        changed(rows=[fakes.row("student", float("nan")), {**fakes.row("student", 0.7), "pattern": "labs"}]),
        "auroc of student is NaN",
    ),
    "more than it tests": (changed(rows=[{**fakes.row("student", 0.7), "n": 10**9}]), "rests on 1000000000 visits"),
    "other columns": (changed(rows=[{**fakes.row("student", 0.5), "patient": "x"}]), "its rows do not consist of"),
    "no number": (changed(rows=[fakes.row("student", "high")]), "its rows do not consist of"),
}
ENROL: dict[str, tuple[Script, str]] = {
    "name": (changed(site="../ash"), "no plain name"),
    "role": (changed(role="admin"), "neither 'train' nor 'evaluate'"),
    "more of a modality than visits": (
        changed(modalities={"labs": 41, "signs": 40}),
        "a label or a modality than training visits",
    ),
    "more labels than visits": (changed(labels={"event": 41}), "more visits with a label or a modality than training visits"),
    "NaN": (changed(moments=first(nan)), "holds NaN or infinity"),
    "wrong shape": (changed(moments=first(lambda a: a[:2])), r"float64 \(2,\), float64 \(3,\) was sent"),
    "more observations than visits": (
        changed(moments=lambda m: {**m, "labs": {**m["labs"], "count": np.full(3, 1e12)}}),
        "claim more observations than its training visits have",
    ),
    "negative variance": (
        changed(moments=lambda m: {**m, "labs": {**m["labs"], "variance": -np.ones(3)}}),
        "negative count or variance",
    ),
    "a mean that no file holds": (
        changed(moments=lambda m: {**m, "labs": {**m["labs"], "mean": np.full(3, 1e200)}}),
        "of values that no file may hold",
    ),
    "negative count": (changed(labels={"event": -3}), "fewer than zero visits"),
    "unknown modality": (changed(modalities={"labs": 40, "ct": 40}), "its modalities are not those of task 'small'"),
    "unknown label": (changed(labels={"death": 3}), "its labels are not those of task 'small'"),
    "no statistics": (changed(moments={}), "its feature statistics are not those of task 'small'"),
}


def with_cedar(script: Script) -> list[Site]:
    return [Site("ash"), Site("birch", shift=0.5), Site("cedar", shift=8.0, script=script)]


def student(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    return read_arrays(folder / "student.safetensors")


def same(a: dict[str, np.ndarray[Any, Any]], b: dict[str, np.ndarray[Any, Any]]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", TEACH)
def test_teach_leaves_out_a_site_that_misbehaves_and_goes_on(name: str, tmp_path: Path) -> None:
    script, reason = TEACH[name]
    sites = with_cedar(in_round("train.teach", 0, script))
    grid = fakes.perform(tmp_path / "run", sites)
    bad, after, _ = fakes.rounds(tmp_path / "run", "teach")
    assert bad["accepted"] == ["ash", "birch"]
    assert re.search(reason, bad["left_out"].pop("cedar"))
    assert not bad["left_out"]
    before, then = (sites[0].asked[r].groups["labs/linear"] for r in (0, 1))
    assert all(np.allclose(then[k] - before[k], 0.375, atol=1e-6) for k in before)
    assert ("cedar" in after["accepted"]) is (name != "never")
    assert grid.most_in_flight == 1
    assert checkpoint.load(tmp_path / "run").phase == "finished"


def test_a_second_answer_is_recorded_and_counts_for_nothing(tmp_path: Path) -> None:
    fakes.perform(tmp_path / "once", with_cedar(fakes.honest))
    fakes.perform(tmp_path / "twice", with_cedar(in_round("train.teach", 0, twice)))
    (ignored,) = Record(tmp_path / "twice").events("ignored")
    assert ignored["reason"] == "a second answer to the same message"
    assert same(student(tmp_path / "once"), student(tmp_path / "twice"))


def test_a_late_answer_frees_the_site_and_its_content_is_dropped(tmp_path: Path) -> None:
    grid = fakes.perform(tmp_path / "late", with_cedar(in_round("train.teach", 0, late)))
    fakes.perform(tmp_path / "never", with_cedar(in_round("train.teach", 0, fakes.error("x"))))
    (ignored,) = Record(tmp_path / "late").events("ignored")
    assert (ignored["site"], ignored["reason"]) == ("cedar", "an answer after the deadline")
    assert same(student(tmp_path / "late"), student(tmp_path / "never"))
    assert grid.most_in_flight == 1


def test_a_site_that_still_works_on_an_old_message_gets_no_new_one(tmp_path: Path) -> None:
    def two_rounds_late(message: Message, reply: WireMessage) -> list[Answer]:
        return [at(message, reply, DEADLINE_LOOKS + 1)]

    grid = fakes.perform(tmp_path / "run", with_cedar(in_round("train.teach", 0, two_rounds_late)))
    said = [r["left_out"].get("cedar") for r in fakes.rounds(tmp_path / "run", "teach")]
    assert said == ["no answer within 5 s (federation.deadline)", "it is still busy with an earlier message", None]
    assert grid.pushed.count(("cedar", "train.teach")) == 2
    assert grid.most_in_flight == 1


@pytest.mark.parametrize("name", REFINE)
def test_refine_leaves_out_a_site_that_misbehaves_and_goes_on(name: str, tmp_path: Path) -> None:
    script, reason = REFINE[name]
    fakes.perform(tmp_path / "run", with_cedar(in_round("train.refine", 0, script)))
    fakes.perform(tmp_path / "without", with_cedar(in_round("train.refine", 0, fakes.error("x"))))
    bad, after, _ = fakes.rounds(tmp_path / "run", "refine")
    assert (bad["accepted"], after["accepted"]) == (["ash", "birch"], ["ash", "birch", "cedar"])
    assert re.search(reason, bad["left_out"]["cedar"])
    assert same(student(tmp_path / "run"), student(tmp_path / "without"))


@pytest.mark.parametrize("name", EVALUATE)
def test_evaluate_leaves_out_what_a_site_may_not_say(name: str, tmp_path: Path) -> None:
    script, reason = EVALUATE[name]
    fakes.perform(tmp_path / "run", with_cedar(in_round("evaluate.patterns", 0, script)))
    (event,) = fakes.rounds(tmp_path / "run", "patterns")
    assert re.search(reason, event["left_out"]["cedar"])
    assert {r["site"] for r in checkpoint.load(tmp_path / "run").evaluation} == {"ash", "birch"}


@pytest.mark.parametrize("name", ENROL)
def test_enrol_leaves_out_a_site_whose_statistics_would_spoil_the_others(name: str, tmp_path: Path) -> None:
    script, reason = ENROL[name]
    fakes.perform(tmp_path / "run", with_cedar(in_round("query.enrol", 0, script)))
    fakes.perform(tmp_path / "without", with_cedar(fakes.honest)[:2])
    (event,) = fakes.rounds(tmp_path / "run", "enrol")
    assert re.search(reason, event["left_out"]["node:3"])
    assert same(student(tmp_path / "run"), student(tmp_path / "without"))


def test_a_site_with_an_unknown_architecture_is_left_out_with_the_nearest_name(tmp_path: Path) -> None:
    fakes.perform(tmp_path / "run", with_cedar(changed_enrolment(architectures=["labs/liner"])))
    (event,) = Record(tmp_path / "run").events("left-out")
    assert event["site"] == "cedar"
    assert "unknown group 'labs/liner'; did you mean 'labs/linear'?" in event["reason"]
    assert "cedar" not in checkpoint.load(tmp_path / "run").sites


def changed_enrolment(**fields: Any) -> Script:
    return in_round("query.enrol", 0, changed(**fields))


@pytest.mark.parametrize(("told", "held"), [(3, "3 training visits"), (None, "an undisclosed small number of training visits")])
def test_a_site_with_too_few_patients_of_a_modality_trains_the_others(told: int | None, held: str, tmp_path: Path) -> None:
    sites = with_cedar(changed_enrolment(modalities={"labs": 40, "signs": told}))
    fakes.perform(tmp_path / "run", sites)
    (event,) = Record(tmp_path / "run").events("left-out")
    assert (event["site"], event["groups"]) == ("cedar", ["signs/linear"])
    assert event["reason"] == f"{held} hold 'signs', federation.min_patients = 5"
    assert [sorted(r.groups) for r in sites[2].asked] == [["labs/linear"]] * 3
    assert all(r["accepted"] == ["ash", "birch", "cedar"] for r in fakes.rounds(tmp_path / "run", "teach"))


def test_of_two_nodes_with_one_name_the_second_is_left_out(tmp_path: Path) -> None:
    grid = fakes.perform(tmp_path / "run", [Site("ash"), Site("birch"), Site("ash")])
    (event,) = Record(tmp_path / "run").events("left-out")
    assert (event["site"], "two nodes enrolled under this name" in event["reason"]) == ("ash", True)
    assert grid.pushed.count(("ash", "train.teach")) == 3


@pytest.mark.parametrize(
    ("kind", "phase", "reason"),
    [
        ("train.teach", "teaching", "group 'signs/linear' lost its quorum in round 1: 0 of 1 sites answered"),
        ("train.refine", "refining", "'signs' in refine lost its quorum in round 1: 0 of 1 sites answered"),
    ],
)
def test_below_a_groups_quorum_the_run_fails_with_its_state_on_disk_and_can_be_resumed(
    kind: str, phase: str, reason: str, tmp_path: Path
) -> None:
    def sites(script: Script) -> list[Site]:
        return [Site("ash", {"labs": 40}), Site("birch", {"labs": 30}, shift=0.5), Site("cedar", {"signs": 40}, script)]

    folder = tmp_path / "run"
    with pytest.raises(RunFailed, match=re.escape(reason)):
        fakes.perform(folder, sites(in_round(kind, 1, never)))
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    assert (state["phase"], state["failed_in"], state["round"]) == ("failed", phase, 1)
    assert reason in state["reason"]
    assert "federation.quorum = 0.5" in state["reason"]
    assert read_arrays(folder / state["arrays_file"])
    (failed,) = Record(folder).events("failed")
    assert (failed["phase"], failed["round"], failed["reason"]) == (phase, 1, state["reason"])

    fakes.perform(folder, sites(fakes.honest), resume=True)
    fakes.perform(tmp_path / "undisturbed", sites(fakes.honest))
    assert same(student(folder), student(tmp_path / "undisturbed"))
    resumed = checkpoint.load(folder)
    assert (resumed.phase, resumed.failed_in, resumed.reason) == ("finished", None, None)
    assert resumed.curves == checkpoint.load(tmp_path / "undisturbed").curves


def test_a_share_of_sites_below_the_quorum_fails_the_run(tmp_path: Path) -> None:
    config = fakes.small_config(federation__quorum=0.7)
    with pytest.raises(RunFailed, match=r"2 of 3 sites answered, federation\.quorum = 0\.7"):
        fakes.perform(tmp_path / "run", with_cedar(in_round("train.teach", 0, never)), config)


def test_below_the_quorum_of_the_sites_with_test_patients_the_evaluation_fails_and_can_be_resumed(tmp_path: Path) -> None:
    silent = in_round("evaluate.patterns", 0, never)
    nobody_to_test = changed_enrolment(splits={"train": 40, "meta": 6, "validation": 4, "test": 0})
    sites = [Site("ash"), Site("birch", script=silent), Site("cedar", script=silent), Site("dogwood", script=nobody_to_test)]
    with pytest.raises(RunFailed, match=r"the evaluation lost its quorum in round 0: 1 of 3 sites .*federation\.quorum = 0\.5"):
        fakes.perform(tmp_path / "run", sites)
    assert checkpoint.load(tmp_path / "run").failed_in == "evaluating"
    sites[1].script = fakes.honest
    grid = fakes.perform(tmp_path / "run", sites, resume=True)
    assert {r["site"] for r in checkpoint.load(tmp_path / "run").evaluation} == {"ash", "birch"}
    assert ("dogwood", "evaluate.patterns") not in grid.pushed
