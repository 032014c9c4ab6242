"""Scale, bias and prior of the consilium equal what they should."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from common.data.cohort import Cohort
from common.learning.calibration import calibration_loss, fit_calibration, stacked_weights
from common.learning.lessons import Teaching, log_odds
from common.models.ensemble import Calibration, consilium, initial_calibration
from common.models.fusion import centred
from common.task import TaskType
from tests.common.samples import KINDS, make_cohort, make_task


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
