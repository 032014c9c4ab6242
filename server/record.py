"""The record of a run: ``events.jsonl``, appended and flushed by the ServerApp; the truth that everything else reads."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FILE_NAME = "events.jsonl"
log = logging.getLogger("consilium")


class Record:
    """Appends events to a run's record."""

    def __init__(self, run_dir: Path) -> None:
        """Args: the run directory, which exists."""
        self.path = run_dir / FILE_NAME
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n")  # the server was killed while it wrote: what follows must not hang on to the torn line

    def event(self, kind: str, **fields: Any) -> None:
        """Appends one event: on disk before this returns, and one structured line in the log.

        Args:
            kind: Kind of event.
            **fields: JSON values; no patient data.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": kind, **fields}, allow_nan=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        log.info("%s %s", kind, " ".join(f"{k}={_short(v)}" for k, v in fields.items()))

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Returns the events of a kind, or all; a half-written line (the server was killed) is ignored."""
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if kind is None or event["event"] == kind:
                found.append(event)
        return found


def _short(value: Any) -> str:
    """Returns a value for the log: of lists the length, of anything the first 80 characters; the record holds it whole."""
    if isinstance(value, list) or value == {}:
        return str(len(value))
    text = json.dumps(value) if isinstance(value, dict) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
