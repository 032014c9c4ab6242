"""The patients of a folder as tensors: selections, joins and the number of events."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from common.data.cohort import concatenate
from tests.common.samples import make_cohort, make_task


def test_patients_of_different_cohorts_stay_different_when_joined() -> None:
    task = make_task("multiclass")
    parts = [make_cohort(task, 10, s) for s in range(3)]
    joined = concatenate(parts)
    assert len(joined) == 30
    assert len(np.unique(joined.patient)) == 15
    assert joined.labels.tolist() == [y for p in parts for y in p.labels.tolist()]


def test_a_selection_keeps_rows_together() -> None:
    cohort = make_cohort(make_task(), 20)
    index = np.array([5, 2, 11])
    picked = cohort.select(index)
    assert picked.row.tolist() == [5, 2, 11]
    assert torch.equal(picked.labels, cohort.labels[index])
    assert torch.equal(picked.present, cohort.present[index])
    held = cohort.holding("labs")
    assert held.inputs["labs"].isfinite().all()
    assert len(held) == int(cohort.present[:, 2].sum())
    assert set(held.inputs) == {"labs"}
    assert len(cohort.part("train", "meta")) == len(cohort.part("train")) + len(cohort.part("meta"))


def test_a_part_of_a_cohort_that_keeps_is_made_once_and_belongs_to_it() -> None:
    raw = make_cohort(make_task(), 20)
    assert raw.part("train") is not raw.part("train")
    cohort = replace(raw, keeps=True)
    train, held = cohort.part("train"), cohort.holding("labs")
    assert cohort.part("train") is train
    assert cohort.holding("labs") is held
    assert cohort.part("train", "validation", "meta", "test") is cohort
    assert train.part("train") is train
    moved = replace(cohort, split=cohort.split[::-1].copy())
    assert moved.part("train").row.tolist() == cohort.row[moved.split == "train"].tolist()


@pytest.mark.parametrize(
    ("kind", "labels", "events"),
    [
        ("binary", [[1], [0], [0]], 1),
        ("binary", [[1], [1], [0]], 1),
        ("multilabel", [[1, 0], [0, 1], [0, 0]], 2),
        ("multilabel", [[0, 1]] * 3, 3),
        ("multilabel", [[0, 0]] * 3, 0),
        ("regression", [[0, 0]] * 3, 3),
    ],
)
def test_events_are_the_rarer_side_of_one_output_and_the_visits_with_any_of_several(
    kind: Any, labels: list[list[float]], events: int
) -> None:
    cohort = replace(make_cohort(make_task(kind), 3), labels=torch.tensor(labels, dtype=torch.float32))
    assert cohort.events() == events
    assert cohort.part("nowhere").events() == 0


def test_events_of_classes_count_the_rarest() -> None:
    cohort = replace(make_cohort(make_task("multiclass"), 5), labels=torch.tensor([0, 0, 1, 2, 2]))
    assert cohort.events() == 1
    assert replace(cohort, labels=torch.tensor([0, 0, 1, 1, 1])).events() == 0
