"""Losses: task, distillation by task type, pairwise feature distillation, and the student's whole loss L."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from common.config import BalanceRule, DistillConfig, Pairwise
from common.data.cohort import Batch
from common.models.student import StudentOutput
from common.task import TaskType

BALANCE_LIMIT = 3.0
HUBER = 1.0  # standardised units up to which an error counts by its square, beyond by its size


def task_loss(kind: TaskType, logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the loss per sample, [B]: cross-entropy; binary cross-entropy, or Huber's loss, averaged over the outputs.

    Args:
        kind: Type of the task.
        logits: [B, C].
        labels: float [B, C] (standardised for regression), or int64 [B] for multi-class; regions [B, C, D, H, W] of a
            segmentation, whose loss is soft Dice plus cross-entropy, averaged over regions and voxels.
    """
    if kind == "segmentation":
        return _region_loss(logits, labels.to(logits.dtype))
    if kind == "regression":
        return functional.smooth_l1_loss(logits, labels, reduction="none", beta=HUBER).mean(1)
    if kind == "multiclass":
        return functional.cross_entropy(logits, labels, reduction="none")
    return functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)


def _region_loss(logits: Tensor, regions: Tensor) -> Tensor:
    from monai.losses.dice import DiceLoss  # here: it takes seconds

    dice = DiceLoss(sigmoid=True, reduction="none", smooth_nr=1.0, smooth_dr=1.0)(logits, regions)
    crossed = functional.binary_cross_entropy_with_logits(logits, regions, reduction="none")
    loss: Tensor = dice.flatten(1).mean(1) + crossed.flatten(1).mean(1)
    return loss


