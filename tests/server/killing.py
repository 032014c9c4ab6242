"""Server processes that are killed where a test says; a module of its own, so that a fresh process can import it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401  an optimiser's first step imports it, slowly; here once for all processes
from flwr.app import Message

from server.record import Record
from simulations.inproc import InProcessGrid, run_inproc


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_until_transition(sites: Path, run_dir: Path, phase: str, number: int) -> None:
    """Runs the tiny experiment and is killed right after a transition."""
    event = Record.event

    def deadly(self: Record, kind: str, **fields: Any) -> None:
        event(self, kind, **fields)
        if (kind, fields.get("phase"), fields.get("round")) == ("transition", phase, number):
            die()

    Record.event = deadly  # type: ignore[method-assign]
    run_inproc(sites=sites, run_dir=run_dir, experiment="tiny")


def run_until_message(sites: Path, run_dir: Path, group: str, count: int) -> None:
    """Runs the tiny experiment and is killed when so many sites have answered in a round."""
    push = InProcessGrid.push_messages
    seen = 0

    def deadly(self: InProcessGrid, messages: Iterable[Message]) -> Iterable[str]:
        nonlocal seen
        messages = list(messages)
        ids = push(self, messages)
        seen += sum(m.metadata.group_id == group for m in messages)
        if seen == count:
            die()
        return ids

    InProcessGrid.push_messages = deadly  # type: ignore[method-assign]
    run_inproc(sites=sites, run_dir=run_dir, experiment="tiny")


def killed(target: Any, *args: Any) -> bool:
    """Runs a function in a process of its own; returns whether the process was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch and Flower are imported once for all of them
    process = context.Process(target=target, args=args)
    process.start()
    process.join(timeout=120)
    if process.is_alive():
        process.kill()
        process.join()
        return False
    return process.exitcode == -signal.SIGKILL
