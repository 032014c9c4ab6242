"""An in-process Grid: the same ServerApp and ClientApp without Ray, SuperLink or sockets."""

from __future__ import annotations

import os
import shlex
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run as FlowerRun
from flwr.supercore.task_identity import TaskIdentity

from common.data.manifest import hospital_folders

APP_RAISED = 2


class InProcessGrid(Grid):
    """Calls the ClientApp when a message is pushed, and keeps the reply until it is pulled."""

    def __init__(self, client_app: ClientApp, nodes: int) -> None:
        """Args: the ClientApp, and how many nodes run it (partition-ids 0 to nodes - 1)."""
        self._app = client_app
        self._contexts = {
            i + 1: Context(
                run_id=1,
                node_id=i + 1,
                node_config={"partition-id": i, "num-partitions": nodes},
                state=RecordDict(),
                run_config={},
            )
            for i in range(nodes)
        }
        self._replies: dict[str, Message] = {}

    def set_run(self, run: FlowerRun) -> None:
        """Does nothing: there is one run."""

    @property
    def run(self) -> FlowerRun:
        """Returns an empty run."""
        return FlowerRun.create_empty(1)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Returns a message to a node."""
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Returns all nodes: none is ever offline."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Runs the ClientApp on every message at once."""
        return [self._handle(m) for m in messages]

    def _handle(self, message: Message) -> str:
        message.metadata.__dict__["_message_id"] = message_id = uuid.uuid4().hex
        context = self._contexts[message.metadata.dst_node_id]
        try:
            reply = self._app(message, context)
        except Exception as error:
            reply = Message(Error(APP_RAISED, f"{type(error).__name__}: {error}"), reply_to=message)
        self._replies[message_id] = reply
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns the replies to some messages, once each."""
        return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Pushes and pulls."""
        return self.pull_messages(self.push_messages(messages))


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Sets environment variables for a while."""
    before = {k: os.environ.get(k) for k in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, old in before.items():
            if old is None:
                del os.environ[key]
            else:
                os.environ[key] = old


def run_inproc(
    *, sites: Path, run_dir: Path, experiment: str, overrides: Sequence[str] = (), resume: bool = False, nodes: int | None = None
) -> None:
    """Runs the project's ServerApp over the hospitals of a sites folder, in this process.

    Args:
        sites: Folder with one folder per hospital.
        run_dir: Run directory.
        experiment: Name of the experiment.
        overrides: Hydra overrides.
        resume: Whether to continue the run that ``run_dir`` holds.
        nodes: Number of nodes; one per hospital by default.

    Raises:
        ConsiliumError: If the configuration is refused.
        RunFailed: If the run fails.
    """
    from client.app import app as client_app
    from server.app import app as server_app

    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    torch.set_num_threads(1)
    run_config: dict[str, Any] = {
        "experiment": experiment, "overrides": shlex.join(overrides), "run-dir": str(run_dir.resolve()), "resume": resume
    }  # fmt: skip
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=run_config)
    with environment(CONSILIUM_SITES=str(sites.resolve())):
        grid = InProcessGrid(client_app, len(hospital_folders(sites)) if nodes is None else nodes)
        server_app(grid, context)
