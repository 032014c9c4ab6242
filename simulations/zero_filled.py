"""One multimodal network with zeros where a modality is absent: what is trained by FedAvg today."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.config import Config
from common.data.cohort import Batch
from common.models.registry import build_encoder
from common.models.teacher import start_at


def zero_filled(config: Config, prior: Tensor) -> nn.Module:
    """Returns a new network that reads zeros for absent modalities; it starts from the prior [C]."""
    return ZeroFilledVolumes(config, prior) if config.task.type == "segmentation" else ZeroFilled(config, prior)


class ZeroFilled(nn.Module):
    """One multimodal network: the student's encoders on zeros where a modality is absent, concatenation, one head."""

    def __init__(self, config: Config, prior: Tensor) -> None:
        """Args: configuration, and log-odds of the outputs in training, [C]."""
        super().__init__()
        model, task = config.model, config.task
        self.names = list(task.modalities)
        self.encoders = nn.ModuleDict(
            {n: build_encoder(m, model.student[m.kind], model.width, model.dropout) for n, m in task.modalities.items()}
        )
        width = model.width
        last = nn.Linear(2 * width, len(task.outputs))
        start_at(last, prior)
        self.head = nn.Sequential(nn.Linear(len(self.names) * width, 2 * width), nn.GELU(), nn.Dropout(model.dropout), last)

    def forward(self, batch: Batch) -> Tensor:
        """Returns logits [B, C]."""
        features = []
        for at, name in enumerate(self.names):
            x = batch.inputs[name]
            held = batch.present[:, at].reshape(-1, *[1] * (x.ndim - 1))
            features.append(self.encoders[name](torch.where(held, x, 0.0)))
        logits: Tensor = self.head(torch.cat(features, 1))
        return logits


class ZeroFilledVolumes(nn.Module):
    """One network of volumes: the student's encoder with a channel per modality, zeros where one is absent, and a decoder."""

    def __init__(self, config: Config, prior: Tensor) -> None:
        """Args as for :class:`ZeroFilled`."""
        super().__init__()
        from common.models.decoders import Decoder  # here: MONAI takes seconds
        from common.models.encoders.volume import CompactVolume

        model, task = config.model, config.task
        self.names = list(task.modalities)
        self.encoder = CompactVolume(task.modalities[self.names[0]], model.width, model.dropout, inputs=len(self.names))
        self.decoder = Decoder(self.encoder.channels, len(task.outputs), model.dropout)
        start_at(self.decoder, prior)

    def forward(self, batch: Batch) -> Tensor:
        """Returns logits [B, C, D, H, W]."""
        held = batch.present[:, :, None, None, None].unbind(1)
        channels = [torch.where(h[:, None], batch.inputs[n], 0.0) for h, n in zip(held, self.names, strict=True)]
        logits: Tensor = self.decoder(self.encoder.maps(torch.cat(channels, 1)))
        return logits
