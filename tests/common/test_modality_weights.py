"""The hypergradient of omega equals central finite differences, and patterns are drawn per sample."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from common.config import Config
from common.data.cohort import Batch
from common.learning.lessons import Teaching, weights_gradient
from common.learning.losses import student_loss, task_loss
from common.learning.modality_weights import Evidence, OmegaAdam, hypergradient, outer_loss, random_patterns, scaling_gradient
from common.models.ensemble import Calibration
from common.models.fusion import Bottleneck
from common.models.registry import fusions
from common.models.student import Student, StudentOutput
from common.task import TaskType
from tests.common.samples import KINDS, doubled, make_cohort, make_config

THREE = ("admission", "labs", "note")
ETA = 0.3


class Setting:
    """A student in float64 with its train and meta batches and its teachers' logits."""

    def __init__(self, kind: TaskType, fusion: str, *, per_output: bool) -> None:
        self.config: Config = make_config(kind, THREE, fusion=fusion, per_output=per_output)
        self.config = replace(self.config, distill=replace(self.config.distill, delta=0.5))
        torch.manual_seed(0)
        self.student = Student(self.config.task, self.config.model, per_output=per_output).double().eval()
        if isinstance(self.student.fusion, Bottleneck):  # its correction starts at zero: nothing would come through
            torch.nn.init.normal_(self.student.fusion.head[-1].weight)  # type: ignore[arg-type]
        with torch.no_grad():
            self.student.omega.copy_(0.3 * torch.randn(self.student.omega.shape))
        self.train = doubled(make_cohort(self.config.task, 12, 1).batch())
        self.meta = doubled(make_cohort(self.config.task, 12, 2).batch())
        outputs = len(self.config.task.outputs)
        c = Calibration(*(torch.linspace(a, 1, outputs, dtype=torch.float64) for a in (0.5, -0.5, -1)))
        self.teaching = Teaching(torch.randn(12, 3, outputs, dtype=torch.float64), self.train.present, c)

    def inner(self, output: StudentOutput, omega: Tensor) -> Tensor:
        lesson = self.teaching.lesson(torch.arange(12), self.train, omega)
        return student_loss(self.config.task.type, output, self.train, lesson, omega, self.config.distill)

    def after_a_step(self, omega: Tensor) -> float:
        """l_val of the student after one real SGD step with these weights."""
        student = copy.deepcopy(self.student)
        student.omega.copy_(omega)
        optimiser = torch.optim.SGD(student.parameters(), lr=ETA)
        self.inner(student(self.train), omega).backward()
        optimiser.step()
        return outer_loss(student, dict(student.named_parameters()), omega, self.meta).item()


@pytest.mark.parametrize("per_output", [False, True])
@pytest.mark.parametrize("fusion", fusions())
@pytest.mark.parametrize("kind", KINDS)
def test_the_hypergradient_equals_central_finite_differences(kind: TaskType, fusion: str, per_output: bool) -> None:
    setting = Setting(kind, fusion, per_output=per_output)
    before = copy.deepcopy(setting.student.state_dict())
    gradient, value = hypergradient(setting.student, setting.inner, setting.train, setting.meta, ETA)
    omega, h = setting.student.omega, 1e-5
    assert value == pytest.approx(setting.after_a_step(omega.clone()), rel=1e-10)
    for at in torch.cartesian_prod(torch.arange(omega.shape[0]), torch.arange(3)).reshape(-1, 2).tolist():
        shift = torch.zeros_like(omega)
        shift[tuple(at)] = h
        difference = (setting.after_a_step(omega + shift) - setting.after_a_step(omega - shift)) / (2 * h)
        assert gradient[tuple(at)].item() == pytest.approx(difference, rel=1e-4, abs=1e-8)
    assert gradient.abs().max() > 1e-5
    assert all(torch.equal(before[n], t) for n, t in setting.student.state_dict().items())


