"""The ClientApp: what passes the guards is answered, and no fault's text leaves the hospital."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client import handlers
from client.app import app
from client.site import Site
from common.errors import ConsiliumError
from common.messages import EnrolReply, EvaluateReply, RefineReply, TeachReply, WireMessage
from tests.client.conftest import Server, context_of

NAME = "Jane Doe, born 1960-05-17"
KINDS: dict[str, tuple[str, type[WireMessage]]] = {
    "enrol": ("query.enrol", EnrolReply),
    "teach": ("train.teach", TeachReply),
    "refine": ("train.refine", RefineReply),
    "evaluate": ("evaluate.patterns", EvaluateReply),
}


@pytest.fixture(autouse=True)
def identity() -> None:
    """Flower names the sender of a message by the process that it runs in."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1


def ask(kind: str, content: RecordDict, folder: Path) -> RecordDict:
    message = Message(content, dst_node_id=1, message_type=KINDS[kind][0], group_id="0")
    message.metadata.__dict__["_message_id"] = "1"
    return app(message, context_of(folder)).content


def refused(kind: str, content: RecordDict, folder: Path) -> str:
    with pytest.raises(ConsiliumError) as error:
        ask(kind, content, folder)
    assert (
        error.value.__context__ is None or error.value.__suppress_context__ or isinstance(error.value.__context__, ConsiliumError)
    )
    return str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_message_is_answered_by_its_reply(kind: str, folder: Path, server: Server) -> None:
    request: WireMessage = getattr(server, kind)()
    reply: Any = KINDS[kind][1].from_record(ask(kind, request.to_record(), folder))
    assert reply.site == "riverside"


@pytest.mark.parametrize("kind", KINDS)
def test_another_code_is_refused_with_both_hashes(kind: str, folder: Path, server: Server) -> None:
    text = refused(kind, getattr(server, kind)(code="0123456789abcdef").to_record(), folder)
    assert "0123456789abcdef" in text
    assert "same version" in text


@pytest.mark.parametrize("kind", KINDS)
def test_garbage_is_refused(kind: str, folder: Path) -> None:
    text = refused(kind, RecordDict({"body": ConfigRecord({"json": "garbage"})}), folder)
    assert text.startswith("Request refused: ")


def test_the_message_of_another_handler_is_refused(folder: Path, server: Server) -> None:
    assert "not a TeachRequest" in refused("teach", server.refine().to_record(), folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_foreign_configuration_is_refused_by_key(kind: str, folder: Path, server: Server) -> None:
    request = getattr(server, kind)()
    request.config["distill"]["tempo"] = 1
    assert "unknown key 'distill.tempo'" in refused(kind, request.to_record(), folder)


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_of_an_unforeseen_fault_stays_in_the_hospital(
    kind: str, folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ValueError(f"could not convert {NAME} to float")

    request = getattr(server, kind)()
    monkeypatch.setattr(handlers, kind, fail)
    with caplog.at_level(logging.DEBUG):
        text = refused(kind, request.to_record(), folder)
    assert "Jane" not in text + caplog.text
    assert "ValueError in fail (line " in text
    assert "of test_app.py" in text
    assert str(folder) not in text
    assert ".consilium/faults.log" in text
    assert NAME in (folder / ".consilium" / "faults.log").read_text()


def test_a_chain_of_faults_leaks_nothing_either(folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        try:
            raise KeyError(NAME)
        except KeyError as error:
            raise RuntimeError(NAME) from error

    monkeypatch.setattr(handlers, "enrol", fail)
    assert "Jane" not in refused("enrol", server.enrol().to_record(), folder)


def test_a_fault_before_the_site_is_known_is_told_without_a_log(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    monkeypatch.setattr("client.app.open_site", lambda *_: 1 / 0)
    message = Message(server.enrol().to_record(), dst_node_id=1, message_type="query.enrol", group_id="0")
    with pytest.raises(ConsiliumError, match="ZeroDivisionError"):
        app(message, context_of())


@pytest.mark.parametrize("content", [None, "site: [", "pateint: x"])
def test_the_place_of_a_manifest_that_cannot_be_used_is_told_on_the_hospitals_own_console_alone(
    content: str | None, folder: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    if content is None:
        (folder / "manifest.yaml").unlink()
    else:
        (folder / "manifest.yaml").write_text(content)
    text = refused("enrol", server.enrol().to_record(), folder)
    assert "manifest.yaml" in text
    assert str(folder.parent) not in text
    assert str(folder) in caplog.text


@pytest.mark.parametrize("run", ["../../evil", "/evil", "a/b"])
def test_a_run_name_that_is_a_path_writes_nothing(run: str, folder: Path, server: Server) -> None:
    before = sorted(folder.parent.rglob("*"))
    text = refused("evaluate", server.evaluate(run=run).to_record(), folder)
    assert text.startswith("Request refused: ")
    assert sorted(folder.parent.rglob("*")) == before


def test_foreign_parameters_are_refused_without_touching_the_site(folder: Path, server: Server, site: Site) -> None:
    text = refused(
        "teach", server.teach(groups={"labs/linear": {"x": server.teachers()["labs/linear"]["head.weight"]}}).to_record(), folder
    )
    assert "RuntimeError" in text


def test_no_message_can_name_a_file(server: Server) -> None:
    fields = {name for kind in KINDS for name in vars(getattr(server, kind)())}
    assert not {n for n in fields if any(word in n for word in ("path", "file", "folder", "manifest"))}


def test_a_message_does_not_wait_for_libraries_that_few_messages_need() -> None:
    slow = "sklearn", "torchmetrics", "scipy.stats", "matplotlib"
    code = f"import sys, client.app; print([m for m in {slow} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
