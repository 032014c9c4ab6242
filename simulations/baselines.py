"""Baselines that are no run of the five phases.

They open the same folders through the same code as the sites, and train by the same settings: one place as ``distill``, FedAvg
as ``refine``. A benchmark may choose others for them (``Benchmark.overrides``). With validation patients (``split.validation``)
the best epoch or round is kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.arrays import Arrays, module_arrays, tensors
from common.config import Config
from common.data.cohort import Batch, Cohort, concatenate
from common.data.folder import open_cohort
from common.data.manifest import FILE_NAME, REFERENCE_FOLDER, hospital_folders, load_manifest
from common.data.patches import Edges, random_patches, windowed
from common.data.standardise import Standardisation, pool
from common.errors import ConsiliumError
from common.evaluation.predictions import STUDENT, Speaker, student_speaker
from common.learning.lessons import log_odds, parts_of, train_student, train_teacher
from common.learning.loop import Fit, derive_seed, fit, span_of
from common.learning.losses import task_loss
from common.learning.modality_weights import random_patterns
from common.models.registry import architectures, build_encoder
from common.models.student import Student, parameters_of
from common.models.teacher import Teacher
from server.aggregation import step, weighted_mean
from server.distillation import new_student
from simulations.datasets.files import TESTS
from simulations.zero_filled import zero_filled

PENALTIES = tuple(float(10.0**power) for power in np.arange(0, 5.5, 0.5))


@dataclass(frozen=True)
class Consortium:
    """The opened folders of a cell, raw.

    Attributes:
        config: What the baseline is trained by.
        training: Site (or ``reference``) -> its patients, split into train and validation.
        testing: Site -> its test patients.
        excluded: Visits that were left out when sites and reference set opened their files.
    """

    config: Config
    training: dict[str, Cohort]
    testing: dict[str, Cohort]
    excluded: int = 0


@dataclass(frozen=True)
class Trained:
    """A trained baseline.

    Attributes:
        speaker: Test site -> what predicts its patients, and how their values are scaled for it.
        parameters: Of one network.
        bytes_per_site: Site -> bytes moved.
        curves: Losses over time.
        weights: Modality weights over time, if it learns any.
    """

    speaker: Callable[[str], tuple[Speaker, Standardisation]]
    parameters: int
    bytes_per_site: dict[str, int]
    curves: list[dict[str, object]]
    weights: list[dict[str, object]] = field(default_factory=list)


def open_consortium(sites: Path, config: Config, look: Callable[..., None] = lambda *_: None) -> Consortium:
    """Opens every hospital of a sites folder, and its reference set.

    Args:
        sites: Sites folder of the cell.
        config: Of the method; meta patients train, because no baseline has use for them.
        look: Is called with every folder, its manifest and all its patients.
    """
    training: dict[str, Cohort] = {}
    testing: dict[str, Cohort] = {}
    split, excluded = replace(config.split, meta=0.0), 0
    for folder in hospital_folders(sites):
        manifest = load_manifest(folder)
        cohort = open_cohort(folder, manifest, config.task, split, config.seed)
        excluded += cohort.excluded
        look(folder, manifest, cohort)
        if len(cohort.part("test")):
            testing[manifest.site] = cohort.part("test")
        if manifest.role == "train":
            training[manifest.site] = cohort.part("train", "validation")
    if config.distill.reference and (sites / REFERENCE_FOLDER / FILE_NAME).is_file():
        folder = sites / REFERENCE_FOLDER
        manifest = load_manifest(folder)
        cohort = open_cohort(folder, manifest, config.task, replace(split, test=0.0), config.seed)
        excluded += cohort.excluded
        look(folder, manifest, cohort)
        if manifest.labels:  # baselines learn from labels alone
            training[REFERENCE_FOLDER] = cohort
    return Consortium(config, training, testing, excluded)


def common_ground(places: Collection[Cohort]) -> tuple[Standardisation, Tensor]:
    """Returns the pooled standardisation of raw cohorts and the prior: log-odds of their outputs in training, or 0, [C]."""
    task = next(iter(places)).task
    parts = [c.moments() for c in places]
    standardisation = Standardisation({m: pool([p[m] for p in parts]) for m in parts[0]})
    if task.type in ("regression", "segmentation"):
        return standardisation, torch.zeros(len(task.outputs))
    positives = torch.stack([c.label_counts() for c in places]).sum(0)
    return standardisation, log_odds(task.type, positives.double().numpy(), float(sum(map(len, places))))


def central(consortium: Consortium) -> Trained:
    """Trains the student on all training patients pooled at one place (``central-full``: on sites that lack nothing)."""
    pooled = concatenate(c for _, c in sorted(consortium.training.items()))
    student, scaling, curve = _alone(consortium.config, pooled, "central")
    return Trained(lambda site: (student_speaker(student), scaling), parameters_of(student), {}, curve)


def central_zero(consortium: Consortium) -> Trained:
    """Trains one zero-filled multimodal network on all training patients at one place, dropping modalities at random."""
    config = consortium.config
    scaling, prior = common_ground(consortium.training.values())
    pooled = concatenate(c for _, c in sorted(consortium.training.items())).standardised(scaling)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "central-zero"))
        network = zero_filled(config, prior)
    train, held_out, patch = pooled.part("train"), pooled.part("validation"), config.model.patch
    result = fit(
        network,
        len(train),
        _loss(network, train, patch, dropout=config.distill.dropout),
        config.distill.training,
        epochs=config.distill.epochs,
        seed=derive_seed(config.seed, "baseline", "central-zero"),
        validate=(lambda: cast("float", _pooled_loss(network, [held_out], patch))) if len(held_out) else None,
    )
    speaker = Speaker(STUDENT, lambda batch: windowed(network, batch, patch))
    return Trained(lambda site: (speaker, scaling), parameters_of(network), {}, curves_of(result, "central-zero"))


def unimodal(consortium: Consortium) -> Trained:
    """Trains the student's encoder and head of every modality by itself, on the labels of all patients that hold it.

    Where several modalities are present it says the mean of their logits.
    """
    config = consortium.config
    refuse_volumes(config, "unimodal")
    task, model = config.task, config.model
    scaling, prior = common_ground(consortium.training.values())
    pooled = concatenate(c for _, c in sorted(consortium.training.items())).standardised(scaling)
    networks: dict[str, Teacher] = {}
    curves: list[dict[str, object]] = []
    for name, modality in task.modalities.items():
        seed = derive_seed(config.seed, "unimodal", name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            architecture = model.student[modality.kind]
            network = Teacher(modality, architecture, len(task.outputs), width=model.width, dropout=model.dropout, prior=prior)
        held = pooled.holding(name)
        result = train_teacher(
            network,
            name,
            held.part("train"),
            config.distill.training,
            epochs=config.distill.epochs,
            seed=seed,
            validation=held.part("validation"),
        )
        networks[name] = network
        curves += curves_of(result, name)

    def logits(batch: Batch) -> Tensor:
        heads = []
        for at, (name, network) in enumerate(networks.items()):
            held = batch.holders(at)
            heads.append(batch.spread(network(batch.inputs[name][held]), held))
        return torch.stack(heads, 1).sum(1) / batch.present.sum(1, keepdim=True)

    size = sum(map(parameters_of, networks.values()))
    return Trained(lambda site: (Speaker(STUDENT, logits), scaling), size, {}, curves)


def local(consortium: Consortium) -> Trained:
    """Trains a student at every hospital by itself, scaled by its own patients.

    A site's test patients are predicted by its own student, those of a site that only tests by the student of the training site
    it is named after: the same unit or network. Where there is none, a training site is drawn by seed among those that trained
    on a modality which it holds (among all, if none did). What a student never saw in training it does not read.
    """
    seen: dict[str, Tensor] = {}
    speakers: dict[str, tuple[Speaker, Standardisation]] = {}
    curves: list[dict[str, object]] = []
    size = 0
    for site, cohort in sorted(consortium.training.items()):
        if site == REFERENCE_FOLDER:
            continue
        student, scaling, curve = _alone(consortium.config, cohort, site)
        size = parameters_of(student)
        curves += curve
        seen[site] = cohort.part("train").present.any(0)
        speakers[site] = _reading_only(student, seen[site]), scaling

    def speaker(site: str) -> tuple[Speaker, Standardisation]:
        if (home := site.removeprefix(TESTS)) in speakers:
            return speakers[home]
        held = consortium.testing[site].present.any(0)
        names = sorted(n for n in speakers if bool((seen[n] & held).any())) or sorted(speakers)
        return speakers[names[derive_seed(consortium.config.seed, "local", site) % len(names)]]

    return Trained(speaker, size, dict.fromkeys(sorted(speakers), 0), curves)


def fedavg(consortium: Consortium) -> Trained:
    """Trains one zero-filled multimodal network by FedAvg: what a Flower user does today. The reference set is one more site."""
    config = consortium.config
    scaling, prior = common_ground(consortium.training.values())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "fedavg"))
        network = zero_filled(config, prior)
    ready = {s: c.standardised(scaling) for s, c in sorted(consortium.training.items())}
    places = {s: (c.part("train"), c.part("validation")) for s, c in ready.items()}
    best, best_loss = module_arrays(network), np.inf
    curves: list[dict[str, object]] = []
    velocity: Arrays = {}
    for number in range(config.refine.rounds + 1):
        loss = _pooled_loss(network, [v for _, v in places.values()], config.model.patch)
        if loss is not None:
            curves.append({"phase": "fedavg", "round": number, "group": "network", "split": "validation", "loss": loss})
        if loss is None:
            best = module_arrays(network)
        elif loss <= best_loss:
            best, best_loss = module_arrays(network), loss
        if number == config.refine.rounds:
            break
        updates: dict[str, Arrays] = {}
        for site, (train, _) in places.items():
            mine = copy.deepcopy(network)
            seed = derive_seed(config.seed, "fedavg", number, site)
            training, span = config.refine.training, span_of(number, config.refine.rounds)
            fit(
                mine,
                len(train),
                _loss(mine, train, config.model.patch),
                training,
                epochs=config.refine.epochs,
                seed=seed,
                span=span,
            )
            updates[site] = module_arrays(mine)
        mean = weighted_mean(updates, {s: len(places[s][0]) for s in updates})
        after, velocity = step(module_arrays(network), mean, velocity, config.refine.momentum)
        network.load_state_dict(tensors(after))
    network.load_state_dict(tensors(best))
    network.eval()
    moved = 2 * config.refine.rounds * sum(a.nbytes for a in best.values())
    sites = {s: moved for s in places if s != REFERENCE_FOLDER}
    speaker = Speaker(STUDENT, lambda batch: windowed(network, batch, config.model.patch))
    return Trained(lambda site: (speaker, scaling), parameters_of(network), sites, curves)


def median(consortium: Consortium) -> Trained:
    """Says the median of the pooled training patients' targets, whoever asks (regression)."""
    cohort, scaling = _pooled(consortium)
    middle = cohort.labels.quantile(0.5, dim=0)
    return Trained(lambda site: (Speaker(STUDENT, lambda batch: middle.expand(len(batch), -1)), scaling), len(middle), {}, [])


