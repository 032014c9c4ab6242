"""The in-process Grid behaves like Flower's own, as far as the ServerApp can see."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

from common.errors import ConsiliumError
from simulations.inproc import InProcessGrid, environment, run_inproc

app = ClientApp()


@app.query("echo")
def echo(message: Message, context: Context) -> Message:
    seen = context.state.get("count", ConfigRecord({"n": 0}))
    context.state["count"] = ConfigRecord({"n": seen["n"] + 1})
    said = {"partition": context.node_config["partition-id"], "n": context.state["count"]["n"]}
    return Message(RecordDict({"said": ConfigRecord(said)}), reply_to=message)


@app.query("fail")
def fail(message: Message, context: Context) -> Message:
    raise ConsiliumError("the disk is full")


@pytest.fixture
def grid() -> InProcessGrid:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    return InProcessGrid(app, 3)


def ask(grid: InProcessGrid, node: int, kind: str = "query.echo") -> str:
    (message_id,) = grid.push_messages([grid.create_message(RecordDict(), kind, node, "0")])
    return message_id


def test_every_node_answers_as_its_own_partition_and_keeps_its_state(grid: InProcessGrid) -> None:
    nodes = list(grid.get_node_ids())
    ids = [ask(grid, node) for node in nodes + nodes]
    said = {m.metadata.reply_to_message_id: dict(m.content["said"]) for m in grid.pull_messages(ids)}
    assert [said[i] for i in ids] == [{"partition": p, "n": n} for n in (1, 2) for p in (0, 1, 2)]


def test_a_reply_is_given_out_once_and_only_to_who_asks_for_it(grid: InProcessGrid) -> None:
    one, other = ask(grid, 1), ask(grid, 2)
    assert [m.metadata.reply_to_message_id for m in grid.pull_messages([one])] == [one]
    assert list(grid.pull_messages([one])) == []
    assert [m.metadata.reply_to_message_id for m in grid.pull_messages([one, other])] == [other]


def test_an_exception_of_the_clientapp_is_an_error_reply_with_its_text(grid: InProcessGrid) -> None:
    (reply,) = grid.pull_messages([ask(grid, 1, "query.fail")])
    assert reply.has_error()
    assert "the disk is full" in reply.error.reason
    assert [m.has_error() for m in grid.send_and_receive([grid.create_message(RecordDict(), "query.echo", 1, "0")])] == [False]


def test_the_environment_is_as_before_even_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_A", "old")
    monkeypatch.delenv("CONSILIUM_B", raising=False)
    with pytest.raises(RuntimeError, match="inside"), environment(CONSILIUM_A="new", CONSILIUM_B="new"):
        assert (os.environ["CONSILIUM_A"], os.environ["CONSILIUM_B"]) == ("new", "new")
        raise RuntimeError("inside")
    assert os.environ["CONSILIUM_A"] == "old"
    assert "CONSILIUM_B" not in os.environ


def test_a_refused_configuration_starts_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConsiliumError, match="Unknown experiment 'tinny'; did you mean 'tiny'"):
        run_inproc(sites=tmp_path, run_dir=tmp_path / "run", experiment="tinny")
    with pytest.raises(ConsiliumError, match=r"teach\.round"):
        run_inproc(sites=tmp_path, run_dir=tmp_path / "run", experiment="tiny", overrides=["teach.round=3"])
    assert not (tmp_path / "run").exists()
