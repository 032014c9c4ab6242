"""The one kind of error that users see."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

MOST_NAMED, NEAR = 40, 10
BARE_YES = "YAML reads yes and no as true and false; put them in quotes"


class ConsiliumError(Exception):
    """A fault that a user can mend.

    The message says what happened, where, and what to do next. It never holds a patient identifier, because Flower
    sends the text of an exception from a site to the server.
    """


class TooManyFaults(ConsiliumError):
    """Rows of a patient table have such faults, or so many, that the site refuses.

    The message counts and names no row: it goes to the server, from which the site may hide small counts.

    Attributes:
        findings: What is wrong where: for the hospital's own eyes, not for the server.
    """

    def __init__(self, message: str, findings: tuple[Any, ...]) -> None:
        """Args: what may be told to the server, and the findings."""
        super().__init__(message)
        self.findings = findings

    def __reduce__(self) -> tuple[Any, ...]:
        """Returns how another process makes the same error: Python's own way would call with the message alone."""
        return type(self), (str(self), self.findings)


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'? Known: a, b, c"`` for an unknown word; of many names only those that are near.

    Args:
        word: What the user wrote.
        known: Every valid name.
    """
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=NEAR, cutoff=0.0)
    hint = f"; did you mean '{close[0]}'?" if difflib.get_close_matches(word, names, n=1) else "."
    if len(names) > MOST_NAMED:
        return f"{hint} Known: {', '.join(sorted(close))} and {len(names) - len(close):,} more"
    return f"{hint} Known: {', '.join(names) or 'none'}"


def is_bare_yes(error: Mapping[str, Any]) -> bool:
    """Returns whether a pydantic error is of a text that stands as yes, no, on or off in a YAML file, without quotes."""
    return error["type"] == "string_type" and isinstance(error["input"], bool)


def no_file(path: Path) -> str:
    """Returns that a file does not exist, with the file in that folder whose name is nearest, if one is near."""
    there = [f.name for f in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, there, n=1)
    return f"{path} does not exist{f'; did you mean {close[0]!r}?' if close else '. Correct the path.'}"


def keys_at(schema: Mapping[str, Any], path: Sequence[str]) -> list[str]:
    """Returns the valid keys below a path of a JSON Schema, for :func:`nearest`; none where the path leads nowhere."""
    node: Mapping[str, Any] = schema
    for part in path:
        node = node.get("properties", {}).get(part, node.get("additionalProperties") or {})
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return list(node.get("properties", {}))
