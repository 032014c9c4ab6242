"""The student of volumes, for segmentation.

The student has one encoder for all modalities, behind which every one of several has a linear projection of its own at every
level: else nothing behind the encoder could tell a lone modality from another. The maps f_m are fused level by level for the
fused decoder; a light decoder per modality is there for that modality's teachers, who teach the encoder through it. What is
predicted, for one modality too, are the fused logits (with ``late`` the light decoders' evidence, averaged). A missing modality's
maps enter the fusion as the weighted mean of the present ones, at every level (MetaKD's released code fills the bottleneck alone,
by the plain mean, and pushes a zero image through the encoder for the rest).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from common.config import ModelConfig
from common.data.cohort import Batch, spread
from common.models.decoders import Decoder, LightDecoder
from common.models.fusion import Features, Late, filled, mean_of_present
from common.models.registry import MapEncoder, build_encoder
from common.models.student import Student, StudentOutput
from common.models.teacher import start_at
from common.task import Task


@dataclass(frozen=True)
class Maps(Features):
    """What the encoder makes of a batch; zero where a modality is absent.

    ``pooled`` is f_m, the bottleneck [B, M, d, D_b, H_b, W_b]; ``tokens`` are the finer levels, [B, M, C_l, D_l, H_l, W_l].
    """

    @property
    def levels(self) -> tuple[Tensor, ...]:
        """Fine to coarse."""
        return (*self.tokens, self.pooled)

    def scaled(self, weights: Tensor) -> Maps:
        """Returns them with the bottleneck multiplied by weights [M], as MetaKD's released code does."""
        return Maps(self.pooled * weights[:, None, None, None, None], self.tokens)


class VolumeStudent(Student):
    """The student of a segmentation task."""

    fusion: nn.ModuleDict

    def _build(self, task: Task, model: ModelConfig) -> None:
        outputs, modalities = len(task.outputs), len(task.modalities)
        modality = next(iter(task.modalities.values()))
        shared = cast("MapEncoder", build_encoder(modality, model.student["volume"], model.width, model.dropout))
        self.shared, self.encoders = nn.ModuleDict({"encoder": shared}), nn.ModuleDict()  # no modality has one of its own
        several = modalities > 1  # a lone one needs nothing to be told by
        self.projections = nn.ModuleDict({n: _unchanged(shared.channels) for n in task.modalities if several})
        self.heads = nn.ModuleDict({n: LightDecoder(shared.channels, outputs) for n in task.modalities})
        self.how, self.fusion = model.fusion, nn.ModuleDict()
        if self.how == "late":
            late = self.fusion["evidence"] = Late(dict.fromkeys(task.modalities, shared), model.width, outputs, model.dropout)
            late.start_at(torch.ones(outputs), torch.zeros(outputs))  # evidence of voxels is averaged, it does not add up
        else:
            if self.how == "joint":
                self.fusion["mix"] = nn.ModuleList(nn.Conv3d(modalities * c, c, kernel_size=1) for c in shared.channels)
            self.fusion["decoder"] = Decoder(shared.channels, outputs, model.dropout)

    def start_at(self, prior: Tensor) -> None:
        """Sets the prior [C], and makes every head start from it."""
        with torch.no_grad():
            self.prior.copy_(prior)
        for decoder in (m for m in self.modules() if isinstance(m, Decoder | LightDecoder)):
            start_at(decoder, prior)

    def start_fusion_at(self, scale: Tensor, bias: Tensor) -> None:
        """Starts the fusion from the consilium's s and b, if it has such parameters."""
        if self.how == "late":
            cast("Late", self.fusion["evidence"]).start_at(scale, bias)

    def features(self, batch: Batch) -> Maps:
        """Returns the maps of every modality; the encoder runs on what is present only, on all of it at once.

        PyTorch gives a batch of one volume to a convolution that takes four times as long for it on a CPU.
        """
        encoder = cast("MapEncoder", self.shared["encoder"])
        held = [batch.holders(at) for at in range(len(self.task.modalities))]
        scans = torch.cat([batch.inputs[name][index] for name, index in zip(self.task.modalities, held, strict=True)])
        levels = []
        for number, level in enumerate(encoder.maps(scans)):
            columns = list(torch.split(level, [len(index) for index in held]))
            for at, projection in enumerate(self.projections.values()):
                columns[at] = cast("nn.ModuleList", projection)[number](columns[at])
            levels.append(torch.stack([batch.spread(rows, index) for rows, index in zip(columns, held, strict=True)], 1))
        *finer, bottleneck = levels
        return Maps(bottleneck, tuple(finer))

    def speak(self, features: Features, present: Tensor) -> StudentOutput:
        """Returns what decoders and fusion make of the maps of the modalities present, bool [B, M]."""
        maps = cast("Maps", features)
        columns = []
        for at, head in enumerate(self.heads.values()):
            held = present[:, at].nonzero().squeeze(1)
            columns.append(spread(head([level[held, at] for level in maps.levels]), held, len(present)))
        heads = torch.stack(columns, 1)
        return StudentOutput(maps.pooled, heads, self._fused(maps, heads, present), present)

    def _fused(self, features: Maps, heads: Tensor, present: Tensor) -> Tensor:
        if self.how == "late":
            evidence: Tensor = self.fusion["evidence"](features, heads, present, self.weights(), self.prior)
            return evidence
        weights = self.weights().mean(0)
        if self.how == "weighted":
            maps = [mean_of_present(level, present, weights) for level in features.levels]
        else:
            mix = cast("nn.ModuleList", self.fusion["mix"])
            maps = [layer(filled(f, present, weights).flatten(1, 2)) for layer, f in zip(mix, features.levels, strict=True)]
        fused: Tensor = self.fusion["decoder"](maps)
        return fused


def _unchanged(channels: Sequence[int]) -> nn.ModuleList:
    """Returns a projection of every level's maps, which at first leaves them as they are."""
    layers = nn.ModuleList(nn.Conv3d(c, c, kernel_size=1) for c in channels)
    for layer in layers:
        nn.init.dirac_(cast("Tensor", layer.weight))
        nn.init.zeros_(cast("Tensor", layer.bias))
    return layers
