"""Meta-learned modality weights: was it a help to learn with these weights?

    inner:  theta'(omega) = theta - eta grad_theta L(theta, omega; train batch)
    outer:  omega <- omega - rho grad_omega l_val(theta'(omega); meta batch)

``lookahead`` (ours) differentiates through the virtual step. MetaKD's released code scales features by the weights instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.func import functional_call

from common.data.cohort import Batch
from common.learning.losses import task_loss
from common.models.student import Student, StudentOutput

Parameters = dict[str, Tensor]
InnerLoss = Callable[[StudentOutput, Tensor], Tensor]


def random_patterns(present: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Returns patterns cut down to a random non-empty subset, drawn per sample.

    Args:
        present: bool [B, M], each row with at least one modality.
        share: Share of the samples that are cut.
        generator: Source of randomness.

    Returns:
        bool [B, M], a subset of ``present``.
    """
    score = torch.rand(present.shape, generator=generator).masked_fill(~present, torch.inf)
    held = present.sum(1)
    keep = (torch.rand(len(present), generator=generator) * held).floor() + 1
    keep = torch.where(torch.rand(len(present), generator=generator) < share, keep, held)
    rank = score.argsort(1).argsort(1)
    return present & (rank < keep[:, None])


def outer_loss(student: Student, parameters: Mapping[str, Tensor], omega: Tensor, meta: Batch) -> Tensor:
    """Returns the mean task loss of the student's prediction on a meta batch.

    Args:
        student: Architecture.
        parameters: theta'.
        omega: [C or 1, M].
        meta: Patients whose patterns have been sampled.
    """
    output: StudentOutput = functional_call(student, {**parameters, "omega": omega, "prior": student.prior}, (meta,))
    return task_loss(student.task.type, output.prediction(), meta.labels).mean()


def hypergradient(student: Student, inner: InnerLoss, train: Batch, meta: Batch, eta: float) -> tuple[Tensor, float]:
    """Returns d l_val(theta'(omega)) / d omega through one virtual SGD step, and the outer loss.

    Args:
        student: theta and omega; unchanged.
        inner: From the student's output on ``train`` and omega to L.
        train: Batch of the virtual step.
        meta: Batch of the outer loss.
        eta: Learning rate of the virtual step.

    Returns:
        Gradient [C or 1, M], and l_val.
    """
    omega = student.omega.detach().clone().requires_grad_(True)
    theta = {n: p.detach().clone().requires_grad_(True) for n, p in student.named_parameters()}
    output: StudentOutput = functional_call(student, {**theta, "omega": omega, "prior": student.prior}, (train,))
    gradients = torch.autograd.grad(inner(output, omega), list(theta.values()), create_graph=True, allow_unused=True)
    moved = {n: p if g is None else p - eta * g for (n, p), g in zip(theta.items(), gradients, strict=True)}
    value = outer_loss(student, moved, omega, meta)
    (gradient,) = torch.autograd.grad(value, omega, allow_unused=True)
    return torch.zeros_like(omega) if gradient is None else gradient, float(value.detach())


class OmegaAdam:
    """Adam on omega, fed with normalised hypergradients; its state is a few numbers that a checkpoint keeps."""

    def __init__(self, omega: Tensor, rho: float, state: Mapping[str, Tensor] | None = None) -> None:
        """Args: omega [C or 1, M]; the learning rate; the state of an earlier one."""
        self.omega = omega.detach().clone().requires_grad_(True)
        self._adam = torch.optim.Adam([self.omega], lr=rho)
        if state:
            self._adam.state[self.omega] = {k: v.clone() for k, v in state.items()}

    def step(self, gradient: Tensor) -> Tensor:
        """Takes a step and returns the new omega."""
        norm = gradient.norm()
        self.omega.grad = gradient / norm if norm > 0 else gradient.clone()
        self._adam.step()
        with torch.no_grad():
            self.omega -= self.omega.mean(1, keepdim=True)  # softmax does not see a common shift
        return self.omega.detach().clone()

    def state(self) -> dict[str, Tensor]:
        """Returns the state, small tensors."""
        return {k: v.clone() for k, v in self._adam.state[self.omega].items()}
