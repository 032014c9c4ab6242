"""What a site does for each message."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from client.site import Site
from common.arrays import (
    consilium_of,
    module_arrays,
    moments_arrays,
    standardisation_of,
    tensors,
)
from common.config import Config
from common.data.cohort import Cohort, count_patterns
from common.evaluation.predictions import Speaker, predict_patterns, released_rows, student_speaker, teachers_speakers
from common.learning.lessons import (
    Teaching,
    block_counts,
    calibration_loss,
    student_hypergradient,
    student_validation_loss,
    teach_cohort,
    teacher_loss,
    train_student,
    train_teacher,
    trained_blocks,
)
from common.learning.loop import derive_seed
from common.messages import (
    Arrays,
    EnrolReply,
    EnrolRequest,
    EvaluateReply,
    EvaluateRequest,
    RefineReply,
    RefineRequest,
    TeachReply,
    TeachRequest,
)
from common.models.ensemble import GROUP_SEPARATOR, Calibration, Ensembles, build_teacher
from common.models.student import Student

META_DRAWS = 4
PACKAGES = ("flwr", "torch", "numpy")


def enrol(site: Site, config: Config, request: EnrolRequest) -> EnrolReply:
    """Says what the site holds; counts below the site's limit are hidden, and those that leave so few of the others."""
    site.store_findings()
    least = site.manifest.limits.min_count
    train = site.cohort.part("train")
    trains = site.manifest.role == "train"

    def told(count: int) -> int | None:
        return count if count == 0 or count >= least else None

    if train.labels.dtype == torch.int64:
        labels = [told(n) for n in torch.bincount(train.labels, minlength=len(config.task.outputs)).tolist()]
    else:
        labels = [None if told(len(train) - int(n)) is None else told(int(n)) for n in train.labels.sum(0).tolist()]
    return EnrolReply(
        site=site.manifest.site,
        sites_here=site.sites_here,
        role=site.manifest.role,
        modalities={m: told(len(train.holding(m))) for m in config.task.modalities},
        patterns={p: told(n) for p, n in count_patterns(site.cohort).items()},
        labels=dict(zip(config.task.outputs, labels, strict=True)),
        splits={s: len(site.cohort.part(s)) for s in ("train", "meta", "validation", "test")},
        architectures=site.trainable(config),
        excluded=len({f.row for f in site.cohort.findings}),
        versions={"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in PACKAGES}},
        moments=moments_arrays(site.cohort.moments_told(least)) if trains else {},
        data=site.manifest.data,
        checksum=site.checksum(),
    )


def teach(site: Site, config: Config, request: TeachRequest) -> TeachReply:
    """Trains the teachers of the groups asked for, and validates the parameters received."""
    cohort = site.ready(standardisation_of(request.standardisation))
    train, validation = cohort.part("train"), cohort.part("validation")
    allowed = site.trainable(config)
    trained: dict[str, Arrays] = {}
    counts: dict[str, int] = {}
    validated: dict[str, tuple[float, int]] = {}
    losses: dict[str, float] = {}
    for group in (g for g in request.groups if g in allowed):
        modality = group.split(GROUP_SEPARATOR)[0]
        teacher = build_teacher(group, config.task, config.model)
        teacher.load_state_dict(tensors(request.groups[group]))
        teacher.eval()
        mine, held_out = train.holding(modality), validation.holding(modality)
        if len(held_out) >= site.manifest.limits.min_count:
            validated[group] = (teacher_loss(teacher, modality, held_out), len(held_out))
        training, seed = config.teach.training_of(group), derive_seed(request.seed, group)
        fit = train_teacher(teacher, modality, mine, training, epochs=site.epochs(request.epochs), seed=seed)
        trained[group], counts[group] = module_arrays(teacher), len(mine)
        if fit.training:
            losses[group] = fit.training[-1]
    return TeachReply(site.manifest.site, trained, counts, validated, losses)


def refine(site: Site, config: Config, request: RefineRequest) -> RefineReply:
    """Trains the student's blocks that the site has data for, and says how the modality weights should move."""
    cohort = site.ready(standardisation_of(request.standardisation))
    train, meta, validation = cohort.part("train"), cohort.part("meta"), cohort.part("validation")
    least = site.manifest.limits.min_count
    student = load_student(config, request.student)
    calibration, _ = consilium_of(request.consilium)
    ensembles = load_ensembles(config, request.teachers)
    teaching = teach_cohort(ensembles, train, calibration)
    gradients, meta_count = _meta_gradients(student, train, meta, config, ensembles, teaching, calibration, request.seed, least)
    told = len(validation) >= max(least, 1)
    validated = (student_validation_loss(student, validation), len(validation)) if told else None
    fit = train_student(
        student,
        train,
        config,
        config.refine.training,
        teaching=teaching,
        epochs=site.epochs(request.epochs),
        seed=derive_seed(request.seed, "student"),
        labels=config.refine.labels,
    )
    counts = {block: n for block, n in block_counts(train).items() if n >= least}
    loss = fit.training[-1] if fit.training else None
    return RefineReply(site.manifest.site, trained_blocks(student, counts), counts, validated, loss, gradients, meta_count)


def evaluate(site: Site, config: Config, request: EvaluateRequest) -> EvaluateReply:
    """Evaluates student and teachers for every pattern; predictions stay in the site's folder, released metrics leave it."""
    cohort = site.ready(standardisation_of(request.standardisation)).part("test")
    calibration, omega = consilium_of(request.consilium)
    speakers: list[Speaker] = []
    if request.student:
        speakers.append(student_speaker(load_student(config, request.student)))
    ensembles = load_ensembles(config, request.teachers)
    if ensembles is not None:
        speakers += teachers_speakers(ensembles, calibration, omega)
    predictions = predict_patterns(cohort, speakers)
    site.store_predictions(request.run, predictions)
    rows, withheld = released_rows(predictions, config.task, site.manifest.limits.min_count)
    return EvaluateReply(site.manifest.site, rows, withheld)


def load_student(config: Config, arrays: Arrays) -> Student:
    """Returns the student that a message carries."""
    student = Student(config.task, config.model, per_output=config.weights.per_output)
    student.load_state_dict(tensors(arrays))
    return student.eval()


def load_ensembles(config: Config, teachers: dict[str, Arrays]) -> Ensembles | None:
    """Returns the teachers that a message carries; None if there are none."""
    if not teachers:
        return None
    return Ensembles(config.task, config.model, {g: tensors(a) for g, a in teachers.items()})


def _meta_gradients(
    student: Student,
    train: Cohort,
    meta: Cohort,
    config: Config,
    ensembles: Ensembles | None,
    teaching: Teaching | None,
    calibration: Calibration,
    seed: int,
    least: int,
) -> tuple[Arrays, int]:
    """Returns gradients of omega, s and b on meta visits with several modalities: one alone cannot tell which matters."""
    several = meta.select((meta.present.sum(1) > 1).numpy())
    if config.weights.estimator == "uniform" or len(several) < max(least, 1) or not len(train):
        return {}, 0
    generator = torch.Generator().manual_seed(derive_seed(seed, "meta"))
    labels = config.refine.labels
    draws = [
        student_hypergradient(student, train, several, config, teaching=teaching, generator=generator, labels=labels)[0]
        for _ in range(META_DRAWS)
    ]
    gradients: Arrays = {"omega": torch.stack(draws).mean(0).numpy()}
    on_meta = teach_cohort(ensembles, several, calibration)
    if on_meta is not None and config.distill.scale:
        s, b = calibration.scale.clone().requires_grad_(True), calibration.bias.clone().requires_grad_(True)
        value = calibration_loss(on_meta, several.labels, config.task.type, student.omega, Calibration(s, b, calibration.prior))
        gradients["scale"], gradients["bias"] = (g.numpy() for g in torch.autograd.grad(value, [s, b]))
    return gradients, len(several)
