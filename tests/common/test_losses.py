"""Every loss equals its closed form, and so do the gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from common.config import DistillConfig
from common.data.cohort import Batch
from common.learning.losses import (
    BALANCE_LIMIT,
    Lesson,
    betas,
    distillation_loss,
    pairwise_loss,
    student_loss,
    task_loss,
    unlearned,
)
from common.models.student import StudentOutput
from common.task import TaskType
from tests.common.samples import KINDS, OUTPUTS

T = 2.5


def logits(kind: TaskType, seed: int, size: int = 7) -> Tensor:
    return 2 * torch.randn(size, len(OUTPUTS[kind]), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw_labels(kind: TaskType, size: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    if kind == "multiclass":
        return torch.randint(0, 3, (size,), generator=generator)
    return torch.randint(0, 2, (size, len(OUTPUTS[kind])), generator=generator).double()


def probabilities(kind: TaskType, z: Tensor) -> np.ndarray:
    """Of every outcome: [B, C] for exclusive classes, else [B, C, 2]."""
    x = z.numpy()
    if kind == "multiclass":
        return np.exp(x) / np.exp(x).sum(1, keepdims=True)
    p = 1 / (1 + np.exp(-x))
    return np.stack([p, 1 - p], -1)


CLASSES = [kind for kind in KINDS if kind != "regression"]


@pytest.mark.parametrize("kind", CLASSES)
def test_task_loss_is_the_negative_log_likelihood(kind: TaskType) -> None:
    z, y = logits(kind, 0), draw_labels(kind)
    p = probabilities(kind, z)
    if kind == "multiclass":
        expected = -np.log(p[np.arange(len(p)), y.numpy()])
    else:
        expected = -np.where(y.numpy() == 1, np.log(p[..., 0]), np.log(p[..., 1])).mean(1)
    assert task_loss(kind, z, y).numpy() == pytest.approx(expected, rel=1e-12)


def test_the_loss_of_numbers_is_hubers_near_squared_and_far_linear() -> None:
    said, true = torch.tensor([[0.5, 3.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, -1.0]])
    assert task_loss("regression", said, true).tolist() == [(0.5**2 / 2 + 3.0 - 0.5) / 2, (0 + 0.5) / 2]
    assert torch.equal(distillation_loss("regression", said, true, T), task_loss("regression", said, true))


@pytest.mark.parametrize("kind", CLASSES)
def test_distillation_is_t_squared_times_the_divergence_of_softened_outcomes(kind: TaskType) -> None:
    student, teacher = logits(kind, 1), logits(kind, 2)
    p, q = probabilities(kind, student / T), probabilities(kind, teacher / T)
    divergence = (q * np.log(q / p)).sum(-1)
    expected = T**2 * (divergence if kind == "multiclass" else divergence.mean(1))
    assert distillation_loss(kind, student, teacher, T).numpy() == pytest.approx(expected, rel=1e-9)


def test_the_distillation_of_voxels_is_averaged_over_regions_and_voxels() -> None:
    g = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.randn(3, 2, 2, 3, 4, generator=g, dtype=torch.float64) for _ in range(2))
    p, q = (1 / (1 + np.exp(-x.numpy() / T)) for x in (student, teacher))
    divergence = q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))
    expected = T**2 * divergence.reshape(3, -1).mean(1)
    assert distillation_loss("segmentation", student, teacher, T).numpy() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", CLASSES)
def test_the_gradient_of_distillation_is_t_times_the_difference_of_probabilities(kind: TaskType) -> None:
    student, teacher = logits(kind, 1).requires_grad_(), logits(kind, 2)
    distillation_loss(kind, student, teacher, T).sum().backward()
    p, q = probabilities(kind, student.detach() / T), probabilities(kind, teacher / T)
    expected = T * (p - q) if kind == "multiclass" else T * (p - q)[..., 0] / p.shape[1]
    assert student.grad is not None
    assert student.grad.numpy() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_distillation_is_zero_with_zero_gradient_where_the_student_equals_the_teacher(kind: TaskType) -> None:
    student, teacher = logits(kind, 1).requires_grad_(), logits(kind, 1)
    loss = distillation_loss(kind, student, teacher, T)
    loss.sum().backward()
    assert student.grad is not None
    assert loss.abs().max() < 1e-12
    assert student.grad.abs().max() < 1e-12


def test_softened_classes_do_not_see_a_common_shift_of_the_logits() -> None:
    student, teacher = logits("multiclass", 1), logits("multiclass", 2)
    shifted = distillation_loss("multiclass", student + 5, teacher - 3, T)
    assert torch.allclose(shifted, distillation_loss("multiclass", student, teacher, T))


def test_at_a_high_temperature_distillation_is_the_squared_distance_of_centred_logits() -> None:
    # Hinton et al., 2015, section 2.1: this is what T^2 is for.
    student, teacher = logits("multiclass", 1), logits("multiclass", 2)
    gap = (student - teacher) - (student - teacher).mean(1, keepdim=True)
    assert torch.allclose(distillation_loss("multiclass", student, teacher, 1e4), gap.square().sum(1) / 6, rtol=1e-3)


@given(
    st.lists(st.tuples(st.floats(-60, 60), st.floats(-60, 60)), min_size=2, max_size=5),
    st.sampled_from(KINDS),
    st.floats(0.5, 10),
)
def test_distillation_is_finite_and_never_negative(pairs: list[tuple[float, float]], kind: TaskType, temperature: float) -> None:
    student, teacher = torch.tensor(pairs, dtype=torch.float64).T[:, None]
    loss = distillation_loss(kind, student, teacher, temperature)
    assert loss.isfinite().all()
    assert (loss >= -1e-9).all()


@pytest.mark.parametrize("kind", KINDS)
def test_autograd_agrees_with_finite_differences(kind: TaskType) -> None:
    z, teacher, y = logits(kind, 1).requires_grad_(), logits(kind, 2).requires_grad_(), draw_labels(kind)
    assert torch.autograd.gradcheck(lambda s: task_loss(kind, s, y), (z,))
    assert torch.autograd.gradcheck(lambda s, t: distillation_loss(kind, s, t, T), (z, teacher))
    assert torch.autograd.gradgradcheck(lambda s, t: distillation_loss(kind, s, t, T), (z, teacher))


def features() -> Tensor:
    return torch.tensor([[[1.0, 2.0], [4.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)


def test_pairwise_loss_is_the_gated_distance_of_features() -> None:
    omega, tau = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64), 0.5
    far = {(0, 1): 2.5, (0, 2): 1.5, (1, 2): 2.0}
    both = [(i, j) for i in range(3) for j in range(3) if i != j]
    gated = [far[min(i, j), max(i, j)] / (1 + math.exp(-(omega[i] - omega[j]) / tau)) for i, j in both]
    everything = torch.ones(1, 3, dtype=torch.bool)
    assert pairwise_loss(features(), everything, omega, tau).item() == pytest.approx(sum(gated) / 6)
    two = torch.tensor([[True, True, False]])
    expected = sum(g for g, (i, j) in zip(gated, both, strict=True) if 2 not in (i, j)) / 2
    assert pairwise_loss(features(), two, omega, tau).item() == pytest.approx(expected)


def test_pairwise_gates_are_one_half_for_equal_weights_so_that_uniform_weights_distill() -> None:
    everything = torch.ones(1, 3, dtype=torch.bool)
    loss = pairwise_loss(features(), everything, torch.zeros(3, dtype=torch.float64), 0.5)
    assert loss.item() == pytest.approx((2.5 + 1.5 + 2.0) * 2 * 0.5 / 6)


def test_a_lone_modality_has_no_pair() -> None:
    x = features().requires_grad_()
    loss = pairwise_loss(x, torch.tensor([[False, True, False]]), torch.zeros(3, dtype=torch.float64), 0.5)
    loss.sum().backward()
    assert loss.item() == 0
    assert x.grad is not None
    assert not x.grad.any()


def test_only_the_pupil_of_a_pair_moves() -> None:
    x = features().requires_grad_()
    pairwise_loss(
        x, torch.tensor([[True, True, False]]), torch.tensor([40.0, -40.0, 0.0], dtype=torch.float64), 0.5
    ).sum().backward()
    assert x.grad is not None
    # The first teaches with gate 1, the second with gate 0: |f_0 - f_1| pulls at f_1 alone, per ordered pair and feature.
    assert x.grad[0].flatten().tolist() == pytest.approx([0, 0, 0.25, -0.25, 0, 0])


def test_the_released_codes_gate_is_the_ratio_of_the_weights_and_tells_omega_nothing() -> None:
    omega = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    w = omega.detach().softmax(0)
    far = {(0, 1): 2.5, (0, 2): 1.5, (1, 2): 2.0}
    expected = sum(d * (w[i] / w[j] + w[j] / w[i]).item() for (i, j), d in far.items())
    everything = torch.ones(1, 3, dtype=torch.bool)
    loss = pairwise_loss(features().requires_grad_(), everything, omega, 0.5, "ratio")
    assert loss.item() == pytest.approx(expected)
    loss.sum().backward()
    assert omega.grad is None


def test_pairwise_distillation_tells_omega_which_modality_should_teach() -> None:
    omega = torch.tensor([0.1, -0.3, 0.2], dtype=torch.float64, requires_grad=True)
    everything = torch.ones(1, 3, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda o: pairwise_loss(features(), everything, o, 0.5), (omega,))


def student_says(kind: TaskType, present: Tensor) -> StudentOutput:
    generator = torch.Generator().manual_seed(3)
    outputs = len(OUTPUTS[kind])
    drawn = [torch.randn(*shape, generator=generator) for shape in ((4, 2, 3), (4, 2, outputs), (4, outputs))]
    held = present[:, :, None]
    return StudentOutput(drawn[0] * held, drawn[1] * held, drawn[2], present)


@pytest.mark.parametrize("kind", KINDS)
def test_the_students_loss_is_the_sum_of_the_terms_whose_modality_is_present(kind: TaskType) -> None:
    present = torch.tensor([[True, True], [True, False], [False, True], [True, True]])
    taught = torch.tensor([[True, True], [False, False], [False, True], [False, True]])
    output, labels = student_says(kind, present), draw_labels(kind, 4)
    labels = labels if kind == "multiclass" else labels.float()
    batch = Batch({}, present, labels)
    generator = torch.Generator().manual_seed(5)
    c = len(OUTPUTS[kind])
    lesson = Lesson(torch.randn(4, 2, c, generator=generator), taught, torch.randn(4, c, generator=generator), torch.zeros(c))
    omega = torch.tensor([[0.4, -0.4]])
    config = DistillConfig(labels=0.6, alpha=0.7, beta=0.3, gamma=1.3, delta=0.2, temperature=T, tau=0.5)
    expected = 0.0
    for b in range(4):
        one = slice(b, b + 1)
        whole = torch.equal(taught[b], present[b])
        expected += (0.6 if whole else 1) * task_loss(kind, output.fused[one], labels[one]).item()
        expected += 0.2 * pairwise_loss(output.features[one], present[one], omega[0], 0.5).item()
        expected += 1.3 * whole * distillation_loss(kind, output.fused[one], lesson.consilium[one], T).item()
        for m in range(2):
            weight = 0.6 if taught[b, m] else 1
            expected += weight * 0.7 * present[b, m].item() * task_loss(kind, output.unimodal[one, m], labels[one]).item()
            said, heard = output.unimodal[one, m], lesson.unimodal[one, m]
            expected += 0.3 * taught[b, m].item() * distillation_loss(kind, said, heard, T).item()
    assert student_loss(kind, output, batch, lesson, omega, config).item() == pytest.approx(expected / 4, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_without_labels_only_the_teachers_speak_and_without_teachers_only_the_labels(kind: TaskType) -> None:
    present = torch.ones(4, 2, dtype=torch.bool)
    output, labels = student_says(kind, present), draw_labels(kind, 4)
    batch = Batch({}, present, labels if kind == "multiclass" else labels.float())
    lesson = Lesson(output.unimodal.clone(), present, output.fused.clone(), torch.zeros(len(OUTPUTS[kind])))
    config, omega = DistillConfig(delta=0.0, labels=1.0), torch.zeros(1, 2)
    assert student_loss(kind, output, batch, lesson, omega, config, labelled=False).item() == pytest.approx(0, abs=1e-6)
    labels_alone = student_loss(kind, output, batch, None, omega, config)
    assert labels_alone.item() == pytest.approx(student_loss(kind, output, batch, lesson, omega, config).item(), abs=1e-5)
    assert labels_alone.item() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_unlearned_is_one_at_the_prior_and_zero_at_the_teacher(kind: TaskType) -> None:
    teacher, prior = logits(kind, 1), logits(kind, 2)[0]
    assert unlearned(kind, prior.expand_as(teacher), teacher, prior, T).item() == pytest.approx(1)
    assert unlearned(kind, teacher, teacher, prior, T).item() == pytest.approx(0, abs=1e-9)
    half = (teacher + prior) / 2
    assert 0 < unlearned(kind, half, teacher, prior, T).item() < 1


@pytest.mark.parametrize("kind", KINDS)
def test_balance_by_distillation_pulls_hardest_where_most_is_left_to_learn(kind: TaskType) -> None:
    present = torch.ones(4, 2, dtype=torch.bool)
    output = student_says(kind, present)
    c = len(OUTPUTS[kind])
    near = output.unimodal[:, 0] * 1.1
    lesson = Lesson(torch.stack([near, -3 * output.unimodal[:, 1]], 1), present, output.fused, torch.zeros(c))
    config = DistillConfig(beta=0.6, temperature=T)
    equal = betas(kind, output, lesson, config, "none")
    assert equal.tolist() == pytest.approx([0.6, 0.6])
    pulled = betas(kind, output, lesson, config, "distillation")
    assert pulled[1] > 0.6 > pulled[0] >= 0.6 / BALANCE_LIMIT - 1e-6
    alone = Lesson(lesson.unimodal, torch.tensor([[True, False]] * 4), lesson.consilium, lesson.prior)
    assert betas(kind, output, alone, config, "distillation")[0].item() == pytest.approx(0.6)
    learned = Lesson(output.unimodal.clone(), present, output.fused, torch.zeros(c))
    assert betas(kind, output, learned, config, "distillation").isfinite().all()
