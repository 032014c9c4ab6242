"""Teachers -> student on the reference set, and the meta-learned modality weights there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold
from torch import Tensor

from common.config import Config
from common.data.cohort import Cohort
from common.learning.calibration import fit_calibration, stacked_weights
from common.learning.lessons import Teaching, prepared, teach_cohort, teach_voxels, train_student, weights_gradient
from common.learning.loop import Fit, derive_seed
from common.learning.losses import task_loss
from common.learning.modality_weights import Evidence, OmegaAdam
from common.models.ensemble import Calibration, Ensembles, consilium, initial_calibration
from common.models.student import Student, build_student
from common.task import TaskType

FOLDS = 5
REFERENCE = "reference set"  # as the name of a place: no site can have it, it holds a space
Progress = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class Distilled:
    """A student, and what it learned from.

    Attributes:
        student: With its omega and prior.
        calibration: Of the consilium.
        fit: Curves of its training.
        adam: State of Adam on omega.
        equal_weights: Whether learned weights were dropped, because they were not resolved better than equal ones.
        equal_start: Whether omega starts from equal weights although the evidence was asked for: it tells too little.
    """

    student: Student
    calibration: Calibration
    fit: Fit
    adam: dict[str, Tensor]
    equal_weights: bool
    equal_start: bool


def new_student(config: Config, prior: Tensor) -> Student:
    """Returns a student initialised from the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "student"))
        student = build_student(config.task, config.model, per_output=config.weights.per_output)
    student.start_at(prior)
    return student


def distil(
    config: Config, reference: Cohort, ensembles: Ensembles, unseeing: Ensembles, prior: Tensor, progress: Progress
) -> Distilled:
    """Trains the student on the reference set.

    Args:
        config: Of the run.
        reference: Model-ready reference set.
        ensembles: The teachers.
        unseeing: The teachers before they saw the reference set: s, b and omega are fitted with them.
        prior: Log-odds of the outputs in training, [C].
        progress: Told (step, omega) after every step on omega.
    """
    student = new_student(config, prior)
    start = initial_calibration(config.task, prior, scale=config.distill.scale)
    adam: dict[str, Tensor] = {}
    teaching, labels, patient = _teaching(unseeing, reference, start)
    evidence = teaching.evidence(config.task.type) if teaching else None
    learned, per_output = config.weights.estimator != "uniform", config.weights.per_output
    if learned and config.weights.start == "evidence":
        if evidence is not None:
            student.omega.copy_(evidence.omega(per_output=per_output))
        elif reference.task.type == "segmentation" and teaching is not None and labels is not None:
            stacked = stacked_weights(teaching, labels, start, scale=config.distill.scale, per_output=per_output)
            student.omega.copy_(stacked)
    equal_start = learned and config.weights.start == "evidence" and not bool(student.omega.any())
    progress(0, student.omega)
    calibration = calibrated(config, labels, teaching, evidence, student.omega, start)
    equal = False
    if learned and reference.labelled:
        adam = learn_weights(config, student, reference, unseeing, calibration, progress)
        calibration = calibrated(config, labels, teaching, evidence, student.omega, start)
        if config.weights.guard and teaching is not None and labels is not None:
            even = torch.zeros_like(student.omega)
            at_even = calibrated(config, labels, teaching, evidence, even, start)
            equal = not resolved_better(
                config.task.type, teaching, labels, patient, (student.omega, calibration), (even, at_even)
            )
            if equal:
                student.omega.copy_(even)
                calibration, adam = at_even, {}
                progress(config.weights.steps + 1, even)
    if config.distill.gamma:  # who does not learn from the consilium does not start from it either
        student.start_fusion_at(calibration.scale, calibration.bias)
    train, validation = training_part(config, reference), reference.part("validation")
    fit = train_student(
        student,
        train,
        config,
        config.distill.training,
        teaching=teach_cohort(ensembles, train, calibration),
        epochs=config.distill.epochs,
        seed=derive_seed(config.seed, "distill"),
        validation=validation if reference.labelled else None,
    )
    return Distilled(student, calibration, fit, adam, equal, equal_start)


def _teaching(
    ensembles: Ensembles, reference: Cohort, calibration: Calibration
) -> tuple[Teaching | None, Tensor | None, NDArray[np.int64]]:
    """Returns what teachers say of the reference set, its labels if there are any, and whose; of volumes that of some voxels."""
    labels = reference.labels if reference.labelled and len(reference) else None
    if reference.task.type != "segmentation":
        return teach_cohort(ensembles, reference, calibration), labels, reference.patient
    heard = None if labels is None else teach_voxels(ensembles, reference, calibration)
    return heard or (None, None, reference.patient)


