"""What a site does for each message."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping

import torch

from client.site import Site
from common.arrays import (
    Arrays,
    consilium_of,
    module_arrays,
    moments_arrays,
    standardisation_of,
    tensors,
)
from common.config import Config
from common.data.cohort import SPLITS, Cohort, count_patterns
from common.evaluation.predictions import Speaker, predict_patterns, released_rows, student_speaker, teachers_speakers
from common.learning.calibration import calibration_loss
from common.learning.lessons import (
    Teaching,
    block_counts,
    student_validation_loss,
    teach_cohort,
    teacher_loss,
    train_student,
    train_teacher,
    trained_blocks,
    weights_gradient,
)
from common.learning.loop import derive_seed, span_of
from common.messages import (
    EnrolReply,
    EnrolRequest,
    EvaluateReply,
    EvaluateRequest,
    RefineReply,
    RefineRequest,
    TeachReply,
    TeachRequest,
)
from common.models.ensemble import Calibration, Ensembles, build_teacher, read_by, taught
from common.models.student import Student, build_student

META_DRAWS = 4
PACKAGES = ("flwr", "torch", "numpy")


def enrol(site: Site, config: Config, request: EnrolRequest) -> EnrolReply:
    """Says what the site holds; counts below the site's limit are hidden, and those from which they could be told.

    * Patterns and classes: the visits of all splits, or of the training split, are their sum (:func:`hide_small`).
    * An output of a binary or multi-label task: hidden too where few visits lack it.
    * Splits: the server needs a number that none of the site's counts exceeds, so that a small one is told as the limit. Their
      sum, which the patterns would tell, is hidden then.

    What is not guarded: the training visits that *lack* a modality can be few and told, because the number of those that hold it
    is the weight of the site's teachers; and what patterns, modalities and later messages say of the same visits is not audited
    together.
    """
    site.store_findings()
    least = site.manifest.limits.min_count
    train = site.cohort.part("train")
    trains = site.manifest.role == "train"
    splits = {s: len(site.cohort.part(s)) for s in SPLITS}
    small_split = any(0 < n < least for n in splits.values())
    return EnrolReply(
        site=site.manifest.site,
        sites_here=site.sites_here,
        role=site.manifest.role,
        modalities={m: _told(len(train.holding(m)), least) for m in taught(config)},
        patterns=hide_small(count_patterns(site.cohort), least, total=small_split),
        labels=_told_labels(train, least),
        splits={s: n and max(n, least) for s, n in splits.items()},
        architectures=site.trainable(config),
        excluded=site.cohort.excluded,
        versions={"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in PACKAGES}},
        moments=moments_arrays(site.cohort.moments_told(least)) if trains else {},
        data=site.manifest.data,
        checksum=site.checksum(),
    )


def hide_small(counts: Mapping[str, int], least: int, *, total: bool = False) -> dict[str, int | None]:
    """Returns counts of which somebody may know the sum, with None for the small ones, 1 to ``least`` - 1.

    A single hidden count is the sum less the others, and k that make up k are one each. So the next smallest are hidden with
    them, until there are two at least that have ``least`` visits between them beyond one each. A count of 0 is no secret.

    Args:
        counts: What is counted -> how often; every visit is in exactly one.
        least: Smallest count that may be told.
        total: Whether the sum itself is to be hidden.
    """
    hidden: dict[str, int] = {}
    for name, count in sorted(counts.items(), key=lambda item: (item[1], item[0])):
        exposed = (hidden or total) and (len(hidden) < 2 or sum(hidden.values()) < least + len(hidden))
        if count and (count < least or exposed):
            hidden[name] = count
    return {name: None if name in hidden else count for name, count in counts.items()}


def _told(count: int, least: int) -> int | None:
    return count if count == 0 or count >= least else None


def _told_labels(train: Cohort, least: int) -> dict[str, int | None]:
    """Returns output -> training visits with it, None where hidden; nothing for a regression, whose outputs all visits have."""
    if train.task.type == "regression":
        return {}
    events = dict(zip(train.task.outputs, train.label_counts().tolist(), strict=True))
    if train.task.type == "multiclass":
        return hide_small(events, least)
    return {o: None if _told(len(train) - n, least) is None else _told(n, least) for o, n in events.items()}


def teach(site: Site, config: Config, request: TeachRequest) -> TeachReply:
    """Trains the teachers of the groups asked for that enough visits stand behind, and validates the parameters received."""
    cohort = site.ready(standardisation_of(request.standardisation))
    train, validation = cohort.part("train"), cohort.part("validation")
    allowed, least = site.trainable(config), site.manifest.limits.min_count
    trained: dict[str, Arrays] = {}
    counts: dict[str, int] = {}
    validated: dict[str, tuple[float, int]] = {}
    losses: dict[str, float] = {}
    for group in (g for g in request.groups if g in allowed):
        modality = read_by(group)
        mine, held_out = train.holding(modality), validation.holding(modality)
        if len(mine) < least:
            continue
        teacher = build_teacher(group, config.task, config.model)
        teacher.load_state_dict(tensors(request.groups[group]))
        teacher.eval()
        if len(held_out) >= least:
            validated[group] = (teacher_loss(teacher, modality, held_out), len(held_out))
        training, seed = config.teach.training_of(group), derive_seed(request.seed, group)
        span = span_of(request.round, config.teach.rounds)
        fit = train_teacher(teacher, modality, mine, training, epochs=site.epochs(request.epochs), seed=seed, span=span)
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
    told = len(validation) >= max(least, 1)
    validated = (student_validation_loss(student, validation), len(validation)) if told else None
    if not request.epochs:  # the last round chooses among students, and trains none
        return RefineReply(site.manifest.site, {}, {}, validated, {}, 0)
    calibration, _ = consilium_of(request.consilium)
    ensembles = load_ensembles(config, request.teachers)
    teaching = teach_cohort(ensembles, train, calibration)
    gradients, meta_count = _meta_gradients(student, train, meta, config, ensembles, teaching, calibration, request.seed, least)
    train_student(
        student,
        train,
        config,
        config.refine.training,
        teaching=teaching,
        epochs=site.epochs(request.epochs),
        seed=derive_seed(request.seed, "student"),
        span=span_of(request.round, max(config.refine.rounds, 1)),
    )
    counts = {block: n for block, n in block_counts(student, train).items() if n >= least}
    return RefineReply(site.manifest.site, trained_blocks(student, counts), counts, validated, gradients, meta_count)


def evaluate(site: Site, config: Config, request: EvaluateRequest) -> EvaluateReply:
    """Evaluates student and teachers for every pattern; predictions stay in the site's folder, released metrics leave it."""
    calibration, omega = consilium_of(request.consilium)
    speakers: list[Speaker] = []
    if request.student:
        speakers.append(student_speaker(load_student(config, request.student)))
    ensembles = load_ensembles(config, request.teachers)
    if ensembles is not None:
        speakers += teachers_speakers(ensembles, calibration, omega)
    predictions = predict_patterns(site.cohort.part("test"), speakers, standardisation_of(request.standardisation))
    site.store_predictions(request.run, predictions)
    rows, withheld = released_rows(predictions, config.task, site.manifest.limits.min_count)
    return EvaluateReply(site.manifest.site, rows, withheld)


def load_student(config: Config, arrays: Arrays) -> Student:
    """Returns the student that a message carries."""
    student = build_student(config.task, config.model, per_output=config.weights.per_output)
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
    if min(len(several), len(train)) < max(least, 1):
        return {}, 0
    gradients: Arrays = {}
    if config.weights.estimator != "uniform":
        generator = torch.Generator().manual_seed(derive_seed(seed, "meta"))
        draws = [
            weights_gradient(student, train, several, config, teaching=teaching, generator=generator)[0]
            for _ in range(META_DRAWS)
        ]
        gradients["omega"] = torch.stack(draws).mean(0).numpy()
    on_meta = teach_cohort(ensembles, several, calibration)
    if on_meta is not None and config.distill.scale and config.task.type != "segmentation":
        s, b = calibration.scale.clone().requires_grad_(True), calibration.bias.clone().requires_grad_(True)
        value = calibration_loss(on_meta, several.labels, config.task.type, student.omega, Calibration(s, b, calibration.prior))
        gradients["scale"], gradients["bias"] = (g.numpy() for g in torch.autograd.grad(value, [s, b]))
    return gradients, len(several)
