"""What places that train do: a site in teach and refine, the server in distill, a pooled baseline: one code for all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.config import Config, Training
from common.data.cohort import Batch, Cohort
from common.data.patches import Edges, random_patches, windowed
from common.learning.loop import WHOLE, Fit, Span, fit
from common.learning.losses import Lesson, student_loss, task_loss
from common.learning.modality_weights import Evidence, hypergradient, random_patterns, scaling_gradient
from common.learning.modulation import Modulation
from common.models.ensemble import Calibration, CompleteTeacher, Ensembles, consilium
from common.models.fusion import TOKENS, centred, probabilities
from common.models.registry import Encoder
from common.models.student import SHARED, Student, StudentOutput, block_of
from common.models.teacher import Teacher
from common.task import TaskType

META_TRAIN_BATCH, META_BATCH = 128, 512
SCANS = 4  # of volumes, at a time
VOXELS, MOST_VOXELS = 20_000, 2_000_000  # of a scan, of all, to fit a few numbers


def train_teacher(
    teacher: Teacher | CompleteTeacher,
    modality: str,
    train: Cohort,
    training: Training,
    *,
    epochs: int,
    seed: int,
    span: Span = WHOLE,
    validation: Cohort | None = None,
) -> Fit:
    """Trains a teacher in place on the visits that hold its modality (model-ready cohorts).

    Args:
        teacher: What is trained.
        modality: What it reads; ``complete`` for all.
        train: Training visits that hold it, as :meth:`Cohort.holding` returns them.
        training: Optimiser.
        epochs: Most epochs.
        seed: Of this place, round and group.
        span: Of the round in its phase (:func:`common.learning.loop.span_of`).
        validation: If given, the best validated epoch is kept.
    """
    encoders = teacher.network.encoders if isinstance(teacher, CompleteTeacher) else {modality: teacher.encoder}
    train = prepared(train, encoders.items())

    def loss(index: Tensor, generator: torch.Generator) -> Tensor:
        batch = _seen(train.batch(index), teacher.patch, generator)
        return _teacher_loss(teacher, modality, train.task.type, batch)

    validate = (lambda: teacher_loss(teacher, modality, validation)) if validation is not None and len(validation) else None
    return fit(teacher, len(train), loss, training, epochs=epochs, seed=seed, span=span, validate=validate)


def prepared(cohort: Cohort, encoders: Iterable[tuple[str, nn.Module]]) -> Cohort:
    """Returns a model-ready cohort with what encoders, named by their modality, prepare (:meth:`Encoder.prepared`)."""
    named = [(name, cast("Encoder", module)) for name, module in encoders]
    preparing = {name: encoder for name, encoder in named if type(encoder).prepared is not Encoder.prepared}
    by = tuple((name, type(encoder)) for name, encoder in preparing.items())
    return cohort.keeping(("prepared", *by), lambda: _prepared(cohort, preparing))


@torch.no_grad()
def _prepared(cohort: Cohort, encoders: Mapping[str, Encoder]) -> Cohort:
    whole, inputs = cohort.batch(), dict(cohort.inputs)
    for name, encoder in encoders.items():
        held = whole.holders(list(cohort.task.modalities).index(name))  # what the others hold there means nothing
        inputs[name] = whole.spread(encoder.prepared(inputs[name][held]), held)
    return replace(cohort, inputs=inputs)


@torch.no_grad()
def teacher_loss(teacher: Teacher | CompleteTeacher, modality: str, cohort: Cohort) -> float:
    """Returns the mean task loss of what a teacher says of visits that hold what it reads (:meth:`Cohort.holding`)."""
    kind, parts = cohort.task.type, []
    for batch in parts_of(cohort, teacher.patch):
        said = teacher(batch).fused if isinstance(teacher, CompleteTeacher) else teacher(batch.inputs[modality])
        parts.append(task_loss(kind, said, batch.labels))
    return float(torch.cat(parts).mean())


def parts_of(cohort: Cohort, patch: Edges | None) -> Iterator[Batch]:
    """Yields a cohort as one batch; scans a few at a time, always the same patches of them."""
    if cohort.task.type != "segmentation":
        yield cohort.batch()
        return
    generator = torch.Generator().manual_seed(0)
    for index in torch.split(torch.arange(len(cohort)), SCANS):
        yield _seen(cohort.batch(index), patch, generator)


def _seen(batch: Batch, patch: Edges | None, generator: torch.Generator) -> Batch:
    """Returns what a step of training sees of a batch: of volumes a patch, if the configuration says so."""
    return random_patches(batch, patch, generator) if patch else batch


def _teacher_loss(teacher: Teacher | CompleteTeacher, modality: str, kind: TaskType, batch: Batch) -> Tensor:
    """Returns the mean task loss; of the teacher of complete visits that of the fused head and of every unimodal one."""
    if not isinstance(teacher, CompleteTeacher):
        return task_loss(kind, teacher(batch.inputs[modality]), batch.labels).mean()
    output = teacher(batch)
    heads = [output.fused, *output.unimodal.unbind(1)]
    return torch.stack([task_loss(kind, logits, batch.labels).mean() for logits in heads]).mean()


@torch.no_grad()
def student_validation_loss(student: Student, cohort: Cohort) -> float:
    """Returns the student's mean task loss over visits with what they have and over each of their single modalities.

    A student that is good with everything and useless with one modality is not what is wanted, so both count the same. Of single
    modalities count the heads that predict them: the unimodal ones, of volumes the fused decoder.
    """
    kind = cohort.task.type
    whole, alone, present = [], [], []
    for batch in parts_of(cohort, student.patch):
        output: StudentOutput = student(batch)
        whole.append(task_loss(kind, output.prediction(), batch.labels))
        if kind == "segmentation":
            each = torch.eye(output.present.shape[1], dtype=torch.bool)
            said = [student(batch.masked(lone)).prediction() for lone in each]
        else:
            said = list(output.unimodal.unbind(1))
        alone.append(torch.stack([task_loss(kind, logits, batch.labels) for logits in said], 1))
        present.append(output.present)
    held = torch.cat(present)
    single = (torch.cat(alone) * held).sum() / held.sum()
    return float((torch.cat(whole).mean() + single) / 2)


@dataclass(frozen=True)
class Teaching:
    """Teachers' logits of a whole cohort, computed once.

    Attributes:
        logits: [N, M, C]; of V voxels of every patient [N, M, C, V].
        taught: bool [N, M].
        calibration: Of the consilium.
        complete: Of the teacher of complete visits, [N, C], if there is one.
        whole: bool [N], the complete visits.
    """

    logits: Tensor
    taught: Tensor
    calibration: Calibration
    complete: Tensor | None = None
    whole: Tensor | None = None

    def lesson(self, index: Tensor, batch: Batch, omega: Tensor) -> Lesson:
        """Returns what the teachers say of the patients at indices, who stand in the batch with a pattern of their own."""
        taught = self.taught[index] & batch.present
        fused = consilium(self.logits[index], taught, omega.softmax(1), self.calibration)
        lesson = Lesson(self.logits[index], taught, fused, self.calibration.prior)
        if self.complete is None or self.whole is None:
            return lesson
        return replace(lesson, complete=self.complete[index], whole=self.whole[index])

    def evidence(self, kind: TaskType) -> Evidence | None:
        """Returns how the teachers' evidence overlaps, over patients that all of them know; None for voxels."""
        if kind == "segmentation":
            return None
        prior = self.calibration.prior
        share = torch.zeros_like(prior) if kind == "regression" else probabilities(kind, prior)
        return Evidence.of((self.logits - prior)[self.taught.all(1)], share)