def resolved_better(
    kind: TaskType,
    teaching: Teaching,
    labels: Tensor,
    patient: NDArray[np.int64],
    one: tuple[Tensor, Calibration],
    other: tuple[Tensor, Calibration],
) -> bool:
    """Returns whether one consilium is better than another on the reference patients by more than a standard error.

    The one-standard-error rule (Breiman et al., 1984) on paired task losses of the visits with several modalities: of weights
    that cannot be told apart, the simpler ones are taken. The error is robust to clusters (Liang and Zeger, 1986): visits of one
    patient are no independent ones. Weights, s and b were fitted on these visits; only the teachers have not seen them.

    Args:
        kind: Type of the task.
        teaching: What teachers say who never saw these patients.
        labels: Of the visits.
        patient: Number of each visit's patient [N].
        one: omega [C or 1, M] and the calibration that belongs to it.
        other: The simpler one.
    """
    several = teaching.taught.sum(1) > 1
    people, whose = np.unique(patient[several.numpy()], return_inverse=True)
    if len(people) < 2:
        return False
    losses = []
    for omega, calibration in (one, other):
        said = consilium(teaching.logits, teaching.taught, omega.softmax(1), calibration)
        losses.append(task_loss(kind, said, labels)[several])
    gain = losses[1] - losses[0]
    apart = np.bincount(whose, weights=(gain - gain.mean()).double().numpy())
    error = (len(people) / (len(people) - 1) * np.square(apart).sum()) ** 0.5 / len(gain)
    return bool(gain.mean() > error)


def calibrated(
    config: Config,
    labels: Tensor | None,
    teaching: Teaching | None,
    evidence: Evidence | None,
    omega: Tensor,
    start: Calibration,
) -> Calibration:
    """Returns s and b for the weights as they are: from the evidence's overlap, then fitted if the reference set has labels.

    Args:
        config: Of the run; with ``distill.scale`` off s and b stay as they are.
        labels: Of patients whom the teachers of ``teaching`` never saw; None if nobody knows them.
        teaching: What they say of them.
        evidence: How their evidence overlaps, if enough patients tell.
        omega: [C or 1, M].
        start: s and b without any of that.
    """
    if teaching is None or not config.distill.scale:
        return start
    if evidence is not None:
        start = Calibration(evidence.scale(omega.softmax(1)), torch.zeros_like(start.bias), start.prior)
    return start if labels is None else fit_calibration(teaching, labels, config.task.type, omega, start)


def learn_weights(
    config: Config, student: Student, reference: Cohort, ensembles: Ensembles, calibration: Calibration, progress: Progress
) -> dict[str, Tensor]:
    """Learns omega by ``weights.estimator`` and writes it into the student; theta is left as it was.

    Shadow students learn with the current omega on the training part of a fold, an epoch per step, and every fold's meta part
    says whether a virtual step with these weights helped. With fewer events than ``weights.cross_fit_below`` there are five
    patient folds, so that every patient serves as meta patient for a shadow that never saw it; else there is one fold, the
    split's.

    Returns:
        State of Adam on omega.
    """
    folds = _meta_folds(config, reference)
    shadows = [copy.deepcopy(student) for _ in folds]
    teachings: list[Teaching | None] = [teach_cohort(ensembles, train, calibration) for train, _ in folds]
    encoders = list(student.encoders.items())
    folds = [(prepared(train, encoders), prepared(meta, encoders)) for train, meta in folds]
    adam = OmegaAdam(student.omega, config.weights.rho)
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "weights"))
    for step in range(config.weights.steps if folds else 0):
        gradients = []
        for k, (shadow, teaching, (train, meta)) in enumerate(zip(shadows, teachings, folds, strict=True)):
            seed = derive_seed(config.seed, "weights", step, k)
            train_student(shadow, train, config, config.distill.training, teaching=teaching, epochs=1, seed=seed)
            gradients.append(weights_gradient(shadow, train, meta, config, teaching=teaching, generator=generator)[0])
        omega = adam.step(torch.stack(gradients).mean(0))
        for each in (student, *shadows):
            each.omega.copy_(omega)
        progress(step + 1, omega)
    return adam.state()


def training_part(config: Config, reference: Cohort) -> Cohort:
    """Returns whom the student learns from: meta patients too, once they have been used by cross-fitting or by nobody."""
    return reference.part("train") if _own_meta(config, reference) else reference.part("train", "meta")


def _own_meta(config: Config, reference: Cohort) -> bool:
    meta = reference.part("meta")
    return reference.labelled and config.weights.estimator != "uniform" and meta.events() >= config.weights.cross_fit_below


def _meta_folds(config: Config, reference: Cohort) -> list[tuple[Cohort, Cohort]]:
    """Returns (train, meta) cohorts; meta visits hold at least two modalities, one alone cannot tell which matters."""
    if _own_meta(config, reference):
        pairs = [(reference.part("train"), reference.part("meta"))]
    else:
        pool = reference.part("train", "meta")
        number = min(FOLDS, len(np.unique(pool.patient)))
        splits: list[tuple[Any, Any]] = list(GroupKFold(number).split(pool.row, groups=pool.patient)) if number > 1 else []
        pairs = [(pool.select(train), pool.select(meta)) for train, meta in splits]
    several = [(train, meta.select((meta.present.sum(1) > 1).numpy())) for train, meta in pairs]
    return [(train, meta) for train, meta in several if len(train) and len(meta)]
