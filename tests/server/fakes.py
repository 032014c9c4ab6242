"""A scripted federation: sites without patients, who answer what a test tells them to, when it tells them to."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run as FlowerRun
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from common.config import Config, from_json, load_config, to_json
from common.messages import (
    EnrolReply,
    EnrolRequest,
    EvaluateReply,
    EvaluateRequest,
    RefineReply,
    RefineRequest,
    TeachReply,
    TeachRequest,
    WireMessage,
)
from common.models.student import block_of
from server.app import play
from server.record import Record
from server.run import open_run

Answer = tuple[int, Message]  # number of looks after which the reply is there, and the reply
Script = Callable[[Message, WireMessage], Iterable[Answer] | WireMessage | None]
"""From a request, and the honest reply to it, to another reply, replies at other times, or none."""


def honest(message: Message, reply: WireMessage) -> WireMessage:
    return reply


@cache
def _demo() -> dict[str, Any]:
    return to_json(load_config("demo", ["teach.rounds=2", "refine.rounds=2", "federation.poll=1", "federation.deadline=5"]))


def small_config(**changes: Any) -> Config:
    """Two tables, linear teachers, two rounds each; no reference set. ``changes``: dotted key with ``__`` -> value."""
    raw = copy.deepcopy(_demo())
    raw["task"] = {
        "name": "small",
        "type": "binary",
        "outputs": ["event"],
        "modalities": {m: {"kind": "table", "features": {f"{m}{i}": {} for i in range(3)}} for m in ("labs", "signs")},
    }
    raw["model"] |= {"teachers": {"table": ["linear"]}, "student": {"table": "compact"}, "width": 4}
    for key, value in changes.items():
        *path, last = key.split("__")
        node = raw
        for part in path:
            node = node[part]
        node[last] = value
    return from_json(raw)


@dataclass
class Site:
    """A scripted site.

    Attributes:
        name: Its name.
        visits: Training visits that it has of every modality.
        script: What it does instead of answering honestly.
        shift: How far it moves every parameter that it trains.
        folders: Hospital folders that it says its machine holds.
        checksum: Keyed hash of its files, as it says.
        asked: Requests of phase 2.
        refined: Requests of phase 4.
    """

    name: str
    visits: Mapping[str, int] = field(default_factory=lambda: {"labs": 40, "signs": 40})
    script: Script = honest
    shift: float = 0.25
    folders: int = 1
    checksum: str = "5ab1e"
    asked: list[TeachRequest] = field(default_factory=list)
    refined: list[RefineRequest] = field(default_factory=list)

    def answers(self, message: Message) -> list[Answer]:
        told = self.script(message, self.reply(message))
        if isinstance(told, WireMessage):
            return [(0, Message(told.to_record(), reply_to=message))]
        return list(told or [])

    def reply(self, message: Message) -> WireMessage:
        kind, content = message.metadata.message_type, message.content
        shift = np.float32(self.shift)
        if kind == "query.enrol":
            return self._enrol(from_json(EnrolRequest.from_record(content).config))
        if kind == "train.teach":
            teach = TeachRequest.from_record(content)
            self.asked.append(teach)
            groups = {g: {k: a + shift for k, a in arrays.items()} for g, arrays in teach.groups.items()}
            counts = {g: self.visits[g.split("/")[0]] for g in groups}
            return TeachReply(self.name, groups, counts, {g: (0.5, 4) for g in groups}, dict.fromkeys(groups, 0.4))
        if kind == "train.refine":
            refine = RefineRequest.from_record(content)
            self.refined.append(refine)
            own = {*(m for m, n in self.visits.items() if n), *(["fusion"] if sum(map(bool, self.visits.values())) > 1 else [])}
            student = {k: a + shift for k, a in refine.student.items() if "." in k and block_of(k) in own}
            meta = {"omega": np.full_like(refine.student["omega"], 0.1), "scale": np.ones(1, "f4"), "bias": np.ones(1, "f4")}
            counts = {block: self.visits.get(block, min(self.visits.values())) for block in own}
            return RefineReply(self.name, student, counts, (0.6, 4), meta, 6)
        EvaluateRequest.from_record(content)
        return EvaluateReply(self.name, [row("student", 0.8)], 2)

    def _enrol(self, config: Config) -> EnrolReply:
        held = {m: self.visits.get(m, 0) for m in config.task.modalities}
        moments = {m: {"count": np.full(3, float(n)), "mean": np.ones(3), "variance": np.ones(3)} for m, n in held.items()}
        return EnrolReply(
            site=self.name,
            sites_here=self.folders,
            role="train",
            modalities=dict(held),
            patterns={"labs+signs": 30},
            labels={"event": 12},
            splits={"train": 40, "meta": 6, "validation": 4, "test": 10},
            architectures=[f"{m}/linear" for m, n in held.items() if n],
            excluded=0,
            versions={"python": "3.11"},
            moments=moments,
            checksum=self.checksum,
        )


def row(model: str, value: Any) -> dict[str, Any]:
    return {"model": model, "pattern": "all", "metric": "auroc", "value": value, "n": 10}


class ScriptedGrid(Grid):
    """Delivers the scripted replies; ``looks`` counts the looks at the answers."""

    def __init__(self, sites: Iterable[Site]) -> None:
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
        self.sites = dict(enumerate(sites, start=1))
        self.offline: set[int] = set()
        self.looks = 0
        self.pushed: list[tuple[str, str]] = []  # (site, message type) in the order of sending
        self.most_in_flight = 0
        self._due: list[tuple[int, str, Message]] = []
        self._open: dict[str, str] = {}  # message id -> site
        self._ids = map(str, itertools.count())

    def set_run(self, run: FlowerRun) -> None:
        """There is one run."""

    @property
    def run(self) -> FlowerRun:
        return FlowerRun.create_empty(1)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return [n for n in self.sites if n not in self.offline]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._push(m) for m in messages]

    def _push(self, message: Message) -> str:
        message.metadata.__dict__["_message_id"] = message_id = next(self._ids)
        site = self.sites[message.metadata.dst_node_id]
        self.pushed.append((site.name, message.metadata.message_type))
        self._open[message_id] = site.name
        self.most_in_flight = max(self.most_in_flight, list(self._open.values()).count(site.name))
        self._due += [(self.looks + delay, message_id, reply) for delay, reply in site.answers(message)]
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.looks += 1
        asked = set(message_ids)
        there = [d for d in self._due if d[0] < self.looks and d[1] in asked]
        self._due = [d for d in self._due if d not in there]
        for _, message_id, _ in there:
            self._open.pop(message_id, None)
        return [reply for _, _, reply in there]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))


class Clock:
    """Time that passes only while somebody sleeps, in place of the module ``time``."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def perform(folder: Path, sites: Iterable[Site], config: Config | None = None, *, resume: bool = False) -> ScriptedGrid:
    """Plays a whole run with scripted sites in a run directory, or what is left of the one that lies there."""
    grid = ScriptedGrid(sites)
    play(open_run(grid, folder, None if resume else config or small_config()))
    return grid


