"""Regions of volumes: the student that finds them, its loss, patches and windows, and how well regions are found."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from opacus.validators import ModuleValidator
from torch import Tensor
from torch.nn import functional

from common.config import ModelConfig
from common.data.cohort import Batch, Cohort
from common.data.patches import Edges, random_patches, windowed
from common.evaluation.intervals import Sample, paired_difference
from common.evaluation.metrics import metrics, resampled
from common.evaluation.regions import prediction_columns, region_scores
from common.learning import lessons
from common.learning.lessons import teach_voxels
from common.learning.losses import distillation_loss, pairwise_loss, student_loss, task_loss
from common.learning.modality_weights import hypergradient
from common.models.ensemble import Ensembles, build_teacher, consilium, groups, initial_calibration
from common.models.student import SHARED, Student, block_of, build_student
from common.models.teacher import Teacher
from common.task import Modality, Task
from server.distillation import resolved_better
from tests.common.samples import make_config

NAMES = ("flair", "t1", "t1ce")
GRID = Modality("volume", voxels=(16, 16, 12))
TASK = Task("brain", "segmentation", ("whole", "core"), dict.fromkeys(NAMES, GRID), regions={"whole": (1, 2), "core": (2,)})
MODEL = ModelConfig(teachers={"volume": ("small",)}, student={"volume": "compact"}, width=4, fusion="weighted", dropout=0.0)
FUSIONS = ("joint", "weighted", "late")


def make_batch(size: int = 4, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False], [False, True, True]])[:size]
    whole = torch.rand(size, 1, *GRID.voxels, generator=g) < 0.3
    core = whole & (torch.rand(whole.shape, generator=g) < 0.4)
    inputs = {n: torch.randn(size, 1, *GRID.voxels, generator=g) + whole for n in NAMES}
    return Batch(inputs, present, torch.cat([whole, core], 1).to(torch.uint8))


def make_student(fusion: str = "weighted", *, per_output: bool = False) -> Student:
    torch.manual_seed(0)
    student = build_student(TASK, replace(MODEL, fusion=fusion), per_output=per_output)
    student.omega.copy_(torch.randn(student.omega.shape))
    return student.eval()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_student_says_every_voxel_and_what_an_absent_scan_holds_changes_nothing(fusion: str) -> None:
    student, batch = make_student(fusion, per_output=True), make_batch()
    output = student(batch)
    assert output.fused.shape == (4, 2, *GRID.voxels)
    assert output.unimodal.shape == (4, 3, 2, *GRID.voxels)
    other = {
        n: torch.where(batch.present[:, k, None, None, None, None], x, torch.nan) for k, (n, x) in enumerate(batch.inputs.items())
    }
    again = student(replace(batch, inputs=other))
    assert torch.equal(output.fused, again.fused)
    assert torch.equal(output.unimodal, again.unimodal)
    assert not output.unimodal[~batch.present].any()
    assert not output.features[~batch.present].any()
    assert torch.equal(output.prediction(), output.fused)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_parameter_belongs_to_a_modality_the_fusion_or_all(fusion: str) -> None:
    student = make_student(fusion)
    assert {block_of(n) for n, _ in student.named_parameters()} == {*NAMES, "fusion", SHARED}


def test_whose_scan_it_is_makes_no_difference_until_the_modalities_projections_differ() -> None:
    student, scan = make_student(), torch.randn(1, 1, *GRID.voxels)
    lone = [
        replace(make_batch(1), inputs=dict.fromkeys(NAMES, scan), present=row[None]) for row in torch.eye(3, dtype=torch.bool)
    ]
    first, second, _ = (student(batch).fused for batch in lone)
    assert torch.equal(first, second)
    with torch.no_grad():
        next(p for n, p in student.named_parameters() if n.startswith("projections.t1.")).mul_(2)
    assert torch.equal(student(lone[0]).fused, first)
    assert not torch.allclose(student(lone[1]).fused, second)


def test_an_absent_scans_maps_are_the_weighted_mean_of_the_present_ones_at_every_level() -> None:
    student, batch = make_student("joint"), make_batch()
    maps = student.features(batch)
    w = student.weights()[0]
    seen: list[Tensor] = []
    student.fusion["mix"][1].register_forward_hook(lambda _, args, __: seen.append(args[0]))  # type: ignore[index]
    student(batch)
    level = maps.tokens[1]
    held = level[1]  # the second patient lacks the second modality
    mean = (w[0] * held[0] + w[2] * held[2]) / (w[0] + w[2])
    assert torch.allclose(seen[0][1], torch.cat([held[0], mean, held[2]]), atol=1e-5)


def test_heads_start_from_the_prior() -> None:
    student = make_student("late")
    prior = torch.tensor([-2.0, -3.0])
    student.start_at(prior)
    heads = [h.out.bias for h in student.heads.values()]
    assert all(torch.equal(b, prior) for b in heads)
    teacher = Teacher(GRID, "small", 2, width=4, dropout=0.0, prior=prior)
    assert torch.equal(teacher.head.out.bias, prior)  # type: ignore[union-attr]


def test_dp_sgd_can_train_a_teacher_of_volumes() -> None:
    assert ModuleValidator.validate(Teacher(GRID, "base", 2, width=4, dropout=0.1), strict=False) == []


def test_the_loss_is_soft_dice_plus_cross_entropy() -> None:
    g = torch.Generator().manual_seed(0)
    logits, regions = torch.randn(3, 2, 4, 4, 4, generator=g), (torch.rand(3, 2, 4, 4, 4, generator=g) < 0.3).to(torch.uint8)
    loss = task_loss("segmentation", logits, regions)
    p, y = logits.sigmoid().flatten(2), regions.float().flatten(2)
    dice = 1 - (2 * (p * y).sum(2) + 1) / (p.sum(2) + y.sum(2) + 1)
    crossed = functional.binary_cross_entropy(p, y, reduction="none").flatten(1).mean(1)
    assert torch.allclose(loss, dice.mean(1) + crossed, atol=1e-5)
    assert loss.shape == (3,)


def test_distillation_of_voxels_is_zero_for_equals_and_pairs_of_maps_are_compared() -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 4, 4, 4, generator=g)
    assert torch.allclose(distillation_loss("segmentation", logits, logits, 2.0), torch.zeros(2), atol=1e-6)
    maps = torch.randn(2, 3, 5, 2, 2, 2, generator=g)
    present = torch.tensor([[True, True, False], [True, False, False]])
    assert torch.equal(
        pairwise_loss(maps, present, torch.zeros(3), 0.5), pairwise_loss(maps.flatten(2), present, torch.zeros(3), 0.5)
    )


def make_ensembles() -> Ensembles:
    torch.manual_seed(1)
    return Ensembles(TASK, MODEL, {g: build_teacher(g, TASK, MODEL).state_dict() for g in groups(TASK, MODEL)})


def test_the_consilium_averages_what_is_said_of_a_voxel_and_leaves_a_lone_modality_as_it_is() -> None:
    ensembles, batch = make_ensembles(), make_batch()
    logits = ensembles(batch)
    assert logits.shape == (4, 3, 2, *GRID.voxels)
    assert not logits[~batch.present].any()
    w = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    prior = torch.tensor([-1.0, -2.0])
    calibration = replace(initial_calibration(TASK, prior), scale=torch.tensor([2.0, 3.0]), bias=torch.tensor([0.5, 0.0]))
    said, z = consilium(logits, batch.present, w, calibration)[..., 3, 5, 7], logits[..., 3, 5, 7]
    assert batch.present[1:3].tolist() == [[True, False, True], [False, True, False]]
    mean = (0.1 * z[1, 0, 1] + 0.7 * z[1, 2, 1]) / 0.8
    assert said[1, 1].item() == pytest.approx((-2 + 3 * (mean + 2)).item(), abs=1e-4)
    assert torch.allclose(said[2], z[2, 1], atol=1e-5)
    flat = consilium(logits.flatten(3), batch.present, w, calibration)
    assert torch.equal(flat.reshape(4, 2, *GRID.voxels)[..., 3, 5, 7], said)


class Knowing:
    """Teachers of two modalities who say what their scan shows; nobody reads the third."""

    def __init__(self, patch: Edges | None) -> None:
        self.patch = patch

    def modalities(self) -> set[str]:
        return {"flair", "t1"}

    def __call__(self, batch: Batch) -> Tensor:
        return (
            torch.stack([batch.inputs[n].expand(-1, 2, -1, -1, -1) for n in NAMES], 1)
            * batch.present[:, :, None, None, None, None]
        )


@pytest.mark.parametrize("patch", [None, (8, 8, 12)])
def test_sampled_voxels_come_with_their_own_labels(patch: Edges | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lessons, "VOXELS", 500)
    shown = (torch.rand(6, 1, *GRID.voxels, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    present = torch.tensor([[True, True, True], [True, False, True], [False, False, True]] * 2)  # nobody is heard of two of them
    labels, order = shown.expand(-1, 2, -1, -1, -1).to(torch.uint8), np.arange(6)
    cohort = Cohort(TASK, dict.fromkeys(NAMES, 4 * shown - 2), present, labels, True, order, order, np.full(6, "train"))
    prior = torch.zeros(2)
    heard = teach_voxels(Knowing(patch), cohort, initial_calibration(TASK, prior))  # type: ignore[arg-type]
    assert heard is not None
    teaching, truth, patient = heard
    assert patient.tolist() == [0, 1, 3, 4]
    assert teaching.logits.shape == (4, 3, 2, 500)
    assert truth.shape == (4, 2, 500)
    assert teaching.taught.tolist() == [[True, True, False], [True, False, False]] * 2
    assert torch.equal(teaching.logits[:, 0] > 0, truth > 0)
    assert not torch.equal(truth[0], truth[1])
    sure = replace(teaching.calibration, scale=prior + 9)
    one, other = (torch.zeros(1, 3), sure), (torch.zeros(1, 3), teaching.calibration)
    assert resolved_better("segmentation", teaching, truth, patient, one, other)
    unheard = cohort.select(~present[:, 0].numpy())
    assert teach_voxels(Knowing(patch), unheard, teaching.calibration) is None  # type: ignore[arg-type]


def test_the_weights_are_told_whether_distilling_with_them_helped() -> None:
    student, batch = make_student("weighted"), make_batch()
    config = make_config().distill

    def inner(output: object, omega: Tensor) -> Tensor:
        return student_loss("segmentation", output, batch, None, omega, config)  # type: ignore[arg-type]

    gradient, value = hypergradient(student, inner, batch, make_batch(seed=1), 0.1)
    assert gradient.shape == (1, 3)
    assert gradient.isfinite().all() and gradient.any()
    assert math.isfinite(value)


def test_patches_hold_the_same_place_of_every_scan_and_mask_and_half_of_them_a_region() -> None:
    batch = make_batch()
    marked = Batch({n: x.clone() for n, x in batch.inputs.items()}, batch.present, torch.zeros_like(batch.labels))
    marked.labels[:, 1, 9, 2, 3] = 1
    for x in marked.inputs.values():
        x[:, 0, 9, 2, 3] = 99.0
    generator = torch.Generator().manual_seed(0)
    hit = 0
    for _ in range(60):
        cut = random_patches(marked, (8, 8, 12), generator)
        assert cut.inputs["t1"].shape == (4, 1, 8, 8, 12)
        for x in cut.inputs.values():
            assert torch.equal((x[:, 0] == 99).flatten(1).any(1), cut.labels[:, 1].flatten(1).any(1))
        hit += int(cut.labels[:, 1].flatten(1).any(1).sum())
    assert hit > 0.25 * 240 + 20


def test_windows_cover_the_whole_scan() -> None:
    batch = make_batch()
    seen: list[tuple[int, ...]] = []

    def said(window: Batch) -> Tensor:
        seen.append(tuple(window.inputs["t1"].shape[2:]))
        assert torch.equal(window.present, batch.present[len(said_of)].expand(len(window.inputs["t1"]), -1))
        assert len(window) == len(window.labels) == len(window.inputs["t1"])
        return torch.cat([window.inputs["t1"], window.inputs["flair"]], 1)

    said_of: list[int] = []

    def one(at: int) -> Tensor:
        found = windowed(said, batch.taken(torch.tensor([at])), (8, 8, 12))
        said_of.append(at)
        return found

    whole = torch.cat([one(at) for at in range(4)])
    assert torch.allclose(whole, torch.cat([batch.inputs["t1"], batch.inputs["flair"]], 1), atol=1e-4)
    assert set(seen) == {(8, 8, 12)}
    assert torch.equal(windowed(lambda b: b.inputs["t1"], batch, None), batch.inputs["t1"])


def test_a_found_region_is_scored_and_empty_ones_are_counted() -> None:
    modality = Modality("volume", voxels=(8, 8, 8), spacing_mm=(2.0, 1.0, 1.0))
    regions = torch.zeros(4, 8, 8, 8, dtype=torch.bool)
    regions[0, 2:4] = True
    regions[1, 2:4] = True
    found = torch.zeros_like(regions)
    found[0, 2:4] = True
    found[1, 3:5] = True
    found[2, 0, 0, 0] = True
    scores = region_scores(found, regions, modality)
    assert scores[0].tolist() == [1, 0, 1]
    assert scores[1, :2].tolist() == pytest.approx([0.5, 2.0])  # a slice of 2 mm apart
    assert scores[2].tolist() == pytest.approx([0, math.dist((0, 0, 0), (16, 8, 8)), 0])  # found where nothing is
    assert scores[3].tolist() == [1, 0, 1]  # rightly found empty


def test_metrics_are_means_over_scans_and_regions_and_by_draw() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((10, 6))
    labels = np.ones_like(values)
    found = metrics("segmentation", values, labels)
    assert found["dice"] == pytest.approx(values[:, [0, 3]].mean())
    assert found["hd95"] == pytest.approx(values[:, [1, 4]].mean())
    assert found["nsd:5"] == pytest.approx(values[:, 5].mean())
    weights = rng.integers(0, 3, (10, 5)).astype(float)
    by_draw = resampled("hd95", "segmentation", values, labels, weights)
    for b in range(5):
        drawn = values.repeat(weights[:, b].astype(int), 0)
        assert by_draw[b] == pytest.approx(metrics("segmentation", drawn, np.ones_like(drawn))["hd95"])
    better = Sample(values, labels, np.arange(10))
    worse = Sample(values + 0.1, labels, np.arange(10))
    difference = paired_difference([better], [worse], "hd95", "segmentation")
    assert difference is not None and difference.verdict("hd95") == "better"
    assert prediction_columns(TASK) == ("whole:dice", "whole:hd95", "whole:nsd", "core:dice", "core:hd95", "core:nsd")
