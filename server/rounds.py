"""A round: send, wait for quorum or deadline, gate and collect replies. One message per site is in flight at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common.config import FederationConfig
from common.messages import MessageError, WireMessage
from server.record import Record

R = TypeVar("R", bound=WireMessage)
Gate = Callable[[str, R], str | None]


class RunFailed(Exception):
    """The run cannot go on; the text is its reason."""


@dataclass
class Council:
    """The sites of a run, and what is in flight between them and the server.

    Attributes:
        grid: Flower's grid.
        record: Record of the run.
        config: Deadline and polling.
        nodes: Site (or, while enrolling, ``node-<id>``) -> Flower node.
        traffic: Site -> phase -> [bytes sent to it, bytes received from it]; shared with the run's state.
        poll: Seconds between two looks.
    """

    grid: Grid
    record: Record
    config: FederationConfig
    nodes: dict[str, int] = field(default_factory=dict)
    traffic: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    _in_flight: dict[str, str] = field(default_factory=dict)

    def ask(
        self, kind: str, requests: Mapping[str, WireMessage], reply: type[R], *, round: int = 0, gate: Gate[R] | None = None
    ) -> dict[str, R]:
        """Asks sites and returns the replies that passed, in the order of the sites' names.

        A site that is still busy with an earlier message, is offline, is late, answers with an error, or whose reply does not pass is
        left out, with the reason in the record.

        Args:
            kind: Flower message type, like ``train.teach``.
            requests: Site -> request.
            reply: Type of the replies.
            round: Round within the phase, for the record.
            gate: From site and reply to the reason for which it is refused, or None.
        """
        started = time.monotonic()
        left_out: dict[str, str] = {}
        sent = self._send(kind, requests, round, left_out)
        accepted: dict[str, R] = {}
        for site, message in self._collect(sent, started + self.config.deadline):
            reason = self._read(kind, site, message, reply, gate, accepted)
            if reason:
                left_out[site] = reason
        for site in sorted(set(sent.values()) - set(accepted) - set(left_out)):
            left_out[site] = f"no answer within {self.config.deadline:g} s (federation.deadline)"
        self.record.event(
            "round",
            phase=kind.split(".")[1],
            round=round,
            accepted=sorted(accepted),
            left_out=dict(sorted(left_out.items())),
            bytes_sent=sum(requests[s].bytes() for s in sent.values()),
            bytes_received=sum(r.bytes() for r in accepted.values()),
            seconds=round_seconds(started),
        )
        return dict(sorted(accepted.items()))

    def _send(self, kind: str, requests: Mapping[str, WireMessage], round: int, left_out: dict[str, str]) -> dict[str, str]:
        """Sends the requests; returns message id -> site."""
        online = set(self.grid.get_node_ids())
        busy = set(self._in_flight.values())
        messages: list[Message] = []
        sites: list[str] = []
        for site in sorted(requests):
            if site in busy:
                left_out[site] = "it is still busy with an earlier message"
            elif self.nodes[site] not in online:
                left_out[site] = "it is offline"
            else:
                content = requests[site].to_record()
                messages.append(Message(content, dst_node_id=self.nodes[site], message_type=kind, group_id=f"{kind}/{round}"))
                sites.append(site)
        sent: dict[str, str] = {}
        for site, message_id in zip(sites, self.grid.push_messages(messages), strict=True):
            if not message_id:
                left_out[site] = "the message could not be sent"
                continue
            sent[message_id] = site
            self._count(site, kind, 0, requests[site].bytes())
        self._in_flight.update(sent)
        return sent

    def _collect(self, sent: Mapping[str, str], deadline: float) -> list[tuple[str, Message]]:
        """Waits for the replies to the messages sent now; a late reply to an earlier one only frees its site."""
        replies: list[tuple[str, Message]] = []
        waiting = set(sent)
        while waiting:
            for message in self.grid.pull_messages(list(self._in_flight)):
                answered = message.metadata.reply_to_message_id
                site = self._in_flight.pop(answered, None)
                if site is None:
                    self.record.event("ignored", reason="a second answer to the same message")
                elif answered in waiting:
                    waiting.discard(answered)
                    replies.append((site, message))
                else:
                    self.record.event("ignored", site=site, reason="an answer after the deadline")
            if not waiting or time.monotonic() >= deadline:
                break
            time.sleep(self.config.poll)
        return replies

    def _read(
        self, kind: str, site: str, message: Message, reply: type[R], gate: Gate[R] | None, accepted: dict[str, R]
    ) -> str | None:
        """Decodes and gates a reply into ``accepted``, or returns why it is left out."""
        if message.has_error():
            return f"it answered with an error: {_error_text(message)}"
        content: RecordDict = message.content
        try:
            decoded = reply.from_record(content)
        except MessageError as error:
            return f"its answer cannot be read: {error}"
        self._count(site, kind, 1, decoded.bytes())
        claimed = getattr(decoded, "site", site)
        if not site.startswith("node-") and claimed != site:
            return "it answered under another site's name"
        reason = gate(site, decoded) if gate else None
        if reason is None:
            accepted[site] = decoded
        return reason

    def _count(self, site: str, kind: str, way: int, size: int) -> None:
        self.traffic.setdefault(site, {}).setdefault(kind.split(".")[1], [0, 0])[way] += size


def quorum_reached(answered: int, members: int, share: float) -> bool:
    """Returns whether enough of a group's sites answered: at least one, and at least the share."""
    return answered >= 1 and answered >= share * members


def round_seconds(started: float) -> float:
    """Returns the seconds since ``started``, to the millisecond."""
    return round(time.monotonic() - started, 3)


def _error_text(message: Message) -> str:
    """Returns the first line of what the site says went wrong."""
    reason = (message.error.reason or f"code {message.error.code}").strip()
    return reason.splitlines()[-1][:500]
