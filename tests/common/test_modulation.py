"""Gradient modulation: who is ahead learns more slowly, also where the outcome is rare."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from common.config import BalanceConfig, Training
from common.data.cohort import Batch
from common.learning.lessons import train_student
from common.learning.loop import fit
from common.learning.modulation import Modulation
from common.models.student import Student, StudentOutput
from common.task import TaskType
from tests.common.samples import KINDS, make_cohort, make_config, make_task

TWO = ("admission", "labs")


def said(kind: TaskType, unimodal: Tensor, labels: Tensor, present: Tensor | None = None) -> tuple[StudentOutput, Batch]:
    held = torch.ones(unimodal.shape[:2], dtype=torch.bool) if present is None else present
    output = StudentOutput(torch.zeros(*unimodal.shape[:2], 4), unimodal, unimodal.sum(1), held)
    return output, Batch({}, held, labels)


def modulation(kind: TaskType, modalities: tuple[str, ...] = TWO, strength: float = 1.0) -> Modulation:
    return Modulation(make_task(kind, modalities), strength)


def test_the_leader_is_slowed_by_its_ratio_to_the_others_and_nobody_else() -> None:
    m = modulation("multiclass", ("admission", "labs", "note"), strength=0.5)
    chance = torch.tensor([[0.9, 0.05, 0.05], [0.5, 0.25, 0.25], [0.2, 0.4, 0.4]]).log()
    m.see(*said("multiclass", chance[None], torch.tensor([0])))
    assert m.scores().tolist() == pytest.approx([0.9, 0.5, 0.2])
    ratios = [0.9 / math.sqrt(0.5 * 0.2), 0.5 / math.sqrt(0.9 * 0.2)]
    expected = [1 - math.tanh(0.5 * math.log(r)) for r in ratios]
    assert list(m.coefficients().values()) == pytest.approx([*expected, 1.0], rel=1e-5)
    assert m.pace() == {f"encoders.{n}.": k for n, k in m.coefficients().items()}


def test_equal_modalities_learn_at_full_speed_and_a_hairs_lead_costs_a_hair() -> None:
    m = modulation("binary")
    m.see(*said("binary", torch.zeros(4, 2, 1), torch.tensor([[0.0], [1.0], [0.0], [1.0]])))
    assert set(m.coefficients().values()) == {1.0}
    ahead = modulation("binary", strength=3.0)
    ahead.see(*said("binary", torch.tensor([[[0.001], [0.0]], [[-0.001], [0.0]]]), torch.tensor([[1.0], [0.0]])))
    assert 0.99 < ahead.coefficients()["admission"] < 1.0


def test_a_rare_outcome_counts_as_much_as_a_common_one() -> None:
    """One patient in twenty dies; the first modality sees it coming, the second only says the prior."""
    labels = torch.zeros(100, 1)
    labels[::20] = 1
    prior = math.log(0.05 / 0.95)
    logits = torch.stack([torch.where(labels > 0, 2.0, prior), torch.full_like(labels, prior)], 1)
    m = modulation("binary", strength=3.0)
    m.see(*said("binary", logits, labels))
    mean = torch.where(labels[:, None] > 0, logits, -logits).sigmoid().mean(0).flatten()
    assert float(mean[0] / mean[1]) < 1.05  # what the plain score would see
    assert m.coefficients()["admission"] < 0.2
    assert m.coefficients()["labs"] == 1.0


def test_who_has_met_nobody_with_the_outcome_is_not_taken_for_the_leader() -> None:
    """Both say only the prior; the second modality is rarer, and by chance nobody who holds it dies."""
    labels = torch.zeros(40, 1)
    labels[:2] = 1
    held = torch.ones(40, 2, dtype=torch.bool)
    held[:20, 1] = False
    m = modulation("binary", strength=3.0)
    m.see(*said("binary", torch.full((40, 2, 1), -3.0), labels, held))
    assert list(m.coefficients().values()) == pytest.approx([1.0, 1.0], abs=1e-4)
    alone = modulation("binary", strength=3.0)
    alone.see(*said("binary", torch.full((40, 2, 1), -3.0), torch.zeros(40, 1)))
    assert list(alone.coefficients().values()) == pytest.approx([1.0, 1.0], abs=1e-4)


def test_a_hopeless_score_does_not_break_the_rates() -> None:
    m = modulation("binary", strength=3.0)
    logits = torch.tensor([[[200.0], [-200.0]], [[-200.0], [200.0]]])
    m.see(*said("binary", logits, torch.tensor([[1.0], [0.0]])))
    assert all(0 <= k <= 1 for k in m.coefficients().values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_the_outcome_forgets_nothing_and_the_absent_do_not_count(kind: TaskType) -> None:
    m = modulation(kind)
    cohort = make_cohort(make_task(kind, TWO), 40)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 2, len(cohort.task.outputs), generator=generator)
    held = torch.ones(40, 2, dtype=torch.bool)
    held[:, 1] = False
    m.see(*said(kind, logits, cohort.labels, held))
    assert set(m.coefficients().values()) == {1.0}  # only one has been met
    assert m.scores()[1].isnan()
    m.see(*said(kind, logits, cohort.labels))
    before = m.scores()
    assert before.isfinite().all() and (before > 0).all() and (before <= 1).all()
    m.see(*said(kind, logits[:0], cohort.labels[:0]))
    assert torch.allclose(m.scores(), before)


def test_the_pace_scales_the_learning_rate_of_the_parameters_that_it_names() -> None:
    def network() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))

    x, plain = torch.randn(8, 2), Training(optimiser="sgd", lr=0.1, weight_decay=0.0, batch_size=8)
    start, full, slow = network(), network(), network()
    for module, pace in ((full, None), (slow, lambda: {"0.": 0.25})):
        fit(module, 8, lambda i, _, module=module: module(x[i]).square().mean(), plain, epochs=1, seed=0, pace=pace)
    moved = [[p - q for p, q in zip(n.parameters(), start.parameters(), strict=True)] for n in (full, slow)]
    assert torch.allclose(moved[1][0], 0.25 * moved[0][0], atol=1e-7)
    assert torch.allclose(moved[1][2], moved[0][2], atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_trains_with_it_and_other_encoders_move_less(kind: TaskType) -> None:
    plain = make_config(kind)
    modulated = replace(plain, balance=BalanceConfig("gradient-modulation"))
    cohort = make_cohort(plain.task, 120)
    moved = []
    for config in (plain, modulated):
        torch.manual_seed(0)
        student = Student(config.task, config.model)
        before = {n: p.detach().clone() for n, p in student.named_parameters()}
        train_student(student, cohort, config, config.distill.training, teaching=None, epochs=3, seed=0)
        moved.append({n: float((p - before[n]).detach().norm()) for n, p in student.named_parameters()})
    encoders = [n for n in moved[0] if n.startswith("encoders.")]
    assert sum(moved[1][n] for n in encoders) < sum(moved[0][n] for n in encoders)