def distillation_loss(kind: TaskType, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Returns T^2 KL(teacher || student) per sample, [B].

    Softmax KL for multi-class (Hinton et al., 2015); Bernoulli KL averaged over the outputs for binary and multi-label tasks,
    where labels do not exclude each other, and over the voxels of a segmentation.
    For regression Huber's distance of the outputs, without temperature.

    Args:
        kind: Type of the task.
        student: Logits [B, C].
        teacher: Logits [B, C]; a gradient flows into them too, so that omega is told how its consilium taught.
        temperature: T.
    """
    if kind == "regression":
        return task_loss(kind, student, teacher)
    s, t = student / temperature, teacher / temperature
    if kind == "multiclass":
        divergence = (t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).sum(1)
    else:  # p (log p - log q) + (1 - p) (log(1 - p) - log(1 - q)), written with few operations: there may be millions of voxels
        softplus = functional.softplus
        divergence = (t.sigmoid() * (t - s) + softplus(s) - softplus(t)).flatten(1).mean(1)
    return temperature**2 * divergence


def pairwise_loss(features: Tensor, present: Tensor, omega: Tensor, tau: float, variant: Pairwise = "sigmoid") -> Tensor:
    """Returns the pairwise feature distillation per sample, [B]: the more important modality teaches the other (MetaKD's idea).

    A sum over ordered pairs i != j, both present, of g_ij mean|stopgrad(f_i) - f_j|.

    * ``sigmoid`` (ours): g_ij = sigmoid((omega_i - omega_j) / tau), divided by the number of pairs: bounded, and omega is told
      whether it helped.
    * ``ratio`` (MetaKD's released code): g_ij = w_i / w_j, unbounded, neither normalised nor told to omega.

    Args:
        features: [B, M, d], or maps [B, M, d, D, H, W].
        present: bool [B, M].
        omega: [M].
        tau: Temperature of the sigmoid gate.
        variant: Which gate.
    """
    apart = omega[:, None] - omega[None, :]
    features = features.flatten(2)
    distance = (features.detach()[:, :, None] - features[:, None, :]).abs().mean(3)
    pairs = present[:, :, None] & present[:, None, :] & ~torch.eye(len(omega), dtype=torch.bool, device=present.device)
    if variant == "ratio":
        return (apart.detach().exp() * distance * pairs).sum((1, 2))
    return ((apart / tau).sigmoid() * distance * pairs).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)


def unlearned(kind: TaskType, student: Tensor, teacher: Tensor, prior: Tensor, temperature: float) -> Tensor:
    """Returns how much of its teachers' lesson a unimodal head has not learned yet, a number: 0 is all, 1 as little as the prior.

    Args:
        kind: Type of the task.
        student: Logits [B, C] of the patients taught.
        teacher: Logits [B, C].
        prior: Logits [C].
        temperature: T.
    """
    left = distillation_loss(kind, student, teacher, temperature).mean()
    constant = prior.reshape(-1, *(1,) * (teacher.ndim - 2)).expand_as(teacher)
    whole = distillation_loss(kind, constant, teacher, temperature).mean()
    return left / whole.clamp(min=1e-6)


@dataclass(frozen=True)
class Lesson:
    """What the teachers say of a batch.

    Attributes:
        unimodal: mean_a z_{m,a}, logits [B, M, C].
        taught: bool [B, M], where a modality is present and has teachers that may teach.
        consilium: Logits [B, C] of the weighted teachers; a function of omega.
        prior: Log-odds of the outputs in training, [C].
        complete: Logits [B, C] of the teacher of complete visits, who was shown what a drawn pattern hides from the student.
        whole: bool [B], the complete visits among them; both None without such a teacher.
    """

    unimodal: Tensor
    taught: Tensor
    consilium: Tensor
    prior: Tensor
    complete: Tensor | None = None
    whole: Tensor | None = None


def student_loss(
    kind: TaskType,
    output: StudentOutput,
    batch: Batch,
    lesson: Lesson | None,
    omega: Tensor,
    config: DistillConfig,
    *,
    balance: BalanceRule = "none",
    labelled: bool = True,
) -> Tensor:
    """Returns L, a scalar: the mean over the batch of every term whose modality is present.

    Args:
        kind: Type of the task.
        output: What the student says.
        batch: Patients.
        lesson: What the teachers say; None leaves the distillation out.
        omega: [C or 1, M]; feature terms use the mean row.
        config: Weights of the terms.
        balance: ``distillation`` raises beta of the modalities that have learned least of their teachers' lesson (:func:`betas`).
        labelled: Whether the labels are known. Where a teacher teaches, who has used them already, they weigh ``config.labels``.
    """
    none = torch.zeros_like(output.present)
    taught = none if lesson is None else lesson.taught
    whole = (taught == output.present).all(1)  # else the fused head would learn to ignore whom nobody teaches
    beta = betas(kind, output, lesson, config, balance)
    total = config.delta * pairwise_loss(output.features, output.present, omega.mean(0), config.tau, config.pairwise)
    if labelled:
        total = total + _weight(whole, config.labels) * task_loss(kind, output.fused, batch.labels)
    if lesson is not None:
        total = total + config.gamma * whole * distillation_loss(kind, output.fused, lesson.consilium, config.temperature)
    if lesson is not None and lesson.complete is not None and lesson.whole is not None:
        kd = distillation_loss(kind, output.prediction(), lesson.complete, config.temperature)
        total = total + config.epsilon * lesson.whole * kd
    held = output.present.flatten().nonzero().squeeze(1)  # of all modalities at once: it is calls that take small networks' time
    heads, patient = output.unimodal.flatten(0, 1)[held], held // output.present.shape[1]
    if labelled:
        weight = config.alpha * _weight(taught.flatten()[held], config.labels)
        total = total.index_add(0, patient, weight * task_loss(kind, heads, batch.labels[patient]))
    if lesson is not None:
        weight = (beta * taught).flatten()[held]
        kd = distillation_loss(kind, heads, lesson.unimodal.flatten(0, 1)[held], config.temperature)
        total = total.index_add(0, patient, weight * kd)
    return total.mean()


@torch.no_grad()
def betas(kind: TaskType, output: StudentOutput, lesson: Lesson | None, config: DistillConfig, balance: BalanceRule) -> Tensor:
    """Returns beta_m, [M].

    MIND remarks that unimodal distillation can balance the modalities; the rule is ours: beta_m is proportional to what the head
    has not learned yet (:func:`unlearned`), within ``BALANCE_LIMIT`` of the mean, so that who lags is pulled harder.
    """
    equal = torch.full((output.unimodal.shape[1],), config.beta, dtype=output.unimodal.dtype)
    if lesson is None or balance != "distillation":
        return equal
    taught = lesson.taught.any(0)
    left = torch.zeros_like(equal)
    for m in taught.nonzero().flatten().tolist():
        mine = lesson.taught[:, m]
        left[m] = unlearned(kind, output.unimodal[mine, m], lesson.unimodal[mine, m], lesson.prior, config.temperature)
    mean = left[taught].mean() if taught.any() else left.new_zeros(())
    if not mean > 0:
        return equal
    return config.beta * (left / mean).clamp(1 / BALANCE_LIMIT, BALANCE_LIMIT)


def _weight(taught: Tensor, labels: float) -> Tensor:
    return torch.where(taught, labels, 1.0)
