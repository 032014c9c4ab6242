"""MetaKD as its authors released it (arXiv 2405.07155, code billhhh/MetaKD@e66b45f), whole and centralised, as a baseline.

One network on pooled patients: an encoder per modality, concatenation, two layers with dropout. In the place of an absent
modality stands the mean of the present features. Its loss is the task's plus a tenth of the pairwise distillation with the ratio
of the modality weights. The weights take plain gradients: on a few patients the features are multiplied by them. There are two
stages, without and with dropping modalities at random, one draw per batch. The last iterate is used, at the test without weights.

The released code segments brain tumours. For classification the settings are those of ShaSpec by the same group: 60 epochs, Adam,
1e-3, weight decay 1e-2, x 0.9 every 20 epochs. **Ours**, because nobody tells: batches of 32; for the weights twenty visits that
hold the most modalities, all of them in each of twenty steps (released: one by one); stages in the released code's proportion.
The weights' decay of 5e-4 is the released one. Not copied is a defect: it overwrites the mean that it has just filled in.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from common.config import Config
from common.data.cohort import Batch, Cohort, concatenate
from common.evaluation.predictions import STUDENT, Speaker
from common.learning.loop import derive_seed, minibatches
from common.learning.losses import pairwise_loss, task_loss
from common.learning.modality_weights import random_patterns
from common.models.fusion import renormalised
from common.models.registry import build_encoder
from common.models.student import encode, parameters_of
from simulations.baselines import Consortium, Trained, common_ground, refuse_volumes

SETTINGS = ("distill.epochs=60",)
FIRST_STAGE = 80 / 115  # of the iterations
BATCH, LR, WEIGHT_DECAY = 32, 1e-3, 1e-2
DECAY_EVERY, DECAY = 20, 0.9
PAIRWISE = 0.1
META_PATIENTS = 20
WEIGHTS_LR, WEIGHTS_DECAY = 1e-2, 5e-4
WEIGHTS_EVERY = (100, 500)  # iterations, in the first and in the second stage
WEIGHTS_STEPS = 20


class MetaKD(nn.Module):
    """The network, with the logits omega of the modality weights."""

    def __init__(self, config: Config) -> None:
        """Builds it with the student's encoders; initialised from torch's global generator."""
        super().__init__()
        model, task = config.model, config.task
        self.encoders = nn.ModuleDict(
            {n: build_encoder(m, model.student[m.kind], model.width, model.dropout) for n, m in task.modalities.items()}
        )
        hidden = 2 * model.width
        self.head = nn.Sequential(
            nn.Linear(len(task.modalities) * model.width, hidden),
            nn.ReLU(),
            nn.Dropout(model.dropout),
            nn.Linear(hidden, len(task.outputs)),
        )
        self.omega = nn.Parameter(torch.rand(len(task.modalities)))

    def features(self, batch: Batch) -> Tensor:
        """Returns features [B, M, d], zero where absent."""
        return encode(self.encoders, batch).pooled

    def fused(self, features: Tensor, present: Tensor, weights: Tensor | None = None) -> Tensor:
        """Returns logits [B, C]; with weights [M] the features are multiplied by them."""
        equal = torch.ones(features.shape[1])
        mean = (renormalised(equal, present)[:, :, None] * features).sum(1, keepdim=True)
        filled = torch.where(present[:, :, None], features, mean)
        logits: Tensor = self.head((filled if weights is None else filled * weights[:, None]).flatten(1))
        return logits

    def forward(self, batch: Batch) -> Tensor:
        """Returns logits [B, C], as at the test."""
        return self.fused(self.features(batch), batch.present)


def metakd_faithful(consortium: Consortium) -> Trained:
    """Trains it on the patients of all training sites and of the reference set together."""
    config = consortium.config
    refuse_volumes(config, "metakd-faithful")
    scaling, _ = common_ground(consortium.training.values())
    pooled = concatenate(c for _, c in sorted(consortium.training.items())).standardised(scaling)
    seed = derive_seed(config.seed, "metakd")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MetaKD(config)
        generator = torch.Generator().manual_seed(seed)
        train, meta = _meta_patients(pooled, generator)
        curve, weights = _train(network, train, meta, config.distill.epochs, generator)
    network.eval()
    curves: list[dict[str, object]] = [
        {"phase": "train", "round": e, "group": "network", "split": "train", "loss": v} for e, v in enumerate(curve)
    ]
    names = list(config.task.modalities)
    moved: list[dict[str, object]] = [
        {"phase": "train", "round": 0, "step": step, "output": None, "modality": m, "value": w}
        for step, row in enumerate(weights)
        for m, w in zip(names, row, strict=True)
    ]
    return Trained(lambda site: (Speaker(STUDENT, network), scaling), parameters_of(network), {}, curves, moved)


def _meta_patients(pooled: Cohort, generator: torch.Generator) -> tuple[Cohort, Cohort]:
    """Returns training visits, and those of the patients of twenty (at most a fifth) that hold the most modalities."""
    order = torch.randperm(len(pooled), generator=generator)
    fullest = order[pooled.present[order].sum(1).argsort(descending=True, stable=True)]
    patients = pooled.patient[fullest[: min(META_PATIENTS, len(pooled) // 5)].numpy()]
    meta = np.isin(pooled.patient, patients)
    return pooled.select(~meta), pooled.select(meta)


def _train(
    network: MetaKD, train: Cohort, meta: Cohort, epochs: int, generator: torch.Generator
) -> tuple[list[float], list[list[float]]]:
    """Trains network and weights in place; returns the loss per epoch, and the weights after every update."""
    kind = train.task.type
    theta = [p for n, p in network.named_parameters() if n != "omega"]
    adam = torch.optim.Adam(theta, lr=LR, weight_decay=WEIGHT_DECAY)
    decay = torch.optim.lr_scheduler.StepLR(adam, DECAY_EVERY, DECAY)
    on_weights = torch.optim.Adam([network.omega], lr=WEIGHTS_LR, weight_decay=WEIGHTS_DECAY)
    curve, weights, iteration = [], [network.omega.detach().softmax(0).tolist()], 0
    for epoch in range(epochs):
        second = epoch >= round(FIRST_STAGE * epochs)
        losses = []
        for index in minibatches(len(train), BATCH, generator):
            network.train()
            batch = train.batch(index)
            if second:
                batch = batch.masked(random_patterns(batch.present, 1.0, generator, by_batch=True))
            features = network.features(batch)
            pairs = pairwise_loss(features, batch.present, network.omega.detach(), 1.0, "ratio")
            value = (task_loss(kind, network.fused(features, batch.present), batch.labels) + PAIRWISE * pairs).mean()
            adam.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            adam.step()
            losses.append(float(value.detach()) * len(index))
            iteration += 1
            if len(meta) and iteration % WEIGHTS_EVERY[second] == 0:
                _update_weights(network, meta, on_weights, generator, second=second)
                weights.append(network.omega.detach().softmax(0).tolist())
        decay.step()
        curve.append(sum(losses) / len(train))
    return curve, weights


def _update_weights(
    network: MetaKD, meta: Cohort, optimiser: torch.optim.Optimizer, generator: torch.Generator, *, second: bool
) -> None:
    """Takes steps on omega at fixed theta: the plain gradient of the task loss of features multiplied by the weights."""
    network.eval()
    for _ in range(WEIGHTS_STEPS):
        batch = meta.batch()
        if second:
            batch = batch.masked(random_patterns(batch.present, 1.0, generator, by_batch=True))
        with torch.no_grad():
            features = network.features(batch)
        value = task_loss(meta.task.type, network.fused(features, batch.present, network.omega.softmax(0)), batch.labels).mean()
        (network.omega.grad,) = torch.autograd.grad(value, network.omega)
        optimiser.step()
