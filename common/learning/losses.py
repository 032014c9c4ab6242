"""Losses: task, distillation by task type, pairwise feature distillation, and the student's whole loss L."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from common.config import DistillConfig
from common.data.cohort import Batch
from common.models.student import StudentOutput
from common.task import TaskType

HUBER = 1.0  # standardised units up to which an error counts by its square, beyond by its size


def task_loss(kind: TaskType, logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the loss per sample, [B]: cross-entropy; binary cross-entropy, or Huber's loss, averaged over the outputs.

    Args:
        kind: Type of the task.
        logits: [B, C].
        labels: float [B, C] (standardised for regression), or int64 [B] for multi-class.
    """
    if kind == "regression":
        return functional.smooth_l1_loss(logits, labels, reduction="none", beta=HUBER).mean(1)
    if kind == "multiclass":
        return functional.cross_entropy(logits, labels, reduction="none")
    return functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)


def distillation_loss(kind: TaskType, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Returns T^2 KL(teacher || student) per sample, [B].

    Softmax KL for multi-class (Hinton et al., 2015); Bernoulli KL averaged over the outputs for binary and multi-label tasks,
    where labels do not exclude each other. For regression Huber's distance of the outputs, without temperature.

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
    else:
        log = functional.logsigmoid
        divergence = (t.sigmoid() * (log(t) - log(s)) + (-t).sigmoid() * (log(-t) - log(-s))).mean(1)
    return temperature**2 * divergence


def pairwise_loss(features: Tensor, present: Tensor, omega: Tensor, tau: float) -> Tensor:
    """Returns the pairwise feature distillation per sample, [B].

    1/|P| sum over ordered pairs i != j, both present, of g_ij mean|stopgrad(f_i) - f_j|, with
    g_ij = sigmoid((omega_i - omega_j) / tau): the more important modality teaches the other. MetaKD's idea; its released code has
    g = w_i / w_j, unbounded.

    Args:
        features: [B, M, d].
        present: bool [B, M].
        omega: [M].
        tau: Temperature of the gate.
    """
    gate = ((omega[:, None] - omega[None, :]) / tau).sigmoid()
    distance = (features.detach()[:, :, None] - features[:, None, :]).abs().mean(3)
    pairs = present[:, :, None] & present[:, None, :] & ~torch.eye(len(omega), dtype=torch.bool, device=present.device)
    return (gate * distance * pairs).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)


@dataclass(frozen=True)
class Lesson:
    """What the teachers say of a batch.

    Attributes:
        unimodal: mean_a z_{m,a}, logits [B, M, C].
        taught: bool [B, M], where a modality is present and has teachers that may teach.
        consilium: Logits [B, C] of the weighted teachers; a function of omega.
    """

    unimodal: Tensor
    taught: Tensor
    consilium: Tensor


def student_loss(
    kind: TaskType,
    output: StudentOutput,
    batch: Batch,
    lesson: Lesson | None,
    omega: Tensor,
    config: DistillConfig,
    *,
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
        labelled: Whether the labels are known. Where a teacher teaches, who has used them already, they weigh ``config.labels``.
    """
    none = torch.zeros_like(output.present)
    taught = none if lesson is None else lesson.taught
    whole = (taught == output.present).all(1)  # else the fused head would learn to ignore whom nobody teaches
    total = config.delta * pairwise_loss(output.features, output.present, omega.mean(0), config.tau)
    if labelled:
        total = total + _weight(whole, config.labels) * task_loss(kind, output.fused, batch.labels)
    if lesson is not None:
        total = total + config.gamma * whole * distillation_loss(kind, output.fused, lesson.consilium, config.temperature)
    for m in range(output.unimodal.shape[1]):
        if labelled:
            weight = config.alpha * output.present[:, m] * _weight(taught[:, m], config.labels)
            total = total + weight * task_loss(kind, output.unimodal[:, m], batch.labels)
        if lesson is not None:
            kd = distillation_loss(kind, output.unimodal[:, m], lesson.unimodal[:, m], config.temperature)
            total = total + config.beta * taught[:, m] * kd
    return total.mean()


def _weight(taught: Tensor, labels: float) -> Tensor:
    return torch.where(taught, labels, 1.0)
