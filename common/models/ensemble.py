"""Teacher ensembles and the consilium: what the specialists say together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from common.config import Config, ModelConfig
from common.data.cohort import Batch
from common.models.fusion import centred, stated, weighted_evidence
from common.models.student import StudentOutput, build_student
from common.models.teacher import Teacher
from common.task import COMPLETE, Task

GROUP_SEPARATOR = "/"


def group_name(modality: str, architecture: str) -> str:
    """Returns the name of a (modality, architecture) group."""
    return f"{modality}{GROUP_SEPARATOR}{architecture}"


def read_by(group: str) -> str:
    """Returns what the teachers of a group read: a modality, or ``complete`` for all of them."""
    return group.split(GROUP_SEPARATOR)[0]


def groups(task: Task, model: ModelConfig) -> list[str]:
    """Returns every group of a task: (modality, architecture), and the teacher of complete visits with its fusion."""
    complete = [group_name(COMPLETE, model.complete)] if model.complete else []
    return [group_name(n, a) for n, m in task.modalities.items() for a in model.teachers[m.kind]] + complete


def taught(config: Config) -> tuple[str, ...]:
    """Returns what the teachers of a run read: the modalities, and ``complete`` for a teacher of all of them."""
    return (*config.task.modalities, *((COMPLETE,) if config.model.complete else ()))


class CompleteTeacher(nn.Module):
    """A teacher of visits that lack no modality: a student that never has to do without."""

    def __init__(self, task: Task, model: ModelConfig, fusion: str, prior: Tensor | None = None) -> None:
        """Args: what is predicted from what; its encoders; its fusion; the logits [C] that it starts from."""
        super().__init__()
        self.patch = None  # volumes have no such teacher
        self.network = build_student(task, replace(model, fusion=fusion))
        if prior is not None:
            self.network.start_at(prior)

    def forward(self, batch: Batch) -> StudentOutput:
        """Returns what it says of complete visits."""
        output: StudentOutput = self.network(batch)
        return output


def build_teacher(group: str, task: Task, model: ModelConfig, prior: Tensor | None = None) -> Teacher | CompleteTeacher:
    """Returns a new teacher of a group, which starts from the prior [C] if given."""
    name, architecture = group.split(GROUP_SEPARATOR)
    if name == COMPLETE:
        return CompleteTeacher(task, model, architecture, prior)
    outputs, width = len(task.outputs), model.width
    return Teacher(
        task.modalities[name], architecture, outputs, width=width, dropout=model.dropout, prior=prior, patch=model.patch
    )


@dataclass(frozen=True)
class Calibration:
    """What turns the teachers' logits into one statement.

    Attributes:
        scale: s, float32 [C].
        bias: b, float32 [C].
        prior: Log-odds of the outputs in training (centred log class shares for multi-class), float32 [C].
    """

    scale: Tensor
    bias: Tensor
    prior: Tensor


def initial_calibration(task: Task, prior: Tensor, *, scale: bool = True) -> Calibration:
    """Returns s = M, b = 0: with uniform weights the evidence of the modalities simply adds up.

    Without scale, and for voxels, whose evidence is averaged, s = 1.
    """
    if not scale or task.type == "segmentation":
        return Calibration(torch.ones_like(prior), torch.zeros_like(prior), prior)
    return Calibration(torch.full_like(prior, float(len(task.modalities))), torch.zeros_like(prior), prior)


class Ensembles(nn.Module):
    """E_m for every modality: teachers of several architectures; and the teacher of complete visits, if there is one."""

    def __init__(self, task: Task, model: ModelConfig, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Builds the teachers.

        Args:
            task: What is predicted from what.
            model: Architectures.
            states: Group -> parameters.
        """
        super().__init__()
        self.task, self.patch = task, model.patch
        self.members = nn.ModuleDict()
        self.of_complete: CompleteTeacher | None = None
        for group in sorted(states):
            teacher = build_teacher(group, task, model)
            teacher.load_state_dict(dict(states[group]))
            if isinstance(teacher, CompleteTeacher):
                self.of_complete = teacher
            else:
                self.members[group] = teacher
        self.eval()

    def modalities(self) -> set[str]:
        """Returns the modalities that have a teacher."""
        return {read_by(g) for g in self.members}

    @torch.no_grad()
    def complete(self, batch: Batch) -> Tensor | None:
        """Returns the logits [B, C] of the teacher of complete visits, centred over exclusive classes and 0 for the others.

        None if there is no such teacher.
        """
        if self.of_complete is None:
            return None
        held = batch.present.all(1).nonzero().squeeze(1)
        return centred(self.task.type, batch.spread(self.of_complete(batch.taken(held)).fused, held))

    @torch.no_grad()
    def forward(self, batch: Batch) -> Tensor:
        """Returns mean_a z_{m,a}, logits [B, M, C], centred over exclusive classes; zero where absent or without a teacher."""
        columns = []
        for at, name in enumerate(self.task.modalities):
            held, x = batch.holders(at), batch.inputs[name]
            mine = [t for g, t in self.members.items() if read_by(g) == name]
            if mine:
                columns.append(batch.spread(torch.stack([t(x[held]) for t in mine]).mean(0), held))
            else:
                columns.append(torch.zeros(len(batch), len(self.task.outputs), *self._space(x)))
        return centred(self.task.type, torch.stack(columns, 1))

    def _space(self, x: Tensor) -> tuple[int, ...]:
        """Returns the edges behind the logits of inputs: those of the volumes of a segmentation."""
        return tuple(x.shape[2:]) if self.task.type == "segmentation" else ()


def consilium(logits: Tensor, present: Tensor, weights: Tensor, calibration: Calibration) -> Tensor:
    """Returns prior + b + s sum_m w_m (z_m - prior), logits [B, C] ([B, C, D, H, W] of voxels).

    A lone modality's voxels are what its teachers say: the student's fused decoder, which predicts them too, learns it from here.

    Args:
        logits: mean_a z_{m,a}, [B, M, C] ([B, M, C, D, H, W] or [B, M, C, V]).
        present: bool [B, M], modalities present that have teachers.
        weights: w, [C or 1, M]; renormalised over the modalities present for voxels only.
        calibration: s, b and prior.
    """
    evidence = weighted_evidence(logits, present, weights, calibration.prior)
    said = stated(evidence, calibration.scale, calibration.bias, calibration.prior)
    if logits.ndim == 3:
        return said
    space = (1,) * (said.ndim - 2)
    alone = (present.sum(1) == 1).reshape(-1, 1, *space)
    return torch.where(alone, evidence + calibration.prior.reshape(-1, *space), said)