@dataclass(frozen=True)
class VolumeTeaching(Teaching):
    """Teachers who are asked about every batch anew: of all voxels of a cohort their logits would fill the memory.

    Attributes:
        ensembles: The teachers; ``logits`` is empty.
    """

    ensembles: Ensembles | None = None

    def lesson(self, index: Tensor, batch: Batch, omega: Tensor) -> Lesson:
        """As of :class:`Teaching`, of the patches in the batch."""
        taught = self.taught[index] & batch.present
        logits: Tensor = cast("Ensembles", self.ensembles)(batch.masked(taught))
        fused = consilium(logits, taught, omega.softmax(1), self.calibration)
        return Lesson(logits, taught, fused, self.calibration.prior)


def teach_cohort(ensembles: Ensembles | None, cohort: Cohort, calibration: Calibration) -> Teaching | None:
    """Returns the teachers' logits of a model-ready cohort; None without teachers or visits."""
    if ensembles is None or not len(cohort):
        return None
    has_teacher = torch.tensor([m in ensembles.modalities() for m in cohort.task.modalities])
    taught = cohort.present & has_teacher
    if cohort.task.type == "segmentation":
        return VolumeTeaching(torch.empty(0), taught, calibration, ensembles=ensembles)
    batch = cohort.batch()
    return Teaching(ensembles(batch), taught, calibration, ensembles.complete(batch), cohort.present.all(1))