def ridge(consortium: Consortium) -> Trained:
    """Ridge regression on the linear encoders' features of all pooled training patients, zeros where a modality is absent.

    Its penalty has the least mean absolute error over training patients left out one by one (regression).
    """
    from sklearn.linear_model import RidgeCV

    cohort, scaling = _pooled(consortium)
    task = consortium.config.task
    readable = {n: m for n, m in task.modalities.items() if "linear" in architectures(m.kind)}
    encoders = {n: build_encoder(m, "linear", consortium.config.model.width, 0.0) for n, m in readable.items()}
    held = [list(task.modalities).index(n) for n in encoders]

    def features(batch: Batch) -> NDArray[np.float64]:
        found = [
            torch.where(batch.present[:, at, None], encode(batch.inputs[n]), 0.0)
            for at, (n, encode) in zip(held, encoders.items(), strict=True)
        ]
        return torch.cat(found, 1).double().numpy()

    model = RidgeCV(PENALTIES, scoring="neg_mean_absolute_error").fit(features(cohort.batch()), cohort.labels.double().numpy())

    def said(batch: Batch) -> Tensor:
        return torch.from_numpy(model.predict(features(batch)).reshape(len(batch), -1)).float()

    return Trained(lambda site: (Speaker(STUDENT, said), scaling), model.coef_.size + len(task.outputs), {}, [])


