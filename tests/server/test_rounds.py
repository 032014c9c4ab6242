"""A round in which nobody is at fault (who is: test_misbehaviour.py)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from flwr.app import Message

from common.errors import ConsiliumError
from common.messages import WireMessage
from server import checkpoint
from server.phases import enrol
from server.record import Record
from server.rounds import RunFailed, require_quorum
from server.run import open_run
from tests.server import fakes
from tests.server.fakes import Clock, ScriptedGrid, Site, small_config

pytestmark = pytest.mark.usefixtures("clock")
PAIR = (Site("ash"), Site("birch"))


def test_a_group_needs_its_share_of_sites_and_at_least_one() -> None:
    require_quorum("x", 0, ["a", "b"], ["b"], 0.5)
    require_quorum("x", 0, ["a", "b", "c"], ["a", "c", "stranger"], 0.6)
    for members, answered, share in ((["a", "b"], ["b"], 0.51), (["a"], ["stranger"], 0.01), ([], [], 0.5)):
        with pytest.raises(RunFailed, match="lost its quorum in round 7"):
            require_quorum("x", 7, members, answered, share)


def test_without_a_single_site_the_run_fails_and_says_what_to_start(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(RunFailed, match=r"no site connected within 5 s \(federation\.deadline\)\. Start the SuperNodes"):
        fakes.perform(tmp_path / "run", [])
    assert clock.now >= 5
    assert checkpoint.load(tmp_path / "run").failed_in == "enrolling"


def test_the_number_of_sites_that_is_asked_for_is_waited_for(tmp_path: Path, clock: Clock) -> None:
    class Slow(ScriptedGrid):
        def get_node_ids(self) -> Iterable[int]:
            return [n for n in super().get_node_ids() if n < 3 or clock.now > 3]

    grid = Slow([*PAIR, Site("cedar")])
    fakes.play(open_run(grid, tmp_path / "run", small_config(federation__min_sites=3)))
    assert sorted(checkpoint.load(tmp_path / "run").sites) == ["ash", "birch", "cedar"]
    (event,) = Record(tmp_path / "run").events("waiting")
    assert (event["connected"], event["min_sites"], event["seconds"]) == (2, 3, 5)


@pytest.mark.parametrize("third", [[], [Site("cedar", script=fakes.error("the disk is full"))]])
def test_with_fewer_sites_than_asked_for_nothing_is_taught(third: list[Site], tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"2 site\(s\) enrolled, federation\.min_sites = 3\. Start the missing SuperN"):
        fakes.perform(tmp_path / "run", [*PAIR, *third], small_config(federation__min_sites=3))
    assert fakes.rounds(tmp_path / "run", "teach") == []
    fakes.perform(tmp_path / "run", [*PAIR, Site("cedar")], resume=True)
    assert checkpoint.load(tmp_path / "run").phase == "finished"


def test_nodes_that_turn_up_one_by_one_are_all_waited_for(tmp_path: Path) -> None:
    class Growing(ScriptedGrid):
        known = 0

        def get_node_ids(self) -> Iterable[int]:
            self.known = min(self.known + 1, len(self.sites))
            return list(self.sites)[: self.known]

    run = open_run(Growing([*PAIR, Site("cedar")]), tmp_path / "run", small_config())
    assert sorted(enrol.roll_call(run)) == ["ash", "birch", "cedar"]


def test_a_simulation_with_too_few_nodes_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"6 hospitals, but there are only 2 node\(s\).*--federation-config 'num-supernodes=6'"):
        fakes.perform(tmp_path / "run", [Site("ash", folders=6), Site("birch", folders=6)])


def test_a_simulated_hospital_that_refuses_is_no_missing_node(tmp_path: Path) -> None:
    refuses = fakes.in_round("query.enrol", 0, fakes.error("Site 'cedar' refuses: 9 of 40 patient rows have a fault"))
    fakes.perform(tmp_path / "run", [Site("ash", folders=3), Site("birch", folders=3), Site("cedar", script=refuses, folders=3)])
    (event,) = fakes.rounds(tmp_path / "run", "enrol")
    assert "9 of 40 patient rows have a fault" in event["left_out"]["node:3"]
    assert sorted(checkpoint.load(tmp_path / "run").sites) == ["ash", "birch"]


def test_one_site_that_speaks_of_a_simulation_ends_nobodys_run(tmp_path: Path) -> None:
    fakes.perform(tmp_path / "run", [Site("ash"), Site("birch", folders=99)])
    assert checkpoint.load(tmp_path / "run").phase == "finished"


def test_when_nobody_can_enrol_the_reasons_are_given(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"no site could enrol\. Reasons: node:1: it answered with an error: the disk is full"):
        fakes.perform(tmp_path / "run", [Site("ash", script=fakes.error("the disk is full"))])


def test_a_task_whose_modality_nobody_holds_fails_in_enrol(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"no site trains on signs, which task 'small' asks for\. Invite a site that holds it"):
        fakes.perform(tmp_path / "run", [Site("ash", {"labs": 40}), Site("birch", {"labs": 40})])
    state = checkpoint.load(tmp_path / "run")
    assert (state.failed_in, state.sites) == ("enrolling", {})


def test_a_site_that_is_offline_is_left_out_and_asked_again_when_it_is_back(tmp_path: Path) -> None:
    def disconnects(message: Message, reply: object) -> object:
        if message.metadata.group_id == "train.teach/0":
            grid.offline.add(3)
        if message.metadata.group_id == "train.teach/1":
            grid.offline.clear()
        return reply

    grid = ScriptedGrid([Site("ash", script=disconnects), Site("birch"), Site("cedar")])  # type: ignore[arg-type]
    fakes.play(open_run(grid, tmp_path / "run", small_config()))
    said = [r["left_out"] for r in fakes.rounds(tmp_path / "run", "teach")]
    assert said == [{}, {"cedar": "it is offline"}, {}]


def test_a_site_that_is_gone_when_a_run_is_resumed_is_offline(tmp_path: Path) -> None:
    fails = fakes.in_round("train.teach", 1, lambda *_: None)
    with pytest.raises(RunFailed):
        fakes.perform(tmp_path / "run", [Site("ash", script=fails), Site("birch", script=fails), Site("cedar", script=fails)])
    fakes.perform(tmp_path / "run", PAIR, resume=True)
    assert all(r["left_out"] == {"cedar": "it is offline"} for r in fakes.rounds(tmp_path / "run", "teach")[2:])
    assert checkpoint.load(tmp_path / "run").phase == "finished"


@pytest.mark.parametrize(
    ("back", "reason"),
    [
        (Site("cedar"), None),
        (Site("cedar", checksum="07e2"), "its files are not those that it enrolled with. Restore them, with their times"),
        (Site("dogwood"), "it did not enrol when the run started. It can take part in a new run"),
    ],
)
def test_a_site_that_is_back_as_another_node_is_taken_back_if_its_patients_are_the_same(
    back: Site, reason: str | None, tmp_path: Path
) -> None:
    def disconnects(message: Message, reply: WireMessage) -> None:
        grid.offline.add(3)
        grid.sites[4] = back

    grid = ScriptedGrid([Site("ash"), Site("birch"), Site("cedar", script=fakes.in_round("train.teach", 0, disconnects))])
    fakes.play(open_run(grid, tmp_path / "run", small_config()))
    said = [r["left_out"].get("cedar") for r in fakes.rounds(tmp_path / "run", "teach")]
    told = [(e["site"], e["reason"]) for e in Record(tmp_path / "run").events("left-out")]
    if reason is None:
        assert said[1:] == [None, None]
        assert [e["site"] for e in Record(tmp_path / "run").events("returned")] == ["cedar"]
        assert {r["site"] for r in checkpoint.load(tmp_path / "run").evaluation} == {"ash", "birch", "cedar"}
    else:
        assert said[1:] == ["it is offline"] * 2
        ((site, why),) = told
        assert (site, why.startswith(reason)) == (back.name, True)
    assert [site for site, kind in grid.pushed if kind == "query.enrol"].count(back.name) == 1 + (back.name != "dogwood")


def test_a_site_whose_old_connection_expires_late_is_taken_back_too(tmp_path: Path) -> None:
    def both_come_back(message: Message, reply: WireMessage) -> None:
        grid.offline.add(2)  # birch's old node is gone, cedar's is still listed
        grid.sites[4], grid.sites[5] = Site("birch"), Site("cedar", script=in_round)

    def in_round(message: Message, reply: WireMessage) -> WireMessage:
        if message.metadata.message_type == "query.enrol":
            grid.offline.add(3)
        return reply

    grid = ScriptedGrid([Site("ash"), Site("birch"), Site("cedar", script=fakes.in_round("train.teach", 0, both_come_back))])
    fakes.play(open_run(grid, tmp_path / "run", small_config()))
    assert {e["site"] for e in Record(tmp_path / "run").events("returned")} == {"birch", "cedar"}
    assert {r["site"] for r in checkpoint.load(tmp_path / "run").evaluation} == {"ash", "birch", "cedar"}


def test_a_site_that_answers_the_roll_call_of_a_resumed_run_too_late_is_asked_again(tmp_path: Path) -> None:
    fails = fakes.in_round("train.teach", 1, lambda *_: None)
    with pytest.raises(RunFailed):
        fakes.perform(tmp_path / "run", [Site("ash", script=fails), Site("birch", script=fails), Site("cedar", script=fails)])
    asked: list[Message] = []

    def late(message: Message, reply: WireMessage) -> list[fakes.Answer] | WireMessage:
        if message.metadata.message_type != "query.enrol" or asked:
            return reply
        asked.append(message)
        return [fakes.at(message, reply, 6)]  # the deadline is five looks away

    fakes.perform(tmp_path / "run", [*PAIR, Site("cedar", script=late)], resume=True)
    assert [e["site"] for e in Record(tmp_path / "run").events("returned")] == ["cedar"]
    assert {r["site"] for r in checkpoint.load(tmp_path / "run").evaluation} == {"ash", "birch", "cedar"}


def test_nobody_new_is_asked_while_every_site_is_there(tmp_path: Path) -> None:
    def another_comes(message: Message, reply: WireMessage) -> WireMessage:
        grid.sites[4] = Site("dogwood")
        return reply

    grid = ScriptedGrid([Site("ash"), Site("birch", script=fakes.in_round("train.teach", 0, another_comes))])
    fakes.play(open_run(grid, tmp_path / "run", small_config()))
    assert {site for site, _ in grid.pushed} == {"ash", "birch"}


def test_a_site_whose_patients_changed_is_left_out_of_the_run_that_is_resumed(tmp_path: Path) -> None:
    fails = fakes.in_round("train.teach", 1, lambda *_: None)
    cedar = Site("cedar", script=fails)
    with pytest.raises(RunFailed):
        fakes.perform(tmp_path / "run", [Site("ash", script=fails), Site("birch", script=fails), cedar])
    grid = fakes.perform(tmp_path / "run", [*PAIR, Site("cedar", checksum="07e2")], resume=True)
    why = "its files are not those that it enrolled with. Restore them"
    (event,) = Record(tmp_path / "run").events("left-out")
    assert (event["site"], event["reason"].startswith(why)) == ("cedar", True)
    later = [e["left_out"] for e in Record(tmp_path / "run").events("round")[-5:]]
    assert later == [{"cedar": event["reason"]}] * 5
    assert [kind for site, kind in grid.pushed if site == "cedar"] == ["query.enrol"]


def test_a_run_whose_only_site_changed_its_patients_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(RunFailed):
        fakes.perform(tmp_path / "run", [Site("ash", script=fakes.in_round("train.teach", 1, lambda *_: None))])
    with pytest.raises(RunFailed, match=r"no site could enrol\. Reasons: ash: its files are not those"):
        fakes.perform(tmp_path / "run", [Site("ash", checksum="07e2")], resume=True)
    fakes.perform(tmp_path / "run", [Site("ash")], resume=True)
    assert checkpoint.load(tmp_path / "run").phase == "finished"


def test_a_message_that_cannot_be_sent_costs_its_site_the_round_only(tmp_path: Path) -> None:
    class Refusing(ScriptedGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            if any(m.metadata.group_id == "train.teach/0" and m.metadata.dst_node_id == 1 for m in messages):
                return []  # what Flower does with a message that is too large
            return super().push_messages(messages)

    fakes.play(open_run(Refusing([*PAIR, Site("cedar")]), tmp_path / "run", small_config()))
    said = [r["left_out"] for r in fakes.rounds(tmp_path / "run", "teach")]
    assert said == [{"ash": "the message could not be sent"}, {}, {}]


def test_the_bytes_of_every_site_and_phase_are_counted(tmp_path: Path) -> None:
    fakes.perform(tmp_path / "run", PAIR)
    traffic = checkpoint.load(tmp_path / "run").traffic
    assert sorted(traffic) == ["ash", "birch"]
    assert all(sorted(phases) == ["enrol", "patterns", "refine", "teach"] for phases in traffic.values())
    rounds = Record(tmp_path / "run").events("round")
    for way, name in enumerate(("bytes_sent", "bytes_received")):
        assert sum(t[phase][way] for t in traffic.values() for phase in t) == sum(r[name] for r in rounds)


def test_a_directory_that_holds_a_run_is_not_overwritten(tmp_path: Path) -> None:
    fakes.perform(tmp_path / "run", PAIR)
    with pytest.raises(ConsiliumError, match=r"already holds a run\. Continue it with: consilium-server resume"):
        fakes.perform(tmp_path / "run", PAIR)


def test_a_finished_run_that_is_resumed_asks_nobody(tmp_path: Path) -> None:
    fakes.perform(tmp_path / "run", PAIR)
    before = (tmp_path / "run" / "student.safetensors").read_bytes()
    grid = fakes.perform(tmp_path / "run", PAIR, resume=True)
    assert grid.pushed == []
    assert (tmp_path / "run" / "student.safetensors").read_bytes() == before


def test_a_fault_of_the_server_fails_the_run_without_telling_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object) -> None:
        raise KeyError("P12345")

    monkeypatch.setattr("server.app.PHASES", {"teaching": breaks})
    with pytest.raises(KeyError):
        fakes.perform(tmp_path / "run", PAIR)
    assert checkpoint.load(tmp_path / "run").reason == "KeyError in the server; its log holds more"


def test_a_damaged_configuration_says_what_to_do(tmp_path: Path) -> None:
    fakes.perform(tmp_path / "run", PAIR)
    (tmp_path / "run" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConsiliumError, match=r"config\.json is damaged\. Restore it"):
        fakes.perform(tmp_path / "run", PAIR, resume=True)
