"""Gradient modulation: the encoder of a modality that is ahead learns more slowly, so that the others can catch up.

After OGM-GE (Peng et al., CVPR 2022), which damps the gradient of the better of two modalities. Ours, where that does not fit:

* **Any number of modalities:** the score of each is compared with the geometric mean of the others'.
* **Smooth:** k = 1 - tanh(strength * log ratio) above a ratio of 1. OGM's k jumps there: it damps whoever leads by a hair.
* **Rare outcomes:** the score is the probability of what came true, averaged within each class first. Averaged over patients,
  that of an outcome of one in twenty is nearly the same for every modality.
* **Adam** divides a gradient by its own size: the encoder's learning rate is scaled, with plain SGD the same thing.
* Scores are running sums over batches, because a batch may hold nobody with the outcome. No noise is added (its GE).
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.data.cohort import Batch
from common.learning.losses import task_loss
from common.models.student import StudentOutput
from common.task import Task

KEPT, LEAST = 0.9, 1e-6


class Modulation:
    """Learning rates of the student's encoders while it trains at one place."""

    def __init__(self, task: Task, strength: float) -> None:
        """Args: what is predicted from what; how hard the leader is damped."""
        self.task, self.strength = task, strength
        classes = {"multiclass": len(task.outputs), "regression": 1}.get(task.type, 2 * len(task.outputs))
        self.sums = torch.zeros(len(task.modalities), classes)
        self.counts = torch.zeros_like(self.sums)

    @torch.no_grad()
    def see(self, output: StudentOutput, batch: Batch) -> None:
        """Takes note of what the unimodal heads say of a batch."""
        self.sums *= KEPT
        self.counts *= KEPT
        for m in range(len(self.task.modalities)):
            held = output.present[:, m]
            classes, right = self._right(output.unimodal[held, m].float(), batch.labels[held])
            self.sums[m].index_add_(0, classes, right)
            self.counts[m].index_add_(0, classes, torch.ones_like(right))

    def _right(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the class of every prediction and the probability that it gave to what came true, for numbers exp(-loss)."""
        if self.task.type == "regression":
            return torch.zeros(len(labels), dtype=torch.long), (-task_loss("regression", logits, labels.float())).exp()
        if self.task.type == "multiclass":
            return labels, logits.softmax(1).gather(1, labels[:, None]).squeeze(1)
        right = torch.where(labels > 0, logits, -logits).sigmoid()
        classes = 2 * torch.arange(labels.shape[1]) + labels.long()
        return classes.flatten(), right.flatten()

    def scores(self) -> Tensor:
        """Returns s_m, [M]: the mean over the classes that every modality has met; NaN for one that nobody held.

        All are NaN while there is no such class: who has seen nobody with the outcome would seem to be right about everybody.
        """
        met = self.counts > LEAST
        known = met.any(1)
        common = met[known].all(0) if known.any() else met.any(0)
        means = (self.sums / self.counts.clamp(min=LEAST)).clamp(min=LEAST)
        return torch.where(known & common.any(), (means * common).sum(1) / common.sum(), torch.nan)

    def coefficients(self) -> dict[str, float]:
        """Returns k_m by modality, in [0, 1]: 1 for who is not ahead, and for all while fewer than two can be compared."""
        log = self.scores().log()
        known = ~log.isnan()
        others = known.sum() - 1
        if others < 1:
            return dict.fromkeys(self.task.modalities, 1.0)
        ratio = log - (log.nansum() - log) / others
        k = 1 - torch.tanh(self.strength * ratio.clamp(min=0))
        return dict(zip(self.task.modalities, torch.where(known, k, 1.0).tolist(), strict=True))

    def pace(self) -> dict[str, float]:
        """Returns the shares of the learning rate: beginning of parameters' names -> k_m."""
        return {f"encoders.{name}.": k for name, k in self.coefficients().items()}
