"""Every message that crosses the wire, and its coding as a Flower ``RecordDict``.

A message is a frozen dataclass. Fields annotated ``Arrays`` (name -> array) or ``dict[str, Arrays]`` travel as ``ArrayRecord``;
all other fields travel as one JSON text. Handlers and phases never touch raw RecordDict keys.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Self, get_type_hints

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray
from pydantic import TypeAdapter

from common.arrays import Arrays

SCHEMA_VERSION = 1


class MessageError(Exception):
    """A message that does not fit its schema; the text holds no values."""


@cache
def code_hash() -> str:
    """Returns the SHA-256 of the code that both sides run, ``common`` and ``client``.

    It guards against workers that imported another checkout: with root packages of these names the first one on the path wins.
    """
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parents[1]
    for room in ("client", "common"):
        for file in sorted((root / room).rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class WireMessage:
    """Base of all messages: coding, and the size in bytes."""

    def to_record(self) -> RecordDict:
        """Returns the message as records."""
        record = RecordDict()
        body: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if _schema(type(self))[f.name].depth == 1:
                record[f"arrays/{f.name}"] = _array_record(value)
            elif _schema(type(self))[f.name].depth == 2:
                body[f.name] = sorted(value)
                for key, arrays in value.items():
                    record[f"arrays/{f.name}/{key}"] = _array_record(arrays)
            else:
                body[f.name] = value
        text = json.dumps({"message": type(self).__name__, "schema_version": SCHEMA_VERSION, "body": body})
        record["body"] = ConfigRecord({"json": text})
        return record

    @classmethod
    def from_record(cls, record: RecordDict) -> Self:
        """Returns the message of some records.

        Raises:
            MessageError: If it is another message, another version, or does not fit the schema.
        """
        try:
            envelope = json.loads(str(record["body"]["json"]))
            body = envelope["body"]
        except Exception:  # the other side may send anything
            raise MessageError(f"no readable body where a {cls.__name__} is expected") from None
        if envelope.get("message") != cls.__name__ or envelope.get("schema_version") != SCHEMA_VERSION:
            raise MessageError(f"not a {cls.__name__} of schema version {SCHEMA_VERSION}: update the older side")
        values: dict[str, Any] = {}
        try:
            for f in fields(cls):
                if _schema(cls)[f.name].depth == 1:
                    values[f.name] = _arrays(record[f"arrays/{f.name}"])
                elif _schema(cls)[f.name].depth == 2:
                    values[f.name] = {k: _arrays(record[f"arrays/{f.name}/{k}"]) for k in body[f.name]}
                elif (adapter := _schema(cls)[f.name].adapter) is not None:
                    values[f.name] = adapter.validate_python(body[f.name])
        except Exception as error:  # pydantic's and NumPy's readers raise many kinds, whose texts quote values
            raise MessageError(f"field '{f.name}' of {cls.__name__} does not fit its schema ({type(error).__name__})") from None
        return cls(**values)

    def bytes(self) -> int:
        """Returns the size of the arrays and the JSON text."""
        total = 0
        for f in fields(self):
            value = getattr(self, f.name)
            if _schema(type(self))[f.name].depth == 1:
                total += sum(a.nbytes for a in value.values())
            elif _schema(type(self))[f.name].depth == 2:
                total += sum(a.nbytes for arrays in value.values() for a in arrays.values())
            else:
                total += len(json.dumps(value))
        return total


@dataclass(frozen=True)
class _Field:
    """How a field travels: ``depth`` 1 for arrays, 2 for a mapping to arrays, 0 for JSON that ``adapter`` validates."""

    depth: int
    adapter: TypeAdapter[Any] | None


_SCHEMAS: dict[str, dict[str, _Field]] = {}


def _schema(cls: type[WireMessage]) -> dict[str, _Field]:
    """Returns how every field of a message travels; worked out once."""
    if cls.__name__ not in _SCHEMAS:
        depths = {n: 1 if h == Arrays else 2 if h == dict[str, Arrays] else 0 for n, h in get_type_hints(cls).items()}
        _SCHEMAS[cls.__name__] = {n: _Field(d, None if d else TypeAdapter(get_type_hints(cls)[n])) for n, d in depths.items()}
    return _SCHEMAS[cls.__name__]


def _array_record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(a, order="C")) for name, a in arrays.items()})


def _arrays(record: Any) -> Arrays:
    if not isinstance(record, ArrayRecord):
        raise TypeError("no arrays")
    arrays = {name: array.numpy() for name, array in record.items()}
    if not all(isinstance(a, np.ndarray) and a.dtype.kind in "fiub" for a in arrays.values()):
        raise TypeError("no numbers")
    return arrays


@dataclass(frozen=True)
class Request(WireMessage):
    """What every message to a site carries.

    Attributes:
        run: Name of the run.
        config: The composed configuration, JSON.
        code: :func:`code_hash` of the server.
        seed: Derived from run seed, phase, round and site.
        round: Round within the phase, from 0.
    """

    run: str
    config: dict[str, Any]
    code: str
    seed: int
    round: int


@dataclass(frozen=True)
class EnrolRequest(Request):
    """Phase 1: what do you hold?"""


@dataclass(frozen=True)
class EnrolReply(WireMessage):
    """What a site holds and allows.

    Attributes:
        site: Its name.
        sites_here: Hospital folders that this machine knows of (1 unless simulated).
        role: ``train`` or ``evaluate``.
        modalities: Modality -> training visits that hold it; None where hidden because it is small.
        patterns: Pattern -> visits; None where hidden, because it or another is small.
        labels: Output -> training visits with it; None where hidden. Empty for a regression.
        splits: Split -> visits; a small number is told as the least that the site tells, so that none of its counts exceeds it.
        architectures: (modality, architecture) groups that it can train.
        excluded: Rows left out because of a fault, or because they hold nothing; exact, as no sum that is told holds it.
        versions: Software versions.
        moments: Modality (and ``labels``, a regression's targets) -> count, mean, variance of its features over training visits,
            small counts suppressed.
        data: ``real`` or ``generated``.
        checksum: HMAC-SHA-256 of its files under a key that stays at the site: the same as long as they are.
    """

    site: str
    sites_here: int
    role: str
    modalities: dict[str, int | None]
    patterns: dict[str, int | None]
    labels: dict[str, int | None]
    splits: dict[str, int]
    architectures: list[str]
    excluded: int
    versions: dict[str, str]
    moments: dict[str, Arrays]
    data: str = "real"
    checksum: str = ""


@dataclass(frozen=True)
class TeachRequest(Request):
    """Phase 2: train these teachers on your patients.

    Attributes:
        epochs: Local epochs; 0 only validates.
        groups: Group -> parameters.
        standardisation: Modality -> pooled count, mean, variance.
    """

    epochs: int
    groups: dict[str, Arrays]
    standardisation: dict[str, Arrays]


@dataclass(frozen=True)
class TeachReply(WireMessage):
    """Trained teachers.

    Attributes:
        site: Its name.
        groups: Group -> parameters.
        counts: Group -> training visits.
        validation: Group -> [mean validation loss of the parameters received, visits]; absent without validation visits.
        training: Group -> mean training loss of the last epoch.
    """

    site: str
    groups: dict[str, Arrays]
    counts: dict[str, int]
    validation: dict[str, tuple[float, int]]
    training: dict[str, float]


@dataclass(frozen=True)
class RefineRequest(Request):
    """Phase 4: train the student on your patients.

    Attributes:
        epochs: Local epochs; 0 only validates.
        student: Parameters and buffers.
        teachers: Group -> parameters, of the groups of the site's modalities that may teach.
        consilium: ``scale``, ``bias`` and ``prior`` [C], ``omega`` [C or 1, M].
        standardisation: As in :class:`TeachRequest`.
    """

    epochs: int
    student: Arrays
    teachers: dict[str, Arrays]
    consilium: Arrays
    standardisation: dict[str, Arrays]


@dataclass(frozen=True)
class RefineReply(WireMessage):
    """A refined student.

    Attributes:
        site: Its name.
        student: Parameters of the blocks it has data for.
        counts: Block -> training visits.
        validation: [Mean validation loss of the student received, visits]; absent without validation visits.
        meta: ``omega`` [C or 1, M], ``scale`` and ``bias`` [C]: gradients on meta visits; empty if the site has none.
        meta_count: Meta visits behind them.
    """

    site: str
    student: Arrays
    counts: dict[str, int]
    validation: tuple[float, int] | None
    meta: Arrays
    meta_count: int


@dataclass(frozen=True)
class EvaluateRequest(Request):
    """Phase 5: evaluate every pattern on your test patients.

    Attributes:
        student: Parameters and buffers.
        teachers: Group -> parameters.
        consilium: As in :class:`RefineRequest`.
        standardisation: As in :class:`TeachRequest`.
    """

    student: Arrays
    teachers: dict[str, Arrays]
    consilium: Arrays
    standardisation: dict[str, Arrays]


@dataclass(frozen=True)
class EvaluateReply(WireMessage):
    """What a site releases of its evaluation.

    Attributes:
        site: Its name.
        rows: ``{"model", "pattern", "metric", "value", "n"}``; cells with fewer visits or events than the site allows are absent.
        withheld: Number of cells left out.
    """

    site: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    withheld: int = 0
