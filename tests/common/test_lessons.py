"""Teachers and student learn from a hospital's files; calibration and prior equal what they should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from common.config import Config
from common.data.cohort import Cohort
from common.data.folder import open_cohort
from common.data.manifest import load_manifest
from common.data.rows import LazyRows
from common.data.standardise import Standardisation
from common.learning.calibration import calibration_loss, fit_calibration, stacked_weights
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
)
from common.learning.losses import task_loss
from common.models.ensemble import Calibration, Ensembles, build_teacher, consilium, groups, initial_calibration
from common.models.fusion import centred
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


# Calibration and prior.


def lone_modality(kind: TaskType, size: int = 300) -> tuple[Teaching, Cohort, Tensor]:
    """One modality whose teacher is right but far too sure of itself."""
    task = make_task(kind, ["labs"])
    g = torch.Generator().manual_seed(0)
    truth = torch.randn(size, len(task.outputs), generator=g)
    if kind == "multiclass":
        labels = torch.multinomial(truth.softmax(1), 1, generator=g).squeeze(1)
    else:
        labels = (torch.rand(truth.shape, generator=g) < (truth - 1).sigmoid()).float()
    cohort = replace(make_cohort(task, size, complete=True), labels=labels)
    logits = centred(kind, 4 * truth)[:, None]
    start = Calibration(torch.ones(len(task.outputs)), torch.zeros(len(task.outputs)), torch.zeros(len(task.outputs)))
    return Teaching(logits, cohort.present, start), cohort, torch.zeros(1, 1)


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_calibration_is_the_logistic_regression_on_the_evidence_weighted_as_the_prior_says(kind: Any) -> None:
    teaching, cohort, omega = lone_modality(kind, 3000)  # so many that ten pseudo-events do not count
    prior = torch.full((len(cohort.task.outputs),), -2.0)
    start = replace(teaching.calibration, prior=prior)
    evidence = replace(teaching, logits=teaching.logits + prior)
    found = fit_calibration(evidence, cohort.labels, kind, omega, start)
    for c in range(len(cohort.task.outputs)):
        y = cohort.labels[:, c].numpy()
        usual = prior[c].sigmoid().item()
        weight = np.where(y > 0, usual / y.mean(), (1 - usual) / (1 - y.mean()))
        reference = LogisticRegression(C=1e6).fit(teaching.logits[:, 0, c : c + 1].numpy(), y, weight)
        assert found.scale[c].item() == pytest.approx(reference.coef_[0, 0], rel=0.1)
        assert found.bias[c].item() + prior[c].item() == pytest.approx(reference.intercept_[0], rel=0.05)
    assert (found.scale < 0.5).all()


def test_a_reference_set_with_many_events_does_not_tell_that_events_are_common() -> None:
    teaching, cohort, omega = lone_modality("binary", 2000)
    keep = (cohort.labels[:, 0] > 0) | (torch.arange(2000) % 4 == 0)
    few, many = cohort, cohort.select(keep.numpy())
    usual = replace(teaching.calibration, prior=log_odds("binary", few.labels.sum(0).double().numpy(), 2000.0))
    logits = teaching.logits + usual.prior
    found = [
        fit_calibration(Teaching(z, c.present, usual), c.labels, "binary", omega, usual)
        for z, c in ((logits, few), (logits[keep], many))
    ]
    assert many.labels.mean() > 2 * few.labels.mean()
    assert found[1].bias.item() == pytest.approx(found[0].bias.item(), abs=0.15)


@pytest.mark.parametrize("kind", KINDS)
def test_without_any_event_the_calibration_is_finite_and_near_its_start(kind: TaskType) -> None:
    teaching, cohort, omega = lone_modality(kind, 12)
    start = replace(teaching.calibration, scale=0.2 * teaching.calibration.scale)
    found = fit_calibration(teaching, torch.zeros_like(cohort.labels), kind, omega, start)
    assert (found.scale - start.scale).abs().max() < 0.5
    assert found.bias.abs().max() < 1


@pytest.mark.parametrize("kind", KINDS)
def test_calibration_improves_on_its_start_and_leaves_it_untouched(kind: TaskType) -> None:
    teaching, cohort, omega = lone_modality(kind)
    start = teaching.calibration
    found = fit_calibration(teaching, cohort.labels, kind, omega, start)
    losses = [calibration_loss(teaching, cohort.labels, kind, omega, c).item() for c in (start, found)]
    assert losses[1] < 0.9 * losses[0]
    assert start.scale.tolist() == [1.0] * len(start.scale)
    assert not found.scale.requires_grad
    assert torch.equal(found.prior, start.prior)


def test_without_patients_that_tell_the_calibration_stays_at_its_start() -> None:
    teaching, cohort, omega = lone_modality("binary", 4)
    silent = replace(teaching, taught=torch.zeros_like(teaching.taught))
    found = fit_calibration(silent, cohort.labels, cohort.task.type, omega, teaching.calibration)
    assert found.scale.item() == pytest.approx(1, abs=1e-4)


def voxels(patients: int = 6, number: int = 2000) -> tuple[Teaching, Tensor]:
    """Voxels of two regions: one teacher knows the first, another the second, the third says much and knows nothing."""
    g = torch.Generator().manual_seed(0)
    labels = (torch.rand(patients, 2, number, generator=g) < 0.2).float()
    logits = torch.randn(patients, 3, 2, number, generator=g) - 1
    logits[:, 0, 0] += 4 * labels[:, 0]
    logits[:, 1, 1] += 4 * labels[:, 1]
    logits[:, 2] *= 3
    none = torch.zeros(2)
    return Teaching(logits, torch.ones(patients, 3, dtype=torch.bool), Calibration(none + 3, none, none)), labels


def test_stacked_weights_find_who_knows_a_region() -> None:
    teaching, labels = voxels()
    omega = stacked_weights(teaching, labels, teaching.calibration, scale=True, per_output=True)
    assert omega.shape == (2, 3)
    assert omega.softmax(1).argmax(1).tolist() == [0, 1]
    assert (omega.softmax(1)[:, :2].diagonal() > 0.8).all()
    assert stacked_weights(teaching, labels, teaching.calibration, scale=False, per_output=False).shape == (1, 3)
    unseen = labels * torch.tensor([1.0, 0.0])[:, None]
    found = stacked_weights(teaching, unseen, teaching.calibration, scale=True, per_output=True)
    assert found[0].any() and not found[1].any(), "a region that nobody shows has equal weights"
    silent = replace(teaching, taught=teaching.taught & torch.tensor([True, True, False]))
    assert not stacked_weights(silent, labels, teaching.calibration, scale=True, per_output=True).any()


def test_scale_and_bias_of_voxels_improve_the_task_loss() -> None:
    teaching, labels = voxels()
    omega, start = torch.zeros(2, 3), teaching.calibration
    found = fit_calibration(teaching, labels, "segmentation", omega, start)
    better, worse = (calibration_loss(teaching, labels, "segmentation", omega, c).item() for c in (found, start))
    assert better < 0.95 * worse


def test_of_voxels_that_one_modality_alone_shows_nothing_is_learned() -> None:
    teaching, labels = voxels()
    lone = replace(teaching, taught=teaching.taught & torch.tensor([True, False, False]))
    assert fit_calibration(lone, labels, "segmentation", torch.zeros(2, 3), teaching.calibration) is teaching.calibration


def test_of_a_region_that_no_reference_patient_shows_nothing_is_learned() -> None:
    teaching, labels = voxels()
    labels[:, 1] = 0
    found = fit_calibration(teaching, labels, "segmentation", torch.zeros(2, 3), teaching.calibration)
    assert (found.scale[1].item(), found.bias[1].item()) == (3, 0)
    assert found.scale[0].item() != 3


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_the_prior_is_the_log_odds_of_every_output(kind: Any) -> None:
    positives = np.array([10.0, 0.0][: len(make_task(kind).outputs)])
    expected = (positives + 0.5) / 101
    assert log_odds(kind, positives, 100).sigmoid().tolist() == pytest.approx(expected.tolist())


def test_the_prior_of_classes_is_their_centred_log_shares() -> None:
    prior = log_odds("multiclass", np.array([60.0, 40.0, 0.0]), 100)
    assert prior.softmax(0).tolist() == pytest.approx([60.5 / 101.5, 40.5 / 101.5, 0.5 / 101.5])
    assert prior.mean().item() == pytest.approx(0, abs=1e-6)
    assert log_odds("multiclass", np.zeros(3), 0).softmax(0).tolist() == pytest.approx([1 / 3] * 3)


def test_the_consilium_starts_as_the_sum_of_the_evidence() -> None:
    task = make_task("binary", ("admission", "labs"))
    prior = torch.tensor([-2.0])
    c = initial_calibration(task, prior)
    logits = torch.tensor([[[-1.0], [0.5]]])
    said = consilium(logits, torch.ones(1, 2, dtype=torch.bool), torch.full((1, 2), 0.5), c)
    assert said.item() == pytest.approx(-2 + 1 + 2.5)


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