def rounds(folder: Path, phase: str) -> list[dict[str, Any]]:
    """The record of a phase's rounds."""
    return [e for e in Record(folder).events("round") if e["phase"] == phase]


def at(message: Message, reply: WireMessage, looks: int) -> Answer:
    """A reply that is there after some more looks."""
    return looks, Message(reply.to_record(), reply_to=message)


def in_round(kind: str, number: int, script: Script) -> Script:
    """Follows a script in one round, and is honest otherwise."""

    def followed(message: Message, reply: WireMessage) -> Iterable[Answer] | WireMessage | None:
        return script(message, reply) if message.metadata.group_id == f"{kind}/{number}" else reply

    return followed


def changed(**fields: Any) -> Script:
    """Changes fields of the reply; a function gets the honest value."""

    def script(message: Message, reply: WireMessage) -> WireMessage:
        values = {k: v(getattr(reply, k)) if callable(v) else v for k, v in fields.items()}
        return dataclasses.replace(reply, **values)

    return script


def first(change: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Any], Any]:
    """Changes the first array of arrays, or of the first group of arrays."""

    def applied(arrays: Any) -> Any:
        if isinstance(arrays, np.ndarray):
            return change(arrays.copy())
        name = sorted(arrays)[0]
        return {**arrays, name: applied(arrays[name])}

    return applied


def error(reason: str) -> Script:
    """Answers with an error."""
    return lambda message, reply: [(0, Message(Error(2, reason), reply_to=message))]
