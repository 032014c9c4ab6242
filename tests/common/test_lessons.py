"""Teachers and student learn from a hospital's files, in the ways that are configured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.config import BalanceConfig, Config, WeightsConfig
from common.data.cohort import Cohort
from common.data.folder import open_cohort
from common.data.manifest import load_manifest
from common.data.rows import LazyRows
from common.data.standardise import Standardisation
from common.learning.lessons import (
    Teaching,
    block_counts,
    log_odds,
    student_validation_loss,
    teach_cohort,
    teacher_loss,
    train_student,
    train_teacher,
    trained_blocks,
    weights_gradient,
)
from common.learning.losses import task_loss
from common.models.ensemble import Calibration, Ensembles, build_teacher, consilium, groups, initial_calibration
from common.models.student import Student
from common.task import TaskType
from tests.common.samples import KINDS, make_cohort, make_config, make_task, write_folder


def hospital(folder: Path, config: Config, size: int = 80) -> Cohort:
    write_folder(folder, config.task, size)
    cohort = open_cohort(folder, load_manifest(folder), config.task, config.split, 0)
    return cohort.standardised(Standardisation(cohort.moments()))


def counts_of(cohort: Cohort) -> np.ndarray:
    return cohort.label_counts().double().numpy()


def teach(config: Config, train: Cohort, epochs: int = 20) -> Ensembles:
    states = {}
    for group in groups(config.task, config.model):
        torch.manual_seed(0)
        teacher = build_teacher(group, config.task, config.model)
        modality = group.split("/")[0]
        train_teacher(teacher, modality, train.holding(modality), config.teach.training_of(group), epochs=epochs, seed=1)
        states[group] = teacher.state_dict()
    return Ensembles(config.task, config.model, states)


@pytest.mark.parametrize("kind", KINDS)
def test_teachers_and_student_learn_from_a_hospitals_files(tmp_path: Path, kind: TaskType) -> None:
    config = make_config(kind, fusion="late")
    cohort = hospital(tmp_path, config)
    assert cohort.part("train") is cohort.part("train")  # model-ready: every round asks for it again
    train, test = cohort.part("train"), cohort.part("test", "validation", "meta")
    prior = log_odds(kind, counts_of(train), len(train))
    ensembles = teach(config, train)
    torch.manual_seed(0)
    student = Student(config.task, config.model)
    student.start_at(prior)
    before = student_validation_loss(student.eval(), test)
    teaching = teach_cohort(ensembles, train, initial_calibration(config.task, prior))
    curve = train_student(student, train, config, config.distill.training, teaching=teaching, epochs=20, seed=1, validation=test)
    assert curve.training[-1] < curve.training[0]
    assert min(curve.validation) == student_validation_loss(student, test) < 0.9 * before
    prediction = student(test.batch()).prediction()
    chance = task_loss(kind, prior.expand(len(test), -1), test.labels).mean()
    assert task_loss(kind, prediction, test.labels).mean() < 0.8 * chance
    assert prediction.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_training_repeats_bit_identically_and_differs_by_seed(kind: TaskType) -> None:
    config = make_config(kind)
    train = make_cohort(config.task, 40)

    def trained(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(0)
        student = Student(config.task, config.model)
        train_student(student, train, config, config.distill.training, teaching=None, epochs=2, seed=seed)
        return student.state_dict()

    first, second, other = trained(1), trained(1), trained(2)
    assert all(torch.equal(t, second[n]) for n, t in first.items())
    assert not all(torch.equal(t, other[n]) for n, t in first.items())


def test_a_teacher_keeps_its_best_validated_epoch() -> None:
    config = make_config()
    cohort = make_cohort(config.task, 80)
    train, held = cohort.part("train").holding("labs"), cohort.part("test").holding("labs")
    teacher = build_teacher("labs/small", config.task, config.model)
    curve = train_teacher(teacher, "labs", train, config.teach.training_of("labs/small"), epochs=8, seed=0, validation=held)
    assert teacher_loss(teacher, "labs", held) == pytest.approx(min(curve.validation))
    assert len(curve.validation) == 9


def test_without_labels_the_student_learns_from_the_teachers_alone() -> None:
    config = make_config(fusion="late")
    config = replace(config, distill=replace(config.distill, delta=0.0))
    train = make_cohort(config.task, 60)
    ensembles = teach(config, train)
    prior = torch.zeros(1)
    teaching = teach_cohort(ensembles, train, initial_calibration(config.task, prior))
    assert teaching is not None
    unlabelled = replace(train, labelled=False)

    def distilled(cohort: Cohort) -> Student:
        torch.manual_seed(0)
        student = Student(config.task, config.model)
        train_student(student, cohort, config, config.distill.training, teaching=teaching, epochs=25, seed=1)
        return student

    student = distilled(unlabelled)
    other = distilled(replace(unlabelled, labels=1 - unlabelled.labels))
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), other.parameters(), strict=True))
    held = teaching.taught[:, 0]
    said, taught = student(train.batch()).unimodal[held, 0, 0], teaching.logits[held, 0, 0]
    assert torch.corrcoef(torch.stack([said, taught]))[0, 1] > 0.9


def test_a_lesson_says_what_the_teachers_of_the_present_modalities_say_together() -> None:
    task = make_task("multilabel", ("admission", "labs", "note"))
    cohort = make_cohort(task, 12)
    g = torch.Generator().manual_seed(0)
    c = Calibration(*(torch.randn(2, generator=g) for _ in range(3)))
    taught = cohort.present & torch.tensor([True, True, False])
    teaching = Teaching(torch.randn(12, 3, 2, generator=g), taught, c)
    index, present = torch.tensor([3, 0, 7]), torch.tensor([[True, False, True]] * 3)
    omega = torch.tensor([[0.3, -0.1, 0.7]])
    lesson = teaching.lesson(index, replace(cohort.batch(index), present=present), omega)
    assert torch.equal(lesson.taught, taught[index] & present)
    assert torch.equal(lesson.unimodal, teaching.logits[index])
    assert torch.equal(lesson.consilium, consilium(teaching.logits[index], lesson.taught, omega.softmax(1), c))


def test_teachers_teach_only_what_is_present_and_has_a_teacher() -> None:
    config = make_config()
    cohort = make_cohort(config.task, 20)
    ensembles = teach(config, cohort, epochs=0)
    c = initial_calibration(config.task, torch.zeros(1))
    everything = teach_cohort(ensembles, cohort, c)
    two = {g: t.state_dict() for g, t in ensembles.members.items() if g.split("/")[0] in ("labs", "note")}
    some = teach_cohort(Ensembles(config.task, config.model, two), cohort, c)
    assert everything is not None
    assert some is not None
    assert torch.equal(everything.taught, cohort.present)
    assert torch.equal(some.taught, cohort.present & torch.tensor([False, False, True, True]))
    assert teach_cohort(None, cohort, c) is None
    assert teach_cohort(ensembles, cohort.part("nowhere"), c) is None


def test_validation_counts_the_whole_patient_and_single_modalities_the_same() -> None:
    config = make_config("multilabel")
    student = Student(config.task, config.model).eval()
    cohort = make_cohort(config.task, 30)
    output = student(cohort.batch())
    whole = task_loss("multilabel", output.prediction(), cohort.labels).mean()
    alone = [task_loss("multilabel", output.unimodal[:, m], cohort.labels)[cohort.present[:, m]] for m in range(4)]
    assert student_validation_loss(student, cohort) == pytest.approx(((whole + torch.cat(alone).mean()) / 2).item(), rel=1e-5)


def with_distill(config: Config, **changes: Any) -> Config:
    return replace(config, distill=replace(config.distill, **changes))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: with_distill(c, dropout_by="batch"),
        lambda c: with_distill(c, dropout=0.0),
        lambda c: with_distill(c, pairwise="ratio"),
        lambda c: with_distill(c, delta=0.0),
        lambda c: replace(c, balance=BalanceConfig(rule="distillation")),
        lambda c: replace(c, balance=BalanceConfig(rule="gradient-modulation")),
    ],
    ids=["dropout by batch", "no dropout", "ratio", "no pairwise", "balance", "modulation"],
)
def test_what_a_benchmark_ablates_changes_what_the_student_becomes(change: Callable[[Config], Config]) -> None:
    config = with_distill(make_config(fusion="late"), delta=0.5, dropout=0.5)
    train = make_cohort(config.task, 60)
    teaching = teach_cohort(teach(config, train, epochs=5), train, initial_calibration(config.task, torch.zeros(1)))

    def distilled(config: Config) -> Tensor:
        torch.manual_seed(0)
        student = Student(config.task, config.model)
        student.omega.copy_(torch.linspace(-1, 1, 4))
        train_student(student, train, config, config.distill.training, teaching=teaching, epochs=3, seed=1)
        return torch.cat([p.detach().flatten() for p in student.parameters()])

    main = distilled(config)
    assert torch.equal(main, distilled(config))
    assert (main - distilled(change(config))).abs().max() > 1e-4


def test_the_weights_estimator_is_the_configured_one() -> None:
    config = make_config(fusion="late")
    cohort = make_cohort(config.task, 80)
    train, meta = cohort.part("train"), cohort.part("meta")
    student = Student(config.task, config.model)
    teaching = teach_cohort(teach(config, train, epochs=5), train, initial_calibration(config.task, torch.zeros(1)))

    def gradient(estimator: Any, teaching: Teaching | None) -> Tensor:
        asked = replace(config, weights=WeightsConfig(estimator=estimator))
        generator = torch.Generator().manual_seed(0)
        return weights_gradient(student, train, meta, asked, teaching=teaching, generator=generator)[0]

    assert torch.equal(gradient("metakd", teaching), gradient("metakd", None)), "it reads no lesson"
    looked = [gradient("lookahead", taught) for taught in (teaching, None)]
    assert not torch.allclose(*looked, rtol=1e-3)
    assert not any(torch.allclose(gradient("metakd", teaching), g, rtol=1e-3) for g in looked)


# Blocks.


def test_a_block_counts_the_visits_behind_it_and_only_such_blocks_are_returned() -> None:
    config = make_config()
    cohort = make_cohort(config.task, 30)
    present = cohort.present & torch.tensor([True, False, True, False])
    train = replace(cohort, present=present).select(present.any(1).numpy())
    student = Student(config.task, config.model)
    counts = block_counts(student, train)
    assert counts == {
        "admission": int(train.present[:, 0].sum()),
        "labs": int(train.present[:, 2].sum()),
        "fusion": int((train.present.sum(1) == 2).sum()),
    }
    names = set(trained_blocks(student, counts))
    assert {n.split(".")[1] if n.startswith(("encoders", "heads")) else "fusion" for n in names} == set(counts)
    lonely = replace(train, present=train.present & torch.tensor([True, False, False, False]))
    assert set(block_counts(student, lonely)) == {"admission"}


def test_a_teacher_reads_no_modality_but_its_own() -> None:
    def untouchable() -> Tensor:
        raise AssertionError("somebody reads a modality that is not the teacher's")

    config = make_config("binary")
    cohort = make_cohort(config.task, 12)
    group = groups(config.task, config.model)[0]
    mine = group.split("/")[0]
    others = {m: LazyRows([untouchable] * 12, x.shape[1:], x.dtype) for m, x in cohort.inputs.items() if m != mine}
    train = replace(cohort, inputs=cohort.inputs | others).holding(mine)
    teacher = build_teacher(group, config.task, config.model)
    fit = train_teacher(teacher, mine, train, config.teach.training_of(group), epochs=1, seed=0, validation=train)
    assert len(fit.validation) == 2
