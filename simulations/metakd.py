"""MetaKD as its authors released it (arXiv 2405.07155, code billhhh/MetaKD@e66b45f), whole and centralised, as a baseline.

One network on pooled patients: an encoder per modality, concatenation, two layers with dropout. In the place of an absent
modality stands the mean of the present features. Its loss is the task's plus a tenth of the pairwise distillation with the ratio
of the modality weights. The weights take plain gradients: on a few patients the features are multiplied by them. There are two
stages, without and with dropping modalities at random, one draw per batch. The last iterate is used, at the test without weights.

The released code segments brain tumours: one encoder for all modalities, of which an absent one shows it zeros; Dice's loss,
averaged over the regions, plus cross-entropy, summed over them; batches of two; for the weights five cases of 285, one by one,
every 100 and every 500 steps. **Ours** there: our compact encoder and decoder instead of a 3-D ResNet-50, no augmentation and
nothing after it, logits of overlapping windows averaged with Gaussian weights instead of probabilities with equal ones, epochs by
the benchmark instead of 115,000 steps, and the optimiser of the methods beside it: the released one
(Nesterov's SGD, 1e-2, momentum .99, polynomial decay) found no region at all in some 2,000 steps. The weights have few updates
then, and the same share of the cases, at least one.

For classification the settings are those of ShaSpec by the same group: 60 epochs (unless a benchmark chose others), Adam, 1e-3,
weight decay 1e-2, x 0.9 every 20 epochs. **Ours** there, because nobody tells: batches of 32; for the weights twenty visits that
hold the most modalities, all of them in each of twenty steps. Stages are in the released code's proportion, the weights' decay of
5e-4 is the released one. Not
copied are two defects: the mean that has just been filled in is overwritten, and the learning rate jumps up again between stages.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from common.config import Config
from common.data.cohort import Batch, Cohort, concatenate
from common.data.patches import Edges, random_patches, windowed
from common.evaluation.predictions import STUDENT, Speaker
from common.learning.loop import ADAM_EPSILON, annealed, derive_seed, minibatches
from common.learning.losses import pairwise_loss, task_loss
from common.learning.modality_weights import random_patterns
from common.models.fusion import Features, filled
from common.models.registry import MapEncoder, build_encoder
from common.models.student import encode, parameters_of
from common.task import TaskType
from simulations.baselines import Consortium, Trained, common_ground

SETTINGS = ("distill.epochs=60",)
FIRST_STAGE = 80 / 115  # of the iterations
BATCH, LR, WEIGHT_DECAY = 32, 1e-3, 1e-2
DECAY_EVERY, DECAY = 20, 0.9
VOLUME_BATCH = 2
PAIRWISE = 0.1
META_PATIENTS, META_CASES = 20, 5 / 285
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

    def features(self, batch: Batch) -> Features:
        """Returns features [B, M, d], zero where absent."""
        return encode(self.encoders, batch)

    def fused(self, features: Features, present: Tensor, weights: Tensor | None = None) -> Tensor:
        """Returns logits [B, C]; with weights [M] the features are multiplied by them."""
        logits: Tensor = self.head(_filled(features.pooled, present, weights).flatten(1))
        return logits

    def forward(self, batch: Batch) -> Tensor:
        """Returns logits [B, C], as at the test."""
        return self.fused(self.features(batch), batch.present)


class MetaKDVolumes(nn.Module):
    """The network of volumes: the mean fills the bottleneck alone, a zero image stands for an absent modality elsewhere."""

    def __init__(self, config: Config) -> None:
        """Args as for :class:`MetaKD`."""
        super().__init__()
        from common.models.decoders import Decoder  # here: MONAI takes seconds

        model, task = config.model, config.task
        self.names = list(task.modalities)
        modality = task.modalities[self.names[0]]
        self.encoder = cast("MapEncoder", build_encoder(modality, model.student["volume"], model.width, model.dropout))
        channels = self.encoder.channels
        self.mix = nn.ModuleList(nn.Conv3d(len(self.names) * c, c, kernel_size=1) for c in channels)
        self.decoder = Decoder(channels, len(task.outputs), model.dropout)
        self.omega = nn.Parameter(torch.rand(len(self.names)))

    def features(self, batch: Batch) -> Features:
        """Returns the maps of every level and modality; those of an absent one are what the encoder makes of zeros."""
        columns = []
        for at, name in enumerate(self.names):
            held = batch.present[:, at, None, None, None, None]
            columns.append(self.encoder.maps(torch.where(held, batch.inputs[name], 0.0)))
        *finer, bottleneck = (torch.stack(level, 1) for level in zip(*columns, strict=True))
        return Features(bottleneck, tuple(finer))

    def fused(self, features: Features, present: Tensor, weights: Tensor | None = None) -> Tensor:
        """Returns logits [B, C, D, H, W]; with weights [M] the bottleneck is multiplied by them."""
        levels = [*features.tokens, _filled(features.pooled, present, weights)]
        logits: Tensor = self.decoder([mix(level.flatten(1, 2)) for mix, level in zip(self.mix, levels, strict=True)])
        return logits

    def forward(self, batch: Batch) -> Tensor:
        """Returns logits [B, C, D, H, W], as at the test."""
        return self.fused(self.features(batch), batch.present)


def _filled(features: Tensor, present: Tensor, weights: Tensor | None) -> Tensor:
    """Returns features [B, M, ...] with the mean of the present ones where one is absent, multiplied by weights [M] if given."""
    full = filled(features, present, torch.ones(features.shape[1]))
    return full if weights is None else full * weights.reshape(-1, *(1,) * (features.ndim - 2))


def metakd_faithful(consortium: Consortium) -> Trained:
    """Trains it on the training and meta patients of all training sites and of the reference set together.

    Nobody needs the validation patients: the last iterate is used.
    """
    config, patch = consortium.config, consortium.config.model.patch
    scaling, _ = common_ground(consortium.training.values())
    pooled = concatenate(c.part("train", "meta") for _, c in sorted(consortium.training.items())).standardised(scaling)
    seed = derive_seed(config.seed, "metakd")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MetaKDVolumes(config) if config.task.type == "segmentation" else MetaKD(config)
        generator = torch.Generator().manual_seed(seed)
        train, meta = _meta_patients(pooled, generator)
        curve, weights = _train(network, train, meta, config, generator)
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
    speaker = Speaker(STUDENT, lambda batch: windowed(network, batch, patch))
    return Trained(lambda site: (speaker, scaling), parameters_of(network), {}, curves, moved)


def _meta_patients(pooled: Cohort, generator: torch.Generator) -> tuple[Cohort, Cohort]:
    """Returns training visits, and those of the patients that hold the most modalities.

    Twenty, or a fifth if that is less; of scans the released share, at least one.
    """
    scans = pooled.task.type == "segmentation"
    most = max(1, round(META_CASES * len(pooled))) if scans else min(META_PATIENTS, len(pooled) // 5)
    order = torch.randperm(len(pooled), generator=generator)
    fullest = order[pooled.present[order].sum(1).argsort(descending=True, stable=True)]
    patients = pooled.patient[fullest[:most].numpy()]
    meta = np.isin(pooled.patient, patients)
    return pooled.select(~meta), pooled.select(meta)


def _train(
    network: MetaKD | MetaKDVolumes, train: Cohort, meta: Cohort, config: Config, generator: torch.Generator
) -> tuple[list[float], list[list[float]]]:
    """Trains network and weights in place; returns the loss per epoch, and the weights after every update."""
    kind, epochs, patch = train.task.type, config.distill.epochs, config.model.patch
    optimiser, decay = _optimiser([p for n, p in network.named_parameters() if n != "omega"], config)
    on_weights = torch.optim.Adam([network.omega], lr=WEIGHTS_LR, weight_decay=WEIGHTS_DECAY)
    curve, weights, iteration = [], [network.omega.detach().softmax(0).tolist()], 0
    for epoch in range(epochs):
        second = epoch >= round(FIRST_STAGE * epochs)
        losses = []
        for index in minibatches(len(train), VOLUME_BATCH if kind == "segmentation" else BATCH, generator):
            network.train()
            batch = _drawn(train.batch(index), patch, generator, second=second)
            features = network.features(batch)
            pairs = pairwise_loss(features.pooled, batch.present, network.omega.detach(), 1.0, "ratio")
            value = (_loss(kind, network.fused(features, batch.present), batch.labels) + PAIRWISE * pairs).mean()
            optimiser.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(float(value.detach()) * len(index))
            iteration += 1
            if len(meta) and iteration % WEIGHTS_EVERY[second] == 0:
                _update_weights(network, meta, on_weights, patch, generator, second=second)
                weights.append(network.omega.detach().softmax(0).tolist())
        decay.step()
        curve.append(sum(losses) / len(train))
    return curve, weights


def _loss(kind: TaskType, logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the loss per sample, [B]; of voxels the released one, which differs from the student's."""
    if kind != "segmentation":
        return task_loss(kind, logits, labels)
    from monai.losses.dice import DiceLoss  # here: it takes seconds

    regions = labels.to(logits.dtype)
    dice: Tensor = DiceLoss(sigmoid=True, reduction="none", smooth_nr=0.0, smooth_dr=1.0)(logits, regions).flatten(1).mean(1)
    crossed = functional.binary_cross_entropy_with_logits(logits, regions, reduction="none").flatten(2).mean(2).sum(1)
    return dice + crossed


