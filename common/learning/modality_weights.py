"""Meta-learned modality weights: was it a help to learn with these weights?

    inner:  theta'(omega) = theta - eta grad_theta L(theta, omega; train batch)
    outer:  omega <- omega - rho grad_omega l_val(theta'(omega); meta batch)

``lookahead`` (ours) differentiates through the virtual step. ``metakd`` is what MetaKD's released code does instead: at fixed
theta, the plain gradient of the task loss of features that are scaled by the weights; whether distilling with these weights
helped, it is never told.

Twenty events teach it little: where the specialists are calibrated it may start from the overlap of their evidence
(:class:`Evidence`, ours).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from common.data.cohort import Batch
from common.learning.losses import task_loss
from common.models.student import Student, StudentOutput

Parameters = dict[str, Tensor]
InnerLoss = Callable[[StudentOutput, Tensor], Tensor]

LEAST_COMPLETE = 30
LEAST_WEIGHT = 0.05


@dataclass(frozen=True)
class Evidence:
    """How the evidence z_m - prior of calibrated specialists varies and overlaps.

    Calibrated evidence that is Gaussian within each class lies apart between the classes by its variance within them. Its best
    sum is then known without a label: Fisher's discriminant. A specialist who repeats what another says counts less, one whose
    evidence varies more counts more.

    Attributes:
        covariance: [C, M, M] over patients with every modality, all classes together.
        spread: p (1 - p) of every output, [C]; 0 for regression: calibrated evidence covaries with the target by its variance.
    """

    covariance: Tensor
    spread: Tensor

    @classmethod
    def of(cls, evidence: Tensor, share: Tensor) -> Evidence | None:
        """Returns the evidence of patients, its correlation shrunk by Ledoit and Wolf (2004); None with too few of them.

        Args:
            evidence: z_m - prior of patients with every modality, [N, M, C].
            share: p of every output, [C]; 0 for regression.
        """
        from sklearn.covariance import ledoit_wolf  # here: sites, who start a process per message, have no use for it

        if len(evidence) < LEAST_COMPLETE:
            return None
        found = []
        for each in evidence.double().unbind(2):
            deviation = each.std(0).clamp(min=1e-6)
            correlation, _ = ledoit_wolf(((each - each.mean(0)) / deviation).numpy())
            found.append(torch.from_numpy(correlation) * deviation[:, None] * deviation[None, :])
        return cls(torch.stack(found), (share * (1 - share)).double())

    def shift(self) -> Tensor:
        """Returns how far the evidence of the two classes lies apart, [C, M]: v of total variance = v + p (1 - p) v^2."""
        total = self.covariance.diagonal(dim1=1, dim2=2)
        four = 4 * self.spread[:, None]
        apart: Tensor = 2 * total / ((1 + four * total).sqrt() + 1)
        return apart

    def omega(self, *, per_output: bool) -> Tensor:
        """Returns omega [C or 1, M] whose softmax is the best sum; what it would subtract counts a little."""
        best: Tensor = torch.linalg.solve(self.covariance, self.shift())
        weights = best.clamp(min=0) / best.clamp(min=0).sum(1, keepdim=True).clamp(min=1e-12)
        return omega_of(weights if per_output else weights.mean(0, keepdim=True)).float()

    def scale(self, weights: Tensor) -> Tensor:
        """Returns the best s [C] of a weighted sum, at most what independent specialists deserve.

        Args:
            weights: w, [C or 1, M].
        """
        w, shift = weights.double().expand(len(self.covariance), -1), self.shift()
        apart = (w * shift).sum(1)
        within = torch.einsum("cm,cmn,cn->c", w, self.covariance, w) - self.spread * apart**2
        return (apart / torch.maximum(within, (w**2 * shift).sum(1))).float()


def omega_of(weights: Tensor) -> Tensor:
    """Returns omega [.., M], with mean 0, whose softmax are the weights; who would count nothing counts a little."""
    log = weights.clamp(min=LEAST_WEIGHT / weights.shape[1]).log()
    return log - log.mean(1, keepdim=True)


def random_patterns(present: Tensor, share: float, generator: torch.Generator, *, by_batch: bool = False) -> Tensor:
    """Returns patterns cut down to a random non-empty subset.

    Args:
        present: bool [B, M], each row with at least one modality.
        share: Share of the samples (batches) that are cut.
        generator: Source of randomness.
        by_batch: Whether one subset is drawn for the whole batch, as in MetaKD's released code; a sample that has nothing of it
            stays as it is. By default every sample has its own.

    Returns:
        bool [B, M], a subset of ``present``.
    """
    if by_batch:
        drawn = random_patterns(torch.ones_like(present[:1]), share, generator)
        return torch.where((present & drawn).any(1, keepdim=True), present & drawn, present)
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


def scaling_gradient(student: Student, meta: Batch) -> tuple[Tensor, float]:
    """Returns the gradient of omega [C or 1, M] as MetaKD's released code takes it, and the loss behind it.

    The features of the meta batch are multiplied by softmax(omega), the mean row of it, before heads and fusion see them.

    Args:
        student: theta and omega; unchanged.
        meta: Patients whose patterns have been sampled.
    """
    omega = student.omega.detach().clone().requires_grad_(True)
    weights = omega.softmax(1).mean(0)
    with torch.no_grad():
        features = student.features(meta)
    output = student.speak(features.scaled(weights), meta.present)
    value = task_loss(student.task.type, output.prediction(), meta.labels).mean()
    (gradient,) = torch.autograd.grad(value, omega)
    return gradient, float(value.detach())


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