def teach_voxels(
    ensembles: Ensembles, cohort: Cohort, calibration: Calibration
) -> tuple[Teaching, Tensor, NDArray[np.int64]] | None:
    """Returns what teachers say of some voxels of every visit, the labels [N, C, V] there, and whose; None if nobody is taught.

    Args:
        ensembles: The teachers.
        cohort: Model-ready, labelled volumes; a patient whose modalities have no teacher is left out.
        calibration: Of the consilium.
    """
    taught = cohort.present & torch.tensor([m in ensembles.modalities() for m in cohort.task.modalities])
    told = taught.any(1)
    if not told.any():
        return None
    cohort = cohort.select(told.numpy())
    number = min(VOXELS, MOST_VOXELS // len(cohort))
    generator = torch.Generator().manual_seed(0)
    logits, labels = [], []
    for batch in parts_of(cohort, None):
        said = windowed(lambda part: ensembles(part).flatten(1, 2), batch, ensembles.patch)
        at = torch.randperm(batch.labels[0, 0].numel(), generator=generator)[:number]
        logits.append(said.reshape(len(said), -1, len(cohort.task.outputs), batch.labels[0, 0].numel())[..., at])
        labels.append(batch.labels.flatten(2)[..., at])
    return Teaching(torch.cat(logits), taught[told], calibration), torch.cat(labels), cohort.patient


def train_student(
    student: Student,
    train: Cohort,
    config: Config,
    training: Training,
    *,
    teaching: Teaching | None,
    epochs: int,
    seed: int,
    span: Span = WHOLE,
    validation: Cohort | None = None,
) -> Fit:
    """Trains a student in place with L, with patterns drawn per patient and omega as it is.

    Args:
        student: What is trained.
        train: Model-ready training visits.
        config: Weights of the loss.
        training: Optimiser.
        teaching: Teachers' logits of ``train``; None trains on labels alone.
        epochs: Most epochs.
        seed: Of this place and round.
        span: Of the round in its phase.
        validation: If given, the best validated epoch is kept.
    """
    train = prepared(train, student.encoders.items())
    whole = train.batch()
    modulated = config.balance.rule == "gradient-modulation" and train.labelled
    modulation = Modulation(train.task, config.balance.strength) if modulated else None

    def loss(index: Tensor, generator: torch.Generator) -> Tensor:
        batch = train.batch(index).masked(_drawn(whole.present[index], config, generator))
        batch = _seen(batch, student.patch, generator)
        lesson = teaching.lesson(index, batch, student.omega) if teaching else None
        output: StudentOutput = student(batch)
        if modulation:
            modulation.see(output, batch)
        return _loss(output, batch, lesson, student.omega, config, labelled=train.labelled)

    validate = (lambda: student_validation_loss(student, validation)) if validation is not None and len(validation) else None
    pace = modulation.pace if modulation else None
    return fit(student, len(train), loss, training, epochs=epochs, seed=seed, span=span, validate=validate, pace=pace)


def _drawn(present: Tensor, config: Config, generator: torch.Generator) -> Tensor:
    return random_patterns(present, config.distill.dropout, generator, by_batch=config.distill.dropout_by == "batch")


def _loss(output: StudentOutput, batch: Batch, lesson: Lesson | None, omega: Tensor, config: Config, *, labelled: bool) -> Tensor:
    return student_loss(
        config.task.type, output, batch, lesson, omega, config.distill, balance=config.balance.rule, labelled=labelled
    )


def block_counts(student: Student, train: Cohort) -> dict[str, int]:
    """Returns the training visits behind every block of the student; what is fused needs visits with two modalities.

    In a segmentation the fused decoder finds regions of a lone modality too.
    """
    several = train.present if train.task.type == "segmentation" else train.present & (train.present.sum(1, keepdim=True) > 1)
    counts = {SHARED: len(train), "fusion": int(several.any(1).sum())}
    for at, modality in enumerate(train.task.modalities):
        counts |= {modality: int(train.present[:, at].sum()), f"{TOKENS}.{modality}": int(several[:, at].sum())}
    blocks = {block_of(name) for name, _ in student.named_parameters()}
    return {block: n for block, n in counts.items() if n and block in blocks}


def trained_blocks(student: Student, counts: Mapping[str, int]) -> dict[str, NDArray[np.float32]]:
    """Returns the parameters of the blocks that have training visits behind them."""
    return {n: p.detach().numpy().copy() for n, p in student.named_parameters() if counts.get(block_of(n))}


def weights_gradient(
    student: Student,
    train: Cohort,
    meta: Cohort,
    config: Config,
    *,
    teaching: Teaching | None,
    generator: torch.Generator,
) -> tuple[Tensor, float]:
    """Returns the gradient of omega [C or 1, M] by ``weights.estimator``, and the outer loss, on one drawn batch of each cohort.

    Batches are large: a gradient of a few events is mostly noise.
    """
    student.eval()
    scans = train.task.type == "segmentation"
    index = torch.randperm(len(train), generator=generator)[: SCANS if scans else META_TRAIN_BATCH]
    inner_batch = train.batch(index).masked(_drawn(train.present[index], config, generator))
    drawn = torch.randperm(len(meta), generator=generator)[: SCANS if scans else META_BATCH]
    meta_batch: Batch = meta.batch(drawn).masked(random_patterns(meta.present[drawn], config.distill.dropout, generator))
    inner_batch, meta_batch = (_seen(b, student.patch, generator) for b in (inner_batch, meta_batch))
    if config.weights.estimator == "metakd":
        return scaling_gradient(student, meta_batch)

    def inner(output: StudentOutput, omega: Tensor) -> Tensor:
        lesson = teaching.lesson(index, inner_batch, omega) if teaching else None
        return _loss(output, inner_batch, lesson, omega, config, labelled=train.labelled)

    return hypergradient(student, inner, inner_batch, meta_batch, config.weights.eta)


def log_odds(task_type: TaskType, positives: NDArray[np.float64], total: float) -> Tensor:
    """Returns the prior [C]: log-odds of every output, or centred log class shares; finite because half an event is added."""
    share = (positives + 0.5) / (total + (len(positives) * 0.5 if task_type == "multiclass" else 1.0))
    values = np.log(share) if task_type == "multiclass" else np.log(share / (1 - share))
    return centred(task_type, torch.from_numpy(values)).float()
