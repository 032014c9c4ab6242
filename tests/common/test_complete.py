"""The teacher of complete visits: whom it reads, and what the student, who sees less, learns from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from common.evaluation.predictions import teachers_speakers
from common.learning.lessons import teach_cohort, teacher_loss, train_teacher
from common.learning.losses import distillation_loss, student_loss
from common.models.ensemble import CompleteTeacher, Ensembles, build_teacher, groups, initial_calibration
from common.models.fusion import centred
from common.models.student import Student
from common.task import TaskType
from tests.common.samples import KINDS, MODEL, TRAINING, make_cohort, make_config, make_task

COMPLETE = replace(MODEL, complete="bottleneck")
GROUP = "complete/bottleneck"


def make_ensembles(kind: TaskType) -> Ensembles:
    torch.manual_seed(0)
    task = make_task(kind)
    return Ensembles(task, COMPLETE, {g: build_teacher(g, task, COMPLETE).state_dict() for g in groups(task, COMPLETE)})


def test_its_group_is_named_after_its_fusion_and_there_is_none_by_default() -> None:
    task = make_task()
    assert [g for g in groups(task, COMPLETE) if g not in groups(task, MODEL)] == [GROUP]
    assert Ensembles(task, MODEL, {}).complete(make_cohort(task, 4).batch()) is None


@pytest.mark.parametrize("kind", KINDS)
def test_it_speaks_of_complete_visits_alone(kind: TaskType) -> None:
    ensembles, cohort = make_ensembles(kind), make_cohort(make_task(kind), 40)
    whole = cohort.present.all(1)
    assert 0 < whole.sum() < 40
    said = ensembles.complete(cohort.batch())
    assert said is not None and said.shape == (40, len(cohort.task.outputs))
    assert not said[~whole].any()
    assert ensembles.of_complete is not None
    own = ensembles.of_complete(cohort.select(whole.numpy()).batch()).fused
    assert torch.allclose(said[whole], centred(kind, own), atol=1e-5)
    assert ensembles.modalities() == set(cohort.task.modalities)


def test_it_predicts_under_its_own_name_where_nothing_is_missing() -> None:
    ensembles, cohort = make_ensembles("binary"), make_cohort(make_task(), 40)
    calibration = initial_calibration(cohort.task, torch.zeros(1))
    speakers = [s for s in teachers_speakers(ensembles, calibration, torch.zeros(1, 4)) if s.name == "teacher:complete"]
    assert [s.only for s in speakers] == [tuple(sorted(cohort.task.modalities))]


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_from_complete_visits(kind: TaskType) -> None:
    cohort = make_cohort(make_task(kind), 80, complete=True)
    torch.manual_seed(0)
    teacher = build_teacher(GROUP, cohort.task, COMPLETE)
    assert isinstance(teacher, CompleteTeacher)
    before = teacher_loss(teacher, "complete", cohort)
    train_teacher(teacher, "complete", cohort.holding("complete"), TRAINING, epochs=20, seed=0)
    assert teacher_loss(teacher, "complete", cohort) < 0.9 * before


def test_holding_complete_is_lacking_nothing() -> None:
    cohort = make_cohort(make_task(), 60)
    held = cohort.holding("complete")
    assert len(held) == int(cohort.present.all(1).sum())
    assert held.present.all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_who_sees_less_learns_what_it_says_of_the_whole_visit(kind: TaskType) -> None:
    config = replace(make_config(kind), model=COMPLETE)
    ensembles, cohort = make_ensembles(kind), make_cohort(make_task(kind), 30)
    teaching = teach_cohort(ensembles, cohort, initial_calibration(cohort.task, torch.zeros(len(cohort.task.outputs))))
    assert teaching is not None
    index = torch.arange(5, 25)
    fewer = cohort.present[index].clone()
    fewer[:, 1:] = False
    fewer[~fewer.any(1)] = cohort.present[index][~fewer.any(1)]
    batch = cohort.batch(index).masked(fewer)
    torch.manual_seed(1)
    student = Student(cohort.task, COMPLETE).eval()
    output, lesson = student(batch), teaching.lesson(index, batch, student.omega)
    assert lesson.whole is not None and lesson.complete is not None
    assert torch.equal(lesson.whole, cohort.present[index].all(1))

    def loss(epsilon: float) -> torch.Tensor:
        return student_loss(kind, output, batch, lesson, student.omega, replace(config.distill, epsilon=epsilon))

    kd = lesson.whole * distillation_loss(kind, output.prediction(), lesson.complete, config.distill.temperature)
    assert torch.allclose(loss(0.7) - loss(0.0), 0.7 * kd.mean(), atol=1e-5)
    assert kd.sum() > 0
