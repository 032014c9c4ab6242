"""Predictions for every pattern, and which of their metrics may be released."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from common.data.standardise import Moments, Standardisation
from common.evaluation.metrics import metrics
from common.evaluation.predictions import (
    Speaker,
    arrays_of,
    predict_patterns,
    probabilities,
    released_rows,
    student_speaker,
    teachers_speakers,
)
from common.models.ensemble import Ensembles, build_teacher, consilium, groups, initial_calibration
from common.models.student import Student
from common.task import LABELS, Modality, TaskType, pattern_name, patterns
from tests.common.samples import KINDS, MODEL, make_cohort, make_task

THREE = ("admission", "labs", "note")


def make_ensembles(kind: TaskType, left_out: str = "") -> Ensembles:
    task = make_task(kind, THREE)
    torch.manual_seed(0)
    teachers = {g: build_teacher(g, task, MODEL) for g in groups(task, MODEL) if g.split("/")[0] != left_out}
    for teacher in teachers.values():
        torch.nn.init.normal_(teacher.head.weight)
    return Ensembles(task, MODEL, {g: t.state_dict() for g, t in teachers.items()})


def speakers_of(kind: TaskType) -> list[Speaker]:
    task = make_task(kind, THREE)
    torch.manual_seed(0)
    student = Student(task, MODEL).eval()
    c = initial_calibration(task, torch.zeros(len(task.outputs)))
    return [student_speaker(student), *teachers_speakers(make_ensembles(kind), c, torch.tensor([[0.2, 0.5, -0.1]]))]


class AsItIs(Standardisation):
    """Leaves inputs, which the tests draw model-ready, as they are; targets have mean 3 and -1, deviation 2 and 1."""

    def apply(self, name: str, modality: Modality, raw: Tensor) -> Tensor:
        return raw


READY = AsItIs({LABELS: Moments(np.full(2, 9.0), np.array([3.0, -1.0]), np.array([4.0, 1.0]))})


@pytest.mark.parametrize("kind", KINDS)
def test_every_visit_is_predicted_for_every_pattern_that_it_can_form(kind: TaskType) -> None:
    task = make_task(kind, THREE)
    cohort = make_cohort(task, 25)
    found = predict_patterns(cohort, speakers_of(kind), READY)
    assert list(found.columns) == ["row", "patient", "pattern", "model", "output", "score", "label"]
    assert kind == "regression" or found["score"].between(0, 1).all()
    for pattern in [None, *patterns(THREE)]:
        part = found[found["pattern"] == (pattern_name(pattern) if pattern else "all")]
        at = [k for k, m in enumerate(THREE) if pattern and m in pattern]
        rows = cohort.row[cohort.present[:, at].all(1).numpy()]
        models = {"student", "teachers"}
        if pattern and len(pattern) == 1:
            models |= {f"teacher:{pattern[0]}"} | {f"teacher:{g}" for g in groups(task, MODEL) if g.startswith(f"{pattern[0]}/")}
        assert set(part["model"]) == models
        for _, each in part.groupby("model"):
            assert each["row"].tolist() == np.repeat(rows, len(task.outputs)).tolist()
            assert each["output"].tolist() == list(task.outputs) * len(rows)
    if kind == "multiclass":
        sums = found.groupby(["pattern", "model", "row"])[["score", "label"]].sum()
        assert np.allclose(sums, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_labels_are_those_of_the_patients(kind: TaskType) -> None:
    task = make_task(kind, THREE)
    cohort = make_cohort(task, 25)
    speakers = speakers_of(kind)
    found = predict_patterns(cohort, speakers, READY)
    part = found[(found["pattern"] == "all") & (found["model"] == "student")]
    scores, labels = arrays_of(part, task)
    said = speakers[0].logits(cohort.batch()).detach()
    expected = said * torch.tensor([2, 1]) + torch.tensor([3, -1]) if kind == "regression" else probabilities(kind, said)
    assert np.allclose(scores, expected.numpy(), atol=1e-6)
    assert labels.tolist() == cohort.labels.tolist()


def test_of_patients_without_labels_the_label_is_empty() -> None:
    unlabelled = replace(make_cohort(make_task("binary", THREE), 6), labelled=False)
    frame = predict_patterns(unlabelled, speakers_of("binary"), READY)
    assert frame["label"].isna().all() and frame["score"].notna().all()


def test_a_masked_pattern_is_predicted_without_the_others() -> None:
    cohort = make_cohort(make_task("binary", THREE), 25, complete=True)
    speakers = speakers_of("binary")
    found = predict_patterns(cohort, speakers, READY)
    part = found[(found["pattern"] == "labs+note") & (found["model"] == "student")]
    without = {m: x if m != "admission" else torch.full_like(x, torch.nan) for m, x in cohort.inputs.items()}
    present = cohort.present & torch.tensor([False, True, True])
    expected = speakers[0].logits(replace(cohort, inputs=without, present=present).batch()).sigmoid()
    assert np.allclose(part["score"], expected.detach().numpy()[:, 0], atol=1e-6)


def test_the_teachers_together_are_the_consilium_and_one_alone_speaks_for_itself() -> None:
    task = make_task("binary", THREE)
    ensembles = make_ensembles("binary")
    c, omega = initial_calibration(task, torch.tensor([-1.0])), torch.tensor([[0.2, 0.5, -0.1]])
    together = teachers_speakers(ensembles, c, omega)[0]
    batch = make_cohort(task, 40).batch()
    said, logits = together.logits(batch), ensembles(batch)
    expected = consilium(logits, batch.present, omega.softmax(1), c)
    alone = batch.present.sum(1) == 1
    assert alone.any()
    assert not alone.all()
    assert torch.equal(said[~alone], expected[~alone])
    assert torch.equal(said[alone], logits[alone].sum(1))


def test_teachers_do_not_speak_together_while_a_modality_has_none() -> None:
    ensembles = make_ensembles("binary", left_out="note")
    names = [s.name for s in teachers_speakers(ensembles, initial_calibration(make_task(), torch.zeros(1)), torch.zeros(1, 3))]
    assert names == ["teacher:admission", "teacher:labs", "teacher:admission/linear", "teacher:labs/linear", "teacher:labs/small"]


def test_without_patients_there_are_no_predictions_and_nothing_to_release() -> None:
    task = make_task("binary", THREE)
    found = predict_patterns(make_cohort(task, 10).part("nowhere"), speakers_of("binary"), READY)
    assert len(found) == 0
    assert released_rows(found, task, 5) == ([], 0)


def frame(task_outputs: tuple[str, ...], labels: list[list[int]], pattern: str = "all") -> pd.DataFrame:
    rng = np.random.default_rng(0)
    n, c = len(labels), len(task_outputs)
    return pd.DataFrame(
        {
            "row": np.repeat(np.arange(n), c), "patient": np.repeat(np.arange(n), c), "pattern": pattern, "model": "student",
            "output": list(task_outputs) * n, "score": rng.random(n * c), "label": np.array(labels, dtype=float).ravel(),
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("events", "others", "told"), [(5, 5, True), (4, 50, False), (50, 4, False), (0, 50, False), (5, 50, True)]
)
def test_metrics_on_few_events_or_few_others_are_withheld(events: int, others: int, told: bool) -> None:
    predictions = frame(("death",), [[1]] * events + [[0]] * others)
    rows, withheld = released_rows(predictions, make_task(), 5)
    assert withheld == (not told)
    assert bool(rows) == told
    if told:
        expected = metrics("binary", predictions["score"].to_numpy(), predictions["label"].to_numpy())
        assert {r["metric"]: r["value"] for r in rows} == expected
        assert {(r["model"], r["pattern"], r["n"]) for r in rows} == {("student", "all", events + others)}


@pytest.mark.parametrize(
    ("kind", "labels", "told"),
    [
        ("multilabel", [[1, 0]] * 6 + [[0, 1]] * 6, True),
        ("multilabel", [[1, 0]] * 9 + [[0, 1]] * 3, False),
        ("multiclass", [[1, 0, 0]] * 6 + [[0, 1, 0]] * 6 + [[0, 0, 1]] * 6, True),
        ("multiclass", [[1, 0, 0]] * 9 + [[0, 1, 0]] * 9 + [[0, 0, 1]], False),
    ],
)
def test_every_output_needs_enough_events(kind: Any, labels: list[list[int]], told: bool) -> None:
    task = make_task(kind)
    rows, withheld = released_rows(frame(task.outputs, labels), task, 5)
    assert bool(rows) == told
    assert withheld == (not told)


def test_a_pattern_that_alone_would_be_withheld_takes_the_next_smallest_with_it() -> None:
    # 40 hold labs, 20 note, 12 both: all = labs + note - both, so that 12 could be told from the others.
    sizes = {"all": 48, "labs": 40, "note": 20, "labs+note": 12}
    parts = [frame(("death",), [[1]] * (n // 3) + [[0]] * (n - n // 3), p) for p, n in sizes.items()]
    predictions = pd.concat([*parts, parts[2].assign(model="teacher:note")])
    assert {r["pattern"] for r in released_rows(predictions, make_task(), 4)[0]} == set(sizes)
    rows, withheld = released_rows(predictions, make_task(), 5)
    assert {r["pattern"] for r in rows} == {"all", "labs"}
    assert withheld == 3
    assert {r["pattern"] for r in released_rows(predictions, make_task(), 7)[0]} == {"all", "labs"}


def test_cells_are_withheld_one_by_one() -> None:
    predictions = pd.concat([frame(("death",), [[1]] * 9 + [[0]] * 9), frame(("death",), [[1]] * 2 + [[0]] * 9, "labs")])
    rows, withheld = released_rows(predictions, make_task(), 5)
    assert {r["pattern"] for r in rows} == {"all"}
    assert withheld == 1


@pytest.mark.parametrize(("visits", "told"), [(5, True), (4, False)])
def test_numbers_are_withheld_by_visits_alone(visits: int, told: bool) -> None:
    task = make_task("regression")
    rows, withheld = released_rows(frame(task.outputs, [[k, 1] for k in range(visits)]), task, 5)
    assert withheld == (not told)
    assert {r["metric"] for r in rows} == ({"mae", "rmse", "r2", "mae:0", "mae:1", "rmse:0", "rmse:1", "r2:0"} if told else set())