BASELINES: Mapping[str, Callable[[Consortium], Trained]] = {
    "local": local,
    "fedavg": fedavg,
    "central": central,
    "central-full": central,
    "central-zero": central_zero,
    "unimodal": unimodal,
    "median": median,
    "ridge": ridge,
}


def refuse_volumes(config: Config, method: str) -> None:
    """Refuses a method that does not read volumes.

    Raises:
        ConsiliumError: If the task is a segmentation.
    """
    if config.task.type == "segmentation":
        raise ConsiliumError(f"'{method}' reads no volumes: leave it out of a benchmark whose task is a segmentation.")


def _pooled(consortium: Consortium) -> tuple[Cohort, Standardisation]:
    """Returns all training patients of a regression as at one place, model-ready, and how they were scaled."""
    if consortium.config.task.type != "regression":
        raise ConsiliumError("'median' and 'ridge' predict numbers: leave them out of a benchmark whose task is no regression.")
    pooled = concatenate(c for _, c in sorted(consortium.training.items()))
    scaling, _ = common_ground([pooled])
    return pooled.standardised(scaling), scaling


def _loss(
    network: nn.Module, train: Cohort, patch: Edges | None, dropout: float = 0.0
) -> Callable[[Tensor, torch.Generator], Tensor]:
    def loss(index: Tensor, generator: torch.Generator) -> Tensor:
        batch = random_patches(train.batch(index), patch, generator) if patch else train.batch(index)
        if dropout:
            batch = batch.masked(random_patterns(batch.present, dropout, generator))
        return task_loss(train.task.type, network(batch), batch.labels).mean()

    return loss


