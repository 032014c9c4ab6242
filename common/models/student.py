"""The compact multimodal student: one encoder and one head per modality, and a fused head (MIND's multi-head joint fusion)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from common.config import ModelConfig
from common.data.cohort import Batch
from common.models.fusion import TOKENS, Features, centred
from common.models.registry import Encoder, Fusion, build_encoder, build_fusion
from common.models.teacher import start_at
from common.task import Task

SHARED = "shared"


@dataclass(frozen=True)
class StudentOutput:
    """What the student says of a batch.

    Attributes:
        features: f_m, [B, M, d]; zero where a modality is absent.
        unimodal: h_m, logits [B, M, C], centred over exclusive classes; zero where a modality is absent.
        fused: h_F, logits [B, C].
        present: bool [B, M].

    Of volumes features are the maps [B, M, d, D_b, H_b, W_b], and all logits have the edges D, H, W behind.
    """

    features: Tensor
    unimodal: Tensor
    fused: Tensor
    present: Tensor

    def prediction(self) -> Tensor:
        """Returns logits [B, C]: the unimodal head's where a single modality is present, else the fused head's.

        Of volumes always the fused head's, which has the one full decoder.
        """
        if self.fused.ndim > 2:
            return self.fused
        alone = self.present.sum(1, keepdim=True) == 1
        return torch.where(alone, self.unimodal.sum(1), self.fused)


class Student(nn.Module):
    """f_m, h_m, F and h_F, with the modality weights omega and the prior as buffers."""

    omega: Tensor
    prior: Tensor

    def __init__(self, task: Task, model: ModelConfig, *, per_output: bool = False) -> None:
        """Builds the network; initialised from torch's global generator.

        Args:
            task: What is predicted from what.
            model: Architectures, width and fusion.
            per_output: Whether omega has a row per output.
        """
        super().__init__()
        self.task, self.patch = task, model.patch
        self._build(task, model)
        self.register_buffer("omega", torch.zeros(len(task.outputs) if per_output else 1, len(task.modalities)))
        self.register_buffer("prior", torch.zeros(len(task.outputs)))

    def _build(self, task: Task, model: ModelConfig) -> None:
        outputs = len(task.outputs)
        encoders = {n: build_encoder(m, model.student[m.kind], model.width, model.dropout) for n, m in task.modalities.items()}
        self.encoders = nn.ModuleDict(encoders)
        self.heads = nn.ModuleDict({n: nn.Linear(model.width, outputs) for n in task.modalities})
        self.fusion: nn.Module = build_fusion(model.fusion, encoders, model.width, outputs, model.dropout)

    def start_at(self, prior: Tensor) -> None:
        """Sets the prior [C], and makes every head start from it."""
        with torch.no_grad():
            self.prior.copy_(prior)
        for head in (h for h in self.heads.values() if isinstance(h, nn.Linear)):
            start_at(head, prior)
        layers = [m for m in self.fusion.modules() if isinstance(m, nn.Linear)]
        if layers and layers[-1].bias is not None:  # a correction of late fusion has none
            start_at(layers[-1], prior)

    def start_fusion_at(self, scale: Tensor, bias: Tensor) -> None:
        """Starts the fusion from the consilium's s and b, if it has such parameters."""
        cast("Fusion", self.fusion).start_at(scale, bias)

    def weights(self) -> Tensor:
        """Returns w = softmax(omega), [C or 1, M]."""
        return self.omega.softmax(1)

    def features(self, batch: Batch) -> Features:
        """Returns f_m, and their tokens if the fusion reads them."""
        return encode(self.encoders, batch, tokens=cast("Fusion", self.fusion).reads_tokens)

    def speak(self, features: Features, present: Tensor) -> StudentOutput:
        """Returns what heads and fusion make of the features of the modalities present, bool [B, M]."""
        logits = torch.stack([head(features.pooled[:, at]) for at, head in enumerate(self.heads.values())], 1)
        heads = centred(self.task.type, logits * present[:, :, None])
        fused = self.fusion(features, heads, present, self.weights(), self.prior)
        return StudentOutput(features.pooled, heads, fused, present)

    def forward(self, batch: Batch) -> StudentOutput:
        """Returns what the student says of a batch."""
        return self.speak(self.features(batch), batch.present)


def build_student(task: Task, model: ModelConfig, *, per_output: bool = False) -> Student:
    """Returns a new student for a task; args as for :class:`Student`."""
    if task.type != "segmentation":
        return Student(task, model, per_output=per_output)
    from common.models.volume import VolumeStudent  # here: MONAI takes seconds

    return VolumeStudent(task, model, per_output=per_output)


def encode(encoders: nn.ModuleDict, batch: Batch, *, tokens: bool = False) -> Features:
    """Returns features, zero where absent; with ``tokens`` also what they were made of.

    Every encoder runs on the patients that hold its modality only: what an absent one holds cannot matter.
    """
    pooled, parts, seen = [], [], []
    for at, (name, encoder) in enumerate(encoders.items()):
        held = batch.holders(at)
        x = batch.inputs[name][held]
        if tokens:
            reading = cast("Encoder", encoder).read(x)
            parts.append(batch.spread(reading.tokens, held))
            seen.append(batch.spread(reading.seen, held))
            pooled.append(batch.spread(reading.feature, held))
        else:
            pooled.append(batch.spread(encoder(x), held))
    return Features(torch.stack(pooled, 1), tuple(parts), tuple(seen))


def block_of(parameter: str) -> str:
    """Returns the block that a parameter of the student is aggregated with: a modality, ``fusion``, or ``shared`` by all.

    What a fusion holds of one modality is a block of its own, ``tokens.<modality>``: it learns from visits with another one.
    """
    room, name, *rest = parameter.split(".")
    if room == SHARED:
        return SHARED
    if room == "fusion":
        return f"{TOKENS}.{rest[0]}" if name == TOKENS else "fusion"
    return name


def parameters_of(module: nn.Module) -> int:
    """Returns the number of trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
