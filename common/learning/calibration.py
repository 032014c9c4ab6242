"""Scale, bias and weights of the consilium, fitted to labelled patients whom no teacher has seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from common.learning.lessons import Teaching
from common.learning.losses import task_loss
from common.learning.modality_weights import omega_of, random_patterns
from common.models.ensemble import Calibration, consilium
from common.models.fusion import probabilities, stated, weighted_evidence
from common.task import TaskType

PSEUDO_EVENTS = 10.0
INDEPENDENT = 1_000  # neighbours tell the same: a scan's voxels count as so many cases


def calibration_loss(teaching: Teaching, labels: Tensor, kind: TaskType, omega: Tensor, calibration: Calibration) -> Tensor:
    """Returns the task loss of the consilium, a function of omega, s and b."""
    fused = consilium(teaching.logits, teaching.taught, omega.softmax(1), calibration)
    return task_loss(kind, fused, labels).mean()


def fit_calibration(teaching: Teaching, labels: Tensor, kind: TaskType, omega: Tensor, start: Calibration) -> Calibration:
    """Returns s and b fitted to labelled patients that no teacher was trained on.

    A regression on the weighted evidence with the task's loss. Where it is a logistic (softmax) one, the patients are weighted so
    that outcomes are as common as the prior says: how common they are, all sites tell, and not the few hospitals of a reference
    set. Voxels count where several modalities show them. A ridge of ten pseudo-events pulls towards ``start``; a region that no
    patient shows keeps it.

    Args:
        teaching: What the teachers say of N patients, or of V voxels of each: logits [N, M, C], [N, M, C, V].
        labels: Of them, [N, C], [N] or [N, C, V].
        kind: Type of the task.
        omega: [C or 1, M].
        start: s and b without these patients.
    """
    scale = start.scale.clone().requires_grad_(True)
    bias = start.bias.clone().requires_grad_(True)
    scans = kind == "segmentation"
    cases = len(labels) * (INDEPENDENT if scans else 1)
    shown = labels.amax((0, 2)) > 0 if scans else torch.ones_like(start.scale, dtype=torch.bool)
    weight = None if scans else _as_common_as(start.prior, labels, kind)
    if scans:
        teaching, labels = _with_drawn_patterns(teaching, labels)
        several = teaching.taught.sum(1) > 1  # a lone modality's voxels have neither s nor b
        if not several.any():
            return start
        teaching, labels = replace(teaching, logits=teaching.logits[several], taught=teaching.taught[several]), labels[several]
    evidence = weighted_evidence(teaching.logits, teaching.taught, omega.softmax(1), start.prior)

    def cost() -> Tensor:
        pull = functional.mse_loss(scale, start.scale, reduction="sum") + functional.mse_loss(bias, start.bias, reduction="sum")
        fused = stated(evidence, scale, bias, start.prior)
        if kind in ("binary", "multilabel"):
            fit = functional.binary_cross_entropy_with_logits(fused, labels, weight=weight, reduction="sum") / cases
        else:
            fit = (task_loss(kind, fused, labels) * (1 if weight is None else weight)).mean()
        return fit + PSEUDO_EVENTS / cases * pull

    _minimise(cost, [scale, bias])
    s, b = (torch.where(shown, x.detach(), before) for x, before in ((scale, start.scale), (bias, start.bias)))
    return Calibration(s, b, start.prior)


def stacked_weights(teaching: Teaching, labels: Tensor, start: Calibration, *, scale: bool, per_output: bool) -> Tensor:
    """Returns omega [C or 1, M] of the weighted mean of teachers that has the least task loss on voxels that they never saw.

    Stacked generalisation (Wolpert, 1992) with weights that are not negative. A few patients have voxels enough for it. Equal
    weights if a modality has no teacher on any of them, and for a region that none of them shows.

    Args:
        teaching: What the teachers say of V voxels of each of N patients, logits [N, M, C, V].
        labels: Of the voxels, [N, C, V].
        start: s and b at the start.
        scale: Whether s and b are fitted along.
        per_output: Whether omega has a row per region.
    """
    omega = torch.zeros(labels.shape[1] if per_output else 1, teaching.logits.shape[1])
    if not teaching.taught.any(0).all():
        return omega
    omega.requires_grad_(True)
    s, b = (x.clone().requires_grad_(scale) for x in (start.scale, start.bias))
    ridge = PSEUDO_EVENTS / (len(labels) * INDEPENDENT)
    teaching, labels = _with_drawn_patterns(teaching, labels)

    def cost() -> Tensor:
        fit = calibration_loss(teaching, labels, "segmentation", omega, Calibration(s, b, start.prior))
        return fit + ridge * omega.square().sum()

    _minimise(cost, [omega, s, b] if scale else [omega])
    found = omega_of(omega.detach().softmax(1))
    return found * (labels.amax((0, 2)) > 0)[:, None] if per_output else found


def _minimise(cost: Callable[[], Tensor], parameters: list[Tensor]) -> None:
    optimiser = torch.optim.LBFGS(parameters, max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = cost()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(closure)  # type: ignore[no-untyped-call]


def _as_common_as(prior: Tensor, labels: Tensor, kind: TaskType) -> Tensor:
    """Returns weights under which outcomes are as common as ``prior`` [C] says, [N] for exclusive classes, else [N, C].

    Numbers all weigh 1, [N].
    """
    if kind == "regression":
        return torch.ones(len(labels))
    share = probabilities(kind, prior)
    if kind == "multiclass":
        found = torch.bincount(labels, minlength=len(share)).clamp(min=0.5) / len(labels)
        return (share / found)[labels]
    found = labels.mean(0).clamp(min=0.5 / len(labels), max=1 - 0.5 / len(labels))
    return torch.where(labels > 0, share / found, (1 - share) / (1 - found))


def _with_drawn_patterns(teaching: Teaching, labels: Tensor) -> tuple[Teaching, Tensor]:
    """Returns patients twice, with what there is and with a pattern drawn from it: one bias must fit both."""
    drawn = random_patterns(teaching.taught, 1.0, torch.Generator().manual_seed(0))
    twice = replace(teaching, logits=teaching.logits.repeat(2, 1, 1, 1), taught=torch.cat([teaching.taught, drawn]))
    return twice, labels.repeat(2, 1, 1)
