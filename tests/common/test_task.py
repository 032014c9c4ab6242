"""What a task may be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from common.task import Feature, Modality, Task, pattern_name, patterns
from tests.common.samples import MODALITIES, make_task

TEXT = MODALITIES["note"]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"type": "binary", "outputs": ("a", "b")}, "exactly one"),
        ({"type": "multiclass", "outputs": ("a",)}, "at least two"),
        ({"type": "multilabel", "outputs": ("a", "a")}, "named twice"),
        ({"modalities": {}}, "at least one modality"),
        ({"modalities": {"a.b": TEXT}}, "'a.b' is no name"),
        ({"modalities": {"a/b": TEXT}}, "'a/b' is no name"),
        ({"modalities": {"a+b": TEXT}}, "is no name"),
        ({"modalities": {"all": TEXT}}, "not 'all', 'complete', 'fusion', 'labels' or 'shared'"),
        ({"modalities": {"fusion": TEXT}}, "not 'all', 'complete', 'fusion', 'labels' or 'shared'"),
        ({"modalities": {"values": TEXT}}, "nor a word that PyTorch's modules use"),
        ({"modalities": {"labels": TEXT}}, "not 'all', 'complete', 'fusion', 'labels' or 'shared'"),
        ({"type": "ranking"}, "'binary'"),
        ({"units": {"a": "d"}}, "a regression task only"),
        ({"type": "regression", "units": {"b": "d"}}, "a regression task only"),
        ({"type": "regression", "log": ("b",)}, "a regression task only"),
    ],
)
def test_a_task_that_cannot_be_is_refused(fields: dict[str, Any], text: str) -> None:
    good: dict[str, Any] = {"name": "t", "type": "binary", "outputs": ("a",), "modalities": {"note": TEXT}}
    Task(**good)
    with pytest.raises(ValidationError, match=text):
        Task(**(good | fields))


@pytest.mark.parametrize("kind", ["table", "series"])
def test_numbers_need_features(kind: Any) -> None:
    with pytest.raises(ValidationError, match="features"):
        Modality(kind)
    assert Modality(kind, {"x": Feature()}).steps == 24


def test_a_multiclass_task_has_one_label_column_and_others_one_per_output() -> None:
    assert make_task("multiclass").label_columns == ("class",)
    assert make_task("multilabel").label_columns == ("aki", "shock")


@given(st.sets(st.text("abcdef", min_size=1, max_size=3), max_size=5))
def test_patterns_are_all_non_empty_subsets_with_names_of_their_own(names: set[str]) -> None:
    found = patterns(names)
    assert len(found) == 2 ** len(names) - 1
    assert len({pattern_name(p) for p in found}) == len(found)
    assert [len(p) for p in found] == sorted(len(p) for p in found)


@pytest.mark.parametrize("number", [6, 10])
def test_of_many_modalities_single_ones_all_but_one_and_all_are_patterns(number: int) -> None:
    names = [f"m{i:02}" for i in range(number)]
    assert [len(p) for p in patterns(names)] == [1] * number + [number - 1] * number + [number]
    assert len(set(patterns(names))) == 2 * number + 1


def test_a_list_of_features_is_short_for_plain_numbers() -> None:
    read = TypeAdapter(Modality).validate_python
    assert read({"kind": "table", "features": ["tp53", "brca1", 7]}) == Modality(
        "table", dict.fromkeys(("tp53", "brca1", "7"), Feature())
    )
    with pytest.raises(ValidationError, match="named twice"):
        read({"kind": "table", "features": ["tp53", "tp53"]})


def test_classes_may_be_called_by_numbers() -> None:
    raw = {"name": "digits", "type": "multiclass", "outputs": [0, 1], "modalities": {"ink": {"kind": "table", "features": ["a"]}}}
    assert TypeAdapter(Task).validate_python(raw).outputs == ("0", "1")


def test_a_pattern_name_does_not_depend_on_the_order() -> None:
    assert pattern_name(["labs", "cxr"]) == pattern_name(("cxr", "labs")) == "cxr+labs"
