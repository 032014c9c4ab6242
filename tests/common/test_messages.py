"""Messages: a round trip changes nothing, and nothing else than the message expected is read."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any, get_type_hints

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common import messages
from common.messages import (
    Arrays,
    EnrolReply,
    EnrolRequest,
    EvaluateReply,
    EvaluateRequest,
    MessageError,
    RefineReply,
    RefineRequest,
    TeachReply,
    TeachRequest,
    WireMessage,
)

KINDS: list[type[WireMessage]] = [
    EnrolRequest, EnrolReply, TeachRequest, TeachReply, RefineRequest, RefineReply, EvaluateRequest, EvaluateReply
]  # fmt: skip
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=12)
DTYPES = st.sampled_from([np.dtype(t) for t in ("float32", "float64", "int64", "bool")])
ARRAYS = st.dictionaries(
    NAMES,
    hnp.arrays(
        DTYPES,
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
        elements={"allow_nan": False},
    ),
    max_size=3,
)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | FLOATS | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)
st.register_type_strategy(float, FLOATS)
st.register_type_strategy(str, NAMES)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    if hint == Arrays:
        return ARRAYS
    if hint == dict[str, Arrays]:
        return st.dictionaries(NAMES, ARRAYS, max_size=2)
    if hint == dict[str, Any]:
        return st.dictionaries(NAMES, JSON, max_size=3)
    if hint == list[dict[str, Any]]:
        return st.lists(st.dictionaries(NAMES, JSON, max_size=3), max_size=3)
    return st.from_type(hint)


def message_of(kind: type[WireMessage]) -> st.SearchStrategy[WireMessage]:
    hints = get_type_hints(kind)
    return st.builds(kind, **{f.name: values_of(hints[f.name]) for f in fields(kind)})


def equal(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(v, b[k]) for k, v in a.items())
    return type(a) is type(b) and a == b


def empty(kind: type[WireMessage]) -> WireMessage:
    """A message whose containers are all empty."""
    blank: dict[str, Any] = {"str": "", "int": 0, "list": [], "dict": {}}
    hints = get_type_hints(kind)
    return kind(**{f.name: blank.get(getattr(hints[f.name], "__name__", "")) for f in fields(kind)})


def test_every_message_of_the_module_is_tested() -> None:
    leaves = {c for c in vars(messages).values() if isinstance(c, type) and issubclass(c, WireMessage)} - {
        WireMessage,
        messages.Request,
    }
    assert leaves == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(data=st.data())
def test_a_message_survives_the_wire(kind: type[WireMessage], data: st.DataObject) -> None:
    message = data.draw(message_of(kind))
    arrived = kind.from_record(recorddict_from_proto(recorddict_to_proto(message.to_record())))
    assert all(equal(getattr(message, f.name), getattr(arrived, f.name)) for f in fields(kind))
    assert arrived.bytes() == message.bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_empty_containers_survive_the_wire(kind: type[WireMessage]) -> None:
    message = empty(kind)
    assert kind.from_record(message.to_record()) == message


def request(**changes: Any) -> TeachRequest:
    body: dict[str, Any] = {"run": "demo", "config": {}, "code": "c", "seed": 1, "round": 0, "epochs": 1}
    weights = {"labs/linear": {"head.weight": np.ones((2, 3), np.float32), "steps": np.array(3)}}
    return TeachRequest(**(body | {"groups": weights, "standardisation": {}} | changes))


def test_the_size_counts_the_arrays_bytes_and_the_text() -> None:
    assert request().bytes() - request(groups={}).bytes() == 2 * 3 * 4 + 8
    assert request(run="demo-demo").bytes() == request().bytes() + 5


def test_a_non_contiguous_array_arrives_as_it_was_meant() -> None:
    a = np.arange(12, dtype=np.float32).reshape(3, 4).T[::2]
    arrived = TeachRequest.from_record(request(groups={"g": {"a": a}}).to_record())
    assert np.array_equal(arrived.groups["g"]["a"], a)


@pytest.mark.parametrize("expected", [k for k in KINDS if k is not TeachRequest])
def test_another_message_is_refused(expected: type[WireMessage]) -> None:
    with pytest.raises(MessageError, match=expected.__name__):
        expected.from_record(request().to_record())


def reworded(**changes: Any) -> RecordDict:
    """A request whose envelope or body has been tampered with."""
    record = request().to_record()
    envelope = json.loads(str(record["body"]["json"]))
    target = envelope["body"] if set(changes) <= set(envelope["body"]) else envelope
    for key, value in changes.items():
        if value is KeyError:
            del target[key]
        else:
            target[key] = value
    record["body"] = ConfigRecord({"json": json.dumps(envelope)})
    return record


def with_array(**parts: Any) -> RecordDict:
    record = request().to_record()
    good = Array(np.ones(3, np.float32))
    raw = {"dtype": good.dtype, "shape": good.shape, "stype": good.stype, "data": good.data}
    record["arrays/groups/labs/linear"] = ArrayRecord({"a": Array(**(raw | parts))})
    return record


def with_body(record: Any) -> RecordDict:
    return RecordDict({"body": record})


HUGE = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000,), }".ljust(117) + b"\n"
BAD = {
    "nothing": RecordDict(),
    "no text": with_body(ConfigRecord({})),
    "metrics": with_body(MetricRecord({"json": 3})),
    "arrays": with_body(ArrayRecord({"json": Array(np.ones(2))})),
    "no JSON": with_body(ConfigRecord({"json": "SECRET{"})),
    "a list": with_body(ConfigRecord({"json": "[1, 2]"})),
    "a number": with_body(ConfigRecord({"json": "3"})),
    "a deep list": with_body(ConfigRecord({"json": "[" * 100_000})),
    "bytes": with_body(ConfigRecord({"json": b"\xff\xfe"})),
    "another version": reworded(schema_version=99),
    "no version": reworded(schema_version=KeyError),
    "a body of text": reworded(body="SECRET"),
    "an empty body": reworded(body={}),
    "a field missing": reworded(epochs=KeyError),
    "a field of another type": reworded(epochs="SECRET"),
    "a float for an integer": reworded(seed=1.5),
    "null for a mapping": reworded(config=None),
    "groups named by a number": reworded(groups=3),
    "groups that did not come": reworded(groups=["labs/linear", "SECRET"]),
    "metrics for arrays": RecordDict({**request().to_record(), "arrays/groups/labs/linear": MetricRecord({"SECRET": 1.0})}),
    "an array of another coding": with_array(stype="SECRET"),
    "an array without bytes": with_array(data=b""),
    "an array of garbage": with_array(data=b"SECRET garbage"),
    "an array cut off": with_array(data=Array(np.ones(99)).data[:-50]),
    "a pickled array": with_array(data=b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x06SECRET\x94."),
    "an archive": with_array(data=b"PK\x05\x06" + b"\0" * 18),
    "an array too large for any memory": with_array(data=HUGE),
    "an array of text": with_array(data=Array(np.array(["SECRET"])).data),
}


@pytest.mark.parametrize("record", BAD.values(), ids=BAD)
def test_garbage_is_refused_without_quoting_it(record: RecordDict) -> None:
    with pytest.raises(MessageError) as refused:
        TeachRequest.from_record(record)
    assert "SECRET" not in str(refused.value)
    assert refused.value.__context__ is None or refused.value.__suppress_context__
    assert "TeachRequest" in str(refused.value)


def test_a_good_record_among_the_bad_ones_is_read() -> None:
    assert TeachRequest.from_record(reworded(epochs=5)).epochs == 5
    assert np.array_equal(TeachRequest.from_record(with_array()).groups["labs/linear"]["a"], np.ones(3))


def test_the_code_hash_is_sixteen_hexadecimal_digits_and_stable() -> None:
    assert messages.code_hash() == messages.code_hash()
    assert len(messages.code_hash()) == 16
    int(messages.code_hash(), 16)


def test_a_message_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        request().epochs = 3  # type: ignore[misc]
    assert replace(request(), epochs=3).epochs == 3