@torch.no_grad()
def _pooled_loss(network: nn.Module, held_out: list[Cohort], patch: Edges | None) -> float | None:
    network.eval()
    losses: list[Tensor] = []
    for cohort in (c for c in held_out if len(c)):
        for batch in parts_of(cohort, patch):  # one at a time: all scans together may not fit into the memory
            losses.append(task_loss(cohort.task.type, network(batch), batch.labels))
    return float(torch.cat(losses).mean()) if losses else None


def _alone(config: Config, cohort: Cohort, place: str) -> tuple[Student, Standardisation, list[dict[str, object]]]:
    """Trains a student at one place without any teacher: task losses of the fused head and, by alpha, of the others."""
    config = replace(config, distill=replace(config.distill, beta=0.0, gamma=0.0, delta=0.0))
    scaling, prior = common_ground([cohort])
    ready = cohort.standardised(scaling)
    student = new_student(config, prior)
    result = train_student(
        student,
        ready.part("train"),
        config,
        config.distill.training,
        teaching=None,
        epochs=config.distill.epochs,
        seed=derive_seed(config.seed, "baseline", place),
        validation=ready.part("validation"),
    )
    return student, scaling, curves_of(result, place)


def curves_of(result: Fit, group: str) -> list[dict[str, object]]:
    """Returns the losses of a training over its epochs, as a cell tells them."""
    losses = [("train", result.training), ("validation", result.validation)]
    return [
        {"phase": "train", "round": e, "group": group, "split": split, "loss": v}
        for split, vs in losses
        for e, v in enumerate(vs)
    ]


def _reading_only(student: Student, known: Tensor) -> Speaker:
    """Returns a speaker that masks the modalities which the student was never trained on; with none left it says the prior."""

    def logits(batch: Batch) -> Tensor:
        readable = batch.masked(known)
        spoken = windowed(lambda part: student(part).prediction(), readable, student.patch)
        space = (1,) * (spoken.ndim - 2)
        return torch.where(readable.present.any(1).reshape(-1, 1, *space), spoken, student.prior.reshape(-1, *space))

    return Speaker(STUDENT, logits)
