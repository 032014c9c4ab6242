"""events.jsonl: every line is on disk when it is said, and a torn one spoils no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.record import FILE_NAME, Record


def test_events_are_read_in_the_order_they_happened(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.event("round", phase="teach", left_out={"ash": "late"})
    record.event("transition", phase="distilling")
    assert [e["event"] for e in record.events()] == ["round", "transition"]
    assert record.events("round")[0]["left_out"] == {"ash": "late"}
    assert all(e["time"].endswith("+00:00") for e in record.events())


def test_a_torn_line_is_skipped_and_the_next_event_is_not_lost_in_it(tmp_path: Path) -> None:
    Record(tmp_path).event("started", name="demo")
    with (tmp_path / FILE_NAME).open("a", encoding="utf-8") as file:
        file.write('{"time": "2026-')
    Record(tmp_path).event("resumed", phase="teaching")
    assert [e["event"] for e in Record(tmp_path).events()] == ["started", "resumed"]


def test_a_number_that_no_reader_of_json_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Record(tmp_path).event("round", loss=float("nan"))
    assert Record(tmp_path).events() == []
