"""A round: send, wait for quorum or deadline, gate and collect replies. One message per site is in flight at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

from common.config import FederationConfig
from common.messages import MessageError, WireMessage
from server.record import Record

R = TypeVar("R", bound=WireMessage)
Gate = Callable[[str, R], str | None]
NODE = "node:"


class RunFailed(Exception):
    """The run cannot go on; the text is its reason."""


@dataclass
class Council:
    """The sites of a run, and what is in flight between them and the server.

    Attributes:
        grid: Flower's grid.
        record: Record of the run.
        config: Deadline and polling.
        nodes: Site (or, of every node that was asked to enrol, ``node:<id>``, which is no valid name of a site) -> Flower node.
        refused: Site without a node -> why its node was not accepted.
        traffic: Site -> phase -> [bytes sent to it, bytes received from it]; shared with the run's state.
    """

    grid: Grid
    record: Record
    config: FederationConfig
    nodes: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    traffic: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    _in_flight: dict[str, str] = field(default_factory=dict)

    def connected(self) -> list[int]:
        """Returns the nodes that are there: ``min_sites`` or more, once no more turn up, or fewer after the deadline.

        Flower's simulation adds its nodes while the ServerApp runs already.
        """
        deadline = time.monotonic() + self.config.deadline
        before: set[int] | None = None
        said = False
        while True:
            now = set(self.grid.get_node_ids())
            enough, late = len(now) >= self.config.min_sites, time.monotonic() >= deadline
            if late or (enough and now == before):
                return sorted(now)
            if now == before and not said:
                said = True
                self.record.event("waiting", connected=len(now), min_sites=self.config.min_sites, seconds=self.config.deadline)
            before = now
            time.sleep(self.config.poll)

    def ask(
        self, kind: str, requests: Mapping[str, WireMessage], reply: type[R], *, round: int = 0, gate: Gate[R] | None = None
    ) -> dict[str, R]:
        """Asks sites and returns the replies that passed, in the order of the sites' names.

        A site that is still busy with an earlier message, is offline, is late, answers with an error, or whose reply does not
        pass is left out, with the reason in the record.

        Args:
            kind: Flower message type, like ``train.teach``.
            requests: Site -> request.
            reply: Type of the replies.
            round: Round within the phase, for the record.
            gate: From site and reply to the reason for which it is refused, or None.
        """
        started = time.monotonic()
        self._pull()  # answers that came between two rounds free their sites
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

    def busy(self) -> set[str]:
        """Returns the sites whose answer to an earlier message has not come."""
        return set(self._in_flight.values())

    def seat(self, site: str, node: int) -> None:
        """Makes a node the site's. What was asked of another node before, which is gone, is waited for no longer."""
        self.nodes[site] = node
        self.refused.pop(site, None)
        self._in_flight = {message: s for message, s in self._in_flight.items() if s != site}

    def _send(self, kind: str, requests: Mapping[str, WireMessage], round: int, left_out: dict[str, str]) -> dict[str, str]:
        """Sends the requests; returns message id -> site."""
        online = set(self.grid.get_node_ids())
        busy = self.busy()
        sent: dict[str, str] = {}
        for site in sorted(requests):
            node = self.nodes.get(site)
            if node is None or node not in online:
                left_out[site] = self.refused.get(site, "it is offline")
                continue
            if site in busy:
                left_out[site] = "it is still busy with an earlier message"
                continue
            message = Message(requests[site].to_record(), dst_node_id=node, message_type=kind, group_id=f"{kind}/{round}")
            # One by one: of several, Flower's grids may leave out those that they refuse, without saying which.
            message_id = next(iter(self.grid.push_messages([message])), None)
            if not message_id:
                left_out[site] = "the message could not be sent"
                continue
            sent[message_id] = site
            self._in_flight[message_id] = site
            self._count(site, kind, 0, requests[site].bytes())
        return sent

    def _collect(self, sent: Mapping[str, str], deadline: float) -> list[tuple[str, Message]]:
        """Waits for the replies to the messages sent now."""
        replies: list[tuple[str, Message]] = []
        waiting = set(sent)
        while waiting:
            for message_id, message in self._pull(waiting):
                waiting.discard(message_id)
                replies.append((sent[message_id], message))
            if not waiting or time.monotonic() >= deadline:
                break
            time.sleep(self.config.poll)
        return replies

    def _pull(self, waiting: Collection[str] = ()) -> list[tuple[str, Message]]:
        """Returns (message id, reply) to the messages waited for; a late reply to an earlier one only frees its site."""
        wanted: list[tuple[str, Message]] = []
        for message in self.grid.pull_messages(list(self._in_flight)) if self._in_flight else ():
            answered = message.metadata.reply_to_message_id
            site = self._in_flight.pop(answered, None)
            if site is None:
                self.record.event("ignored", reason="a second answer to the same message")
            elif answered in waiting:
                wanted.append((answered, message))
            else:
                self.record.event("ignored", site=site, reason="an answer after the deadline")
        return wanted

    def _read(
        self, kind: str, site: str, message: Message, reply: type[R], gate: Gate[R] | None, accepted: dict[str, R]
    ) -> str | None:
        """Decodes and gates a reply into ``accepted``, or returns why it is left out."""
        if message.has_error():
            return f"it answered with an error: {_error_text(message)}"
        try:
            decoded = reply.from_record(message.content)
        except MessageError as error:
            return f"its answer cannot be read: {error}"
        self._count(site, kind, 1, decoded.bytes())
        if not site.startswith(NODE) and getattr(decoded, "site", site) != site:
            return "it answered under another site's name"
        try:
            reason = gate(site, decoded) if gate else None
        except Exception as error:  # whatever a site sends, it must not end the run of the others
            reason = f"its answer does not hold what it should ({type(error).__name__})"
        if reason is None:
            accepted[site] = decoded
        return reason

    def _count(self, site: str, kind: str, way: int, size: int) -> None:
        self.traffic.setdefault(site, {}).setdefault(kind.split(".")[1], [0, 0])[way] += size


def require_quorum(what: str, round: int, members: Collection[str], answered: Collection[str], share: float) -> None:
    """Checks that enough of a group's sites answered: at least one, and at least the share.

    Raises:
        RunFailed: If they did not.
    """
    here = len(set(members) & set(answered))
    if here < 1 or here < share * len(members):
        raise RunFailed(
            f"{what} lost its quorum in round {round}: {here} of {len(members)} sites answered, federation.quorum = {share:g}. "
            "See left_out in events.jsonl, mend those sites, and resume the run."
        )


def round_seconds(started: float) -> float:
    """Returns the seconds since ``started``, to the millisecond."""
    return round(time.monotonic() - started, 3)


def _error_text(message: Message) -> str:
    """Returns the last line of what the site says went wrong: of a traceback, the exception."""
    reason = (message.error.reason or "").strip() or f"code {message.error.code}"
    return reason.splitlines()[-1][:500]