@pytest.mark.parametrize("fusion", fusions())
def test_raising_every_omega_alike_changes_nothing(fusion: str) -> None:
    setting = Setting("binary", fusion, per_output=False)
    gradient, _ = hypergradient(setting.student, setting.inner, setting.train, setting.meta, ETA)
    assert gradient.sum().item() == pytest.approx(0, abs=1e-10)


def test_absent_values_do_not_reach_the_hypergradient() -> None:
    setting = Setting("multilabel", "joint", per_output=True)
    gradient, _ = hypergradient(setting.student, setting.inner, setting.train, setting.meta, ETA)

    def filled(batch: Batch) -> Batch:
        return replace(batch, inputs={m: x.nan_to_num(nan=2.0) for m, x in batch.inputs.items()})

    again, _ = hypergradient(setting.student, setting.inner, filled(setting.train), filled(setting.meta), ETA)
    assert gradient.isfinite().all()
    assert torch.equal(gradient, again)


def test_a_drawn_hypergradient_depends_on_the_generator_alone() -> None:
    config = make_config("binary", THREE)
    student = Student(config.task, config.model)
    train, meta = make_cohort(config.task, 60, 1), make_cohort(config.task, 60, 2)

    def draw(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return weights_gradient(student, train, meta, config, teaching=None, generator=generator)[0]

    torch.manual_seed(0)
    first = draw(5)
    torch.manual_seed(1)
    assert torch.equal(first, draw(5))
    assert not torch.equal(first, draw(6))


PATTERNS = st.lists(st.lists(st.booleans(), min_size=4, max_size=4).filter(any), min_size=1, max_size=30)


@given(PATTERNS, st.floats(0, 1), st.integers(0, 2**32))
def test_drawn_patterns_are_non_empty_subsets(rows: list[list[bool]], share: float, seed: int) -> None:
    present = torch.tensor(rows)
    drawn = random_patterns(present, share, torch.Generator().manual_seed(seed))
    assert drawn.shape == present.shape
    assert drawn.any(1).all()
    assert not (drawn & ~present).any()
    if share == 0:
        assert torch.equal(drawn, present)


def test_patterns_are_drawn_per_sample_and_reach_every_subset() -> None:
    present = torch.ones(4000, 3, dtype=torch.bool)
    drawn = random_patterns(present, 1.0, torch.Generator().manual_seed(0))
    seen = {tuple(row) for row in drawn.tolist()}
    assert len(seen) == 7
    sizes = torch.bincount(drawn.sum(1), minlength=4)[1:] / 4000
    assert sizes.tolist() == pytest.approx([1 / 3] * 3, abs=0.04)
    assert drawn.float().mean(0).tolist() == pytest.approx([2 / 3] * 3, abs=0.04)


def test_one_pattern_for_the_whole_batch_where_that_is_asked_for() -> None:
    present = torch.tensor([[True, True, True], [True, True, False], [False, False, True]]).repeat(20, 1)
    seen = set()
    for seed in range(200):
        drawn = random_patterns(present, 1.0, torch.Generator().manual_seed(seed), by_batch=True)
        assert drawn.any(1).all()
        assert not (drawn & ~present).any()
        assert torch.equal(drawn, drawn[:3].repeat(20, 1))
        seen.add(tuple(drawn[0].tolist()))
    assert len(seen) == 7


def test_the_share_says_how_many_samples_are_cut() -> None:
    present = torch.ones(4000, 3, dtype=torch.bool)
    drawn = random_patterns(present, 0.3, torch.Generator().manual_seed(0))
    assert (drawn.sum(1) < 3).float().mean().item() == pytest.approx(0.3 * 2 / 3, abs=0.03)


@pytest.mark.parametrize("fusion", fusions())
@pytest.mark.parametrize("per_output", [False, True])
def test_the_released_codes_gradient_is_that_of_scaling_the_features_by_the_weights(fusion: str, per_output: bool) -> None:
    setting = Setting("multiclass", fusion, per_output=per_output)
    before = copy.deepcopy(setting.student.state_dict())
    gradient, value = scaling_gradient(setting.student, setting.meta)
    omega, h = setting.student.omega.clone(), 1e-5

    def loss(at: Tensor) -> float:
        with torch.no_grad():
            scaled = setting.student.features(setting.meta).scaled(at.softmax(1).mean(0))
            output = setting.student.speak(scaled, setting.meta.present)
            return task_loss("multiclass", output.prediction(), setting.meta.labels).mean().item()

    assert value == pytest.approx(loss(omega))
    for at in torch.cartesian_prod(torch.arange(omega.shape[0]), torch.arange(3)).reshape(-1, 2).tolist():
        shift = torch.zeros_like(omega)
        shift[tuple(at)] = h
        assert gradient[tuple(at)].item() == pytest.approx(
            (loss(omega + shift) - loss(omega - shift)) / (2 * h), rel=1e-4, abs=1e-8
        )
    assert gradient.abs().max() > 1e-6
    assert all(torch.equal(before[n], t) for n, t in setting.student.state_dict().items())


def test_omegas_step_does_not_depend_on_the_size_of_the_hypergradient() -> None:
    gradient = torch.tensor([[1.0, -2.0, 0.5]])
    small, large = (OmegaAdam(torch.zeros(1, 3), 0.1).step(gradient * scale) for scale in (1e-4, 1e4))
    assert torch.allclose(small, large, atol=1e-4)
    assert small[0].argmax() == 1  # against the gradient
    assert small.sum().abs() < 1e-6


def test_a_large_hypergradient_counts_no_more_than_a_small_one() -> None:
    first, second = torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor([[-1.0, 0.3, 0.5]])
    even, uneven = OmegaAdam(torch.zeros(1, 3), 0.1), OmegaAdam(torch.zeros(1, 3), 0.1)
    for gradient, size in ((first, 1.0), (second, 1.0), (first, 1.0)):
        expected = even.step(gradient * size)
    for gradient, size in ((first, 1e-3), (second, 1e3), (first, 1.0)):
        found = uneven.step(gradient * size)
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_zero_hypergradient_leaves_omega_finite() -> None:
    assert torch.equal(OmegaAdam(torch.zeros(2, 3), 0.1).step(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_omegas_optimiser_continues_from_its_state() -> None:
    gradients = [torch.randn(1, 3, generator=torch.Generator().manual_seed(s)) for s in range(6)]
    undisturbed = OmegaAdam(torch.zeros(1, 3), 0.1)
    for g in gradients:
        expected = undisturbed.step(g)
    first = OmegaAdam(torch.zeros(1, 3), 0.1)
    for g in gradients[:3]:
        half = first.step(g)
    kept: dict[str, Any] = {k: torch.from_numpy(v.numpy().copy()) for k, v in first.state().items()}
    second = OmegaAdam(half, 0.1, kept)
    for g in gradients[3:]:
        found = second.step(g)
    assert torch.equal(found, expected)


# Where omega starts: calibrated evidence that overlaps.


def gaussian_evidence(size: int = 20000, share: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """Evidence of three specialists, the log-likelihood ratios of Gaussian findings, and the labels.

    The first has a finding of its own; the second and the third share one, and the third adds noise to it.
    """
    g = torch.Generator().manual_seed(0)
    y = (torch.rand(size, generator=g) < share).double()
    own, shared, noise = torch.randn(3, size, generator=g, dtype=torch.float64)
    first = 1.2 * (own + 1.2 * (y - 0.5))  # log p(x|1) / p(x|0) of x ~ N(+-0.6, 1)
    second = 1.5 * (shared + 1.5 * (y - 0.5))
    third = 0.75 * (shared + noise + 1.5 * (y - 0.5))  # x ~ N(+-0.75, 2)
    return torch.stack([first, second, third], 1)[:, :, None].float(), y, torch.tensor([share])


def test_the_start_counts_each_finding_once_and_ignores_the_echo() -> None:
    evidence, _, share = gaussian_evidence()
    found = Evidence.of(evidence, share)
    assert found is not None
    w = found.omega(per_output=False).softmax(1)
    assert w[0, 0].item() == pytest.approx(w[0, 1].item(), rel=0.1)
    assert w[0, 2].item() < 0.05
    assert (found.scale(w)[0] * w[0, :2]).tolist() == pytest.approx([1, 1], abs=0.08)


def test_the_shift_is_that_of_the_classes() -> None:
    evidence, y, share = gaussian_evidence()
    found = Evidence.of(evidence, share)
    assert found is not None
    apart = evidence[y == 1, :, 0].mean(0) - evidence[y == 0, :, 0].mean(0)
    assert found.shift()[0].tolist() == pytest.approx(apart.tolist(), rel=0.06)


def test_equal_and_independent_specialists_count_the_same_and_add_up() -> None:
    evidence, _, _ = gaussian_evidence()
    three = torch.cat([evidence[:6000, :1], evidence[6000:12000, :1], evidence[12000:18000, :1]], 1)
    rare = torch.tensor([1e-3])  # each patient's findings are independent here, as they are within one class
    found = Evidence.of(three, rare)
    assert found is not None
    w = found.omega(per_output=False).softmax(1)
    assert w[0].tolist() == pytest.approx([1 / 3] * 3, abs=0.03)
    assert found.scale(w).item() == pytest.approx(3, rel=0.08)


def test_one_specialist_said_three_times_is_one_specialist() -> None:
    evidence, _, share = gaussian_evidence(5000)
    found = Evidence.of(evidence[:, :1].repeat(1, 3, 1), share)
    assert found is not None
    assert found.scale(torch.full((1, 3), 1 / 3)).item() == pytest.approx(1, rel=0.06)


@pytest.mark.parametrize("times", [1, 2, 4])
def test_specialists_who_are_too_sure_are_not_scaled_up(times: int) -> None:
    evidence, _, share = gaussian_evidence()
    found = Evidence.of(times * evidence, share)
    assert found is not None
    assert found.scale(torch.full((1, 3), 1 / 3)).item() <= 3 + 1e-5  # the sum of their evidence as it stands


def test_every_output_has_its_own_start_if_asked() -> None:
    evidence, _, share = gaussian_evidence(3000)
    both = torch.cat([evidence, evidence.flip(1)], 2)
    found = Evidence.of(both, share.repeat(2))
    assert found is not None
    omega = found.omega(per_output=True)
    assert omega.shape == (2, 3)
    assert torch.allclose(omega[0], omega[1].flip(0), atol=1e-4)
    assert found.omega(per_output=False).shape == (1, 3)
    assert found.scale(omega.softmax(1)).shape == (2,)


def test_few_patients_say_nothing_and_silent_specialists_do_no_harm() -> None:
    evidence, _, share = gaussian_evidence(3000)
    assert Evidence.of(evidence[:29], share) is None
    found = Evidence.of(evidence * torch.tensor([1.0, 1.0, 0.0])[None, :, None], share)
    assert found is not None
    omega = found.omega(per_output=False)
    assert omega.isfinite().all()
    assert found.scale(omega.softmax(1)).isfinite().all()


def test_calibrated_numbers_are_weighted_as_by_the_best_linear_regression() -> None:
    g = torch.Generator().manual_seed(0)
    findings = (
        torch.randn(4000, 3, generator=g, dtype=torch.float64) @ torch.tensor([[1.0, 0.5, 0], [0, 1, 0], [0, 0, 0.3]]).double()
    )
    target = findings.sum(1) + torch.randn(4000, generator=g, dtype=torch.float64)
    slope = (findings * target[:, None]).mean(0) / findings.square().mean(0)
    said = findings * slope  # what each finding alone expects
    found = Evidence.of(said[:, :, None], torch.zeros(1))
    assert found is not None
    weights = found.omega(per_output=False).softmax(1)
    best = torch.linalg.lstsq(said, target).solution
    assert (found.scale(weights) * weights[0]).tolist() == pytest.approx(best.tolist(), abs=0.05)