def _optimiser(theta: list[nn.Parameter], config: Config) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    if config.task.type == "segmentation":
        training, epochs = config.distill.training, config.distill.epochs
        adamw = torch.optim.AdamW(theta, lr=training.lr, weight_decay=training.weight_decay, eps=ADAM_EPSILON)
        decay = (lambda epoch: annealed(1.0, epoch / epochs)) if training.anneal else (lambda _: 1.0)
        return adamw, torch.optim.lr_scheduler.LambdaLR(adamw, decay)
    adam = torch.optim.Adam(theta, lr=LR, weight_decay=WEIGHT_DECAY)
    return adam, torch.optim.lr_scheduler.StepLR(adam, DECAY_EVERY, DECAY)


def _drawn(batch: Batch, patch: Edges | None, generator: torch.Generator, *, second: bool) -> Batch:
    """Returns what a step sees of a batch: a patch of every scan, and in the second stage a pattern drawn for the whole batch."""
    seen = random_patches(batch, patch, generator) if patch else batch
    return seen.masked(random_patterns(seen.present, 1.0, generator, by_batch=True)) if second else seen


def _update_weights(
    network: MetaKD | MetaKDVolumes,
    meta: Cohort,
    optimiser: torch.optim.Optimizer,
    patch: Edges | None,
    generator: torch.Generator,
    *,
    second: bool,
) -> None:
    """Takes steps on omega at fixed theta: the plain gradient of the task loss of features multiplied by the weights."""
    network.eval()
    for step in range(WEIGHTS_STEPS):
        one = torch.tensor([step % len(meta)]) if meta.task.type == "segmentation" else None
        batch = _drawn(meta.batch(one), patch, generator, second=second)
        with torch.no_grad():
            features = network.features(batch)
        value = _loss(meta.task.type, network.fused(features, batch.present, network.omega.softmax(0)), batch.labels).mean()
        (network.omega.grad,) = torch.autograd.grad(value, network.omega)
        optimiser.step()
