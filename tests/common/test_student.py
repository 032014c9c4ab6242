"""The student: an absent modality cannot matter, one prediction rule, and what each fusion computes."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from opacus import GradSampleModule
from torch import Tensor

from common.data.cohort import Batch
from common.learning.losses import Lesson, student_loss
from common.models.ensemble import Calibration, Ensembles, build_teacher, consilium, groups, initial_calibration
from common.models.fusion import BOTTLENECKS, Bottleneck, Features, Joint, Late, Weighted, renormalised, weighted_evidence
from common.models.registry import Encoder, build_encoder, fusions
from common.models.student import Student, StudentOutput, block_of, parameters_of
from common.task import TaskType
from tests.common.samples import KINDS, MODEL, OUTPUTS, make_cohort, make_config, make_task

KIND_AND_FUSION = [(kind, fusion) for kind in KINDS for fusion in fusions()]


def make_student(kind: TaskType, fusion: str, *, per_output: bool = False) -> Student:
    torch.manual_seed(0)
    student = Student(make_task(kind), replace(MODEL, fusion=fusion), per_output=per_output)
    with torch.no_grad():
        student.omega.copy_(torch.randn(student.omega.shape))
    if isinstance(student.fusion, Bottleneck):
        heard(student.fusion)
    return student.eval()


def heard(fusion: Bottleneck) -> Bottleneck:
    """Lets the bottleneck be heard, whose correction starts at zero."""
    torch.nn.init.normal_(fusion.head[-1].weight)  # type: ignore[arg-type]
    return fusion


def loss_and_gradients(student: Student, batch: Batch) -> tuple[StudentOutput, Tensor, list[Tensor]]:
    kind = student.task.type
    ensembles = make_ensembles(kind)
    logits = ensembles(batch)
    prior = torch.zeros(len(student.task.outputs))
    said = consilium(logits, batch.present, student.weights(), initial_calibration(student.task, prior))
    output = student(batch)
    loss = student_loss(
        kind, output, batch, Lesson(logits, batch.present, said, student.prior), student.omega, make_config(kind).distill
    )
    return output, loss, list(torch.autograd.grad(loss, list(student.parameters()), allow_unused=False))


def make_ensembles(kind: TaskType) -> Ensembles:
    torch.manual_seed(1)
    task = make_task(kind)
    teachers = {g: build_teacher(g, task, MODEL) for g in groups(task, MODEL)}
    for teacher in teachers.values():
        torch.nn.init.normal_(teacher.head.weight)
    return Ensembles(task, MODEL, {g: t.state_dict() for g, t in teachers.items()})


@pytest.mark.parametrize(("kind", "fusion"), KIND_AND_FUSION)
def test_what_an_absent_modality_holds_changes_nothing(kind: TaskType, fusion: str) -> None:
    student = make_student(kind, fusion, per_output=True)
    batch = make_cohort(student.task, 24).batch()  # NaN where absent
    other = {
        m: torch.where(batch.present[:, k].reshape(-1, *[1] * (x.ndim - 1)), x, 3.0)
        for k, (m, x) in enumerate(batch.inputs.items())
    }
    output, loss, gradients = loss_and_gradients(student, batch)
    output2, loss2, gradients2 = loss_and_gradients(student, replace(batch, inputs=other))
    for a, b in [(output.features, output2.features), (output.unimodal, output2.unimodal), (output.fused, output2.fused)]:
        assert torch.equal(a, b)
    assert loss.isfinite()
    assert torch.equal(loss, loss2)
    assert all(g.isfinite().all() and torch.equal(g, h) for g, h in zip(gradients, gradients2, strict=True))
    assert not output.features[~batch.present].any()
    assert not output.unimodal[~batch.present].any()


@pytest.mark.parametrize(("kind", "fusion"), KIND_AND_FUSION)
def test_a_patient_is_predicted_alike_alone_and_among_others(kind: TaskType, fusion: str) -> None:
    student = make_student(kind, fusion)
    cohort = make_cohort(student.task, 12)
    together = student(cohort.batch()).prediction()
    alone = torch.cat([student(cohort.batch(torch.tensor([i]))).prediction() for i in range(12)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_lone_modality_is_predicted_by_its_own_head_and_several_by_the_fused_one() -> None:
    student = make_student("multilabel", "joint")
    batch = make_cohort(student.task, 40, complete=True).batch()
    present = torch.rand(40, 4, generator=torch.Generator().manual_seed(0)) < 0.35
    present[:, 0] |= ~present.any(1)
    output = student(batch.masked(present))
    prediction = output.prediction()
    assert {1, 2} <= set(present.sum(1).tolist())
    for b in range(40):
        held = present[b].nonzero().flatten().tolist()
        assert torch.equal(prediction[b], output.unimodal[b, held[0]] if len(held) == 1 else output.fused[b])


@pytest.mark.parametrize("kind", KINDS)
def test_masking_is_the_same_as_not_holding(kind: TaskType) -> None:
    student = make_student(kind, "weighted")
    batch = make_cohort(student.task, 10, complete=True).batch()
    kept = torch.tensor([True, False, True, False])
    absent = {m: x if k else torch.full_like(x, torch.nan) for (m, x), k in zip(batch.inputs.items(), kept.tolist(), strict=True)}
    masked = student(batch.masked(kept)).prediction()
    assert torch.equal(masked, student(Batch(absent, kept.expand(10, 4), batch.labels)).prediction())


ENCODERS: dict[str, Encoder] = {
    n: build_encoder(make_task().modalities[n], "linear", 4, 0.0) for n in ("admission", "labs", "note")
}


def fusion_inputs(outputs: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    held = present[:, :, None]
    weights = torch.tensor([[0.5, 0.3, 0.2]])
    return (
        torch.randn(3, 3, 4, generator=g) * held,
        torch.randn(3, 3, outputs, generator=g) * held,
        present,
        weights,
        torch.randn(outputs),
    )


def test_late_fusion_adds_the_weighted_evidence_up_and_does_not_renormalise() -> None:
    features, logits, present, weights, prior = fusion_inputs()
    late = Late(ENCODERS, 4, 2, 0.0)
    scale, bias = torch.tensor([2.0, 3.0]), torch.tensor([0.1, -0.1])
    late.start_at(scale, bias)
    fused = late(Features(features), logits, present, weights, prior)
    for b in range(3):
        evidence = sum(weights[0, m] * (logits[b, m] - prior) for m in range(3) if present[b, m])
        assert torch.allclose(fused[b], prior + bias + scale * evidence, atol=1e-6)


def test_late_fusion_starts_as_the_sum_of_the_unimodal_evidence() -> None:
    features, logits, _, _, prior = fusion_inputs()
    everything, equal = torch.ones(3, 3, dtype=torch.bool), torch.full((1, 3), 1 / 3)
    fused = Late(ENCODERS, 4, 2, 0.0)(Features(features), logits, everything, equal, prior)
    assert torch.allclose(fused, prior + (logits - prior).sum(1), atol=1e-6)


def test_weighted_fusion_reads_the_renormalised_sum_of_the_present_features() -> None:
    features, logits, present, weights, prior = fusion_inputs()
    fusion = Weighted(ENCODERS, 4, 2, 0.0)
    fused = fusion(Features(features), logits, present, weights, prior)
    assert torch.allclose(fused[1], fusion.head((0.5 * features[1, 0] + 0.2 * features[1, 2]) / 0.7), atol=1e-6)
    assert torch.allclose(fused[2], fusion.head(features[2, 1]), atol=1e-6)


def test_joint_fusion_fills_an_absent_slot_with_the_weighted_mean_of_the_present_ones() -> None:
    features, logits, present, weights, prior = fusion_inputs()
    fusion = Joint(ENCODERS, 4, 2, 0.0)
    fused = fusion(Features(features), logits, present, weights, prior)
    filled = (0.5 * features[1, 0] + 0.2 * features[1, 2]) / 0.7
    assert torch.allclose(fused[1], fusion.head(torch.cat([features[1, 0], filled, features[1, 2]])), atol=1e-6)
    assert torch.allclose(fused[0], fusion.head(features[0].flatten()), atol=1e-6)


def bottleneck_inputs(*lengths: int) -> tuple[Bottleneck, Features]:
    torch.manual_seed(3)
    encoders = dict(ENCODERS)
    fusion = heard(Bottleneck(encoders, 4, 2, 0.0)).eval()
    tokens = tuple(torch.randn(3, n, e.features) for n, e in zip(lengths, encoders.values(), strict=True))
    return fusion, Features(fusion_inputs()[0], tokens, tuple(torch.ones(t.shape[:2], dtype=torch.bool) for t in tokens))


@pytest.mark.parametrize("lengths", [(5, 2, 3), (3, 2, 3), (1, 1, 1)])
def test_the_bottleneck_is_pooled_over_the_modalities_present_by_their_weights(lengths: tuple[int, ...]) -> None:
    _, logits, present, weights, prior = fusion_inputs()
    fusion, features = bottleneck_inputs(*lengths)
    fused = fusion(features, logits, present, weights, prior)
    shared = fusion.bottleneck(torch.zeros(1, BOTTLENECKS, 4))
    streams = [layer(t[1:2]) for layer, t in zip(fusion.tokens.values(), features.tokens, strict=True)]
    for block in fusion.blocks:
        after = [block(torch.cat([z, shared], 1), torch.ones(1, z.shape[1] + BOTTLENECKS)) for z in streams]
        streams = [a[:, :-BOTTLENECKS] for a in after]
        shared = (0.5 * after[0][:, -BOTTLENECKS:] + 0.2 * after[2][:, -BOTTLENECKS:]) / 0.7
    late = fusion.evidence(features, logits, present, weights, prior)
    assert torch.allclose(fused[1], late[1] + fusion.head(shared.mean(1))[0], atol=1e-5)  # this patient lacks the second modality


def test_the_bottleneck_starts_as_late_fusion_with_the_consiliums_scale_and_bias() -> None:
    _, logits, present, weights, prior = fusion_inputs()
    fusion, late = Bottleneck(ENCODERS, 4, 2, 0.0), Late(ENCODERS, 4, 2, 0.0)
    for f in (fusion, late):
        f.start_at(torch.tensor([2.0, 3.0]), torch.tensor([0.1, -0.1]))
    features = bottleneck_inputs(5, 2, 3)[1]
    assert torch.equal(fusion(features, logits, present, weights, prior), late(features, logits, present, weights, prior))


@pytest.mark.parametrize("lengths", [(5, 2, 3), (2, 2, 2)])
def test_a_modality_hears_of_another_through_the_bottleneck_alone(lengths: tuple[int, ...]) -> None:
    _, logits, present, weights, prior = fusion_inputs()
    fusion, features = bottleneck_inputs(*lengths)
    alone = torch.tensor([[1.0, 0.0, 0.0]])
    changed = replace(features, tokens=(features.tokens[0], features.tokens[1] + 1, features.tokens[2]))
    everything = torch.ones_like(present)
    two = [fusion(f, logits, everything, alone, prior) for f in (features, changed)]
    assert torch.allclose(*two, atol=1e-6)  # a weight of zero: its exchange never reaches the others
    both = [fusion(f, logits, everything, weights, prior) for f in (features, changed)]
    assert not torch.allclose(*both, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # the first layer's inputs are data
@pytest.mark.parametrize("lengths", [(5, 2, 3), (2, 2, 2)])
def test_dp_sgd_gets_the_gradient_of_every_patient_through_the_bottleneck(lengths: tuple[int, ...]) -> None:
    _, logits, present, weights, prior = fusion_inputs()
    fusion, features = bottleneck_inputs(*lengths)
    alone = copy.deepcopy(fusion)
    wrapped = GradSampleModule(fusion.train(), loss_reduction="sum")
    wrapped(features, logits, present, weights, prior).square().sum().backward()
    samples = {n: p.grad_sample.clone() for n, p in wrapped._module.named_parameters()}
    for i in range(len(present)):
        alone.zero_grad()
        one = Features(features.pooled[i : i + 1], *(tuple(t[i : i + 1] for t in ts) for ts in (features.tokens, features.seen)))
        alone(one, logits[i : i + 1], present[i : i + 1], weights, prior).square().sum().backward()
        for n, p in alone.named_parameters():
            assert p.grad is not None
            assert torch.allclose(samples[n][i], p.grad, rtol=1e-3, atol=1e-5), n


def test_columns_places_steps_and_words_reach_what_the_whole_student_says_with_any_pattern() -> None:
    config = make_config(fusion="bottleneck")
    by_parts = {"image": "small", "series": "conv", "table": "attention", "text": "attention"}
    torch.manual_seed(0)
    student = Student(config.task, replace(config.model, student=by_parts)).eval()
    assert isinstance(student.fusion, Bottleneck)
    heard(student.fusion)
    batch = make_cohort(config.task, 12, complete=True).batch()
    features = student.features(batch)
    assert all(tokens.shape[1] > 1 for tokens in features.tokens)
    for pattern in torch.cartesian_prod(*[torch.tensor([False, True])] * 4)[1:]:
        present = pattern.expand(12, -1)
        said = student.speak(features, present).fused
        assert said.isfinite().all()
        for at in range(4):  # tokens alone: what is pooled of the modality stays
            tokens = tuple(t * (k != at) for k, t in enumerate(features.tokens))
            changed = student.speak(replace(features, tokens=tokens), present).fused != said
            assert (changed.any(1) == pattern[at]).all(), f"modality {at} of {pattern.tolist()}"


def test_tokens_that_are_not_seen_do_not_matter() -> None:
    _, logits, present, weights, prior = fusion_inputs()
    fusion, features = bottleneck_inputs(5, 2, 3)
    seen = (torch.tensor([[True, True, False, False, True]]).expand(3, 5), *features.seen[1:])
    hidden = features.tokens[0].clone()
    hidden[:, 2:4] = 9.0
    said = fusion(replace(features, seen=seen), logits, present, weights, prior)
    other = fusion(replace(features, seen=seen, tokens=(hidden, *features.tokens[1:])), logits, present, weights, prior)
    assert torch.equal(said, other)


def test_renormalised_weights_of_the_present_sum_to_one() -> None:
    _, _, present, weights, _ = fusion_inputs()
    held = renormalised(weights[0], present)
    assert torch.allclose(held.sum(1), torch.ones(3))
    assert not held[~present].any()


def calibration(outputs: int) -> Calibration:
    g = torch.Generator().manual_seed(4)
    return Calibration(*(torch.randn(outputs, generator=g) for _ in range(3)))


@pytest.mark.parametrize("rows", [1, 2])
def test_the_consilium_is_prior_plus_bias_plus_scaled_weighted_evidence(rows: int) -> None:
    _, logits, present, _, _ = fusion_inputs()
    weights = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])[:rows]
    c = calibration(2)
    said = consilium(logits, present, weights, c)
    for b in range(3):
        for o in range(2):
            w = weights[min(o, rows - 1)]
            evidence = sum(w[m] * (logits[b, m, o] - c.prior[o]) for m in range(3) if present[b, m])
            assert said[b, o].item() == pytest.approx((c.prior[o] + c.bias[o] + c.scale[o] * evidence).item(), abs=1e-5)


def test_a_patient_of_whom_no_teacher_speaks_gets_prior_and_bias() -> None:
    _, logits, _, weights, _ = fusion_inputs()
    c = calibration(2)
    said = consilium(logits, torch.zeros(3, 3, dtype=torch.bool), weights, c)
    assert torch.allclose(said, (c.prior + c.bias).expand(3, 2))


def test_weights_per_label_do_not_mix_labels_that_do_not_exclude_each_other() -> None:
    _, logits, present, _, prior = fusion_inputs()
    weights = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    before = weighted_evidence(logits, present, weights, prior)
    after = weighted_evidence(logits + torch.tensor([0.0, 7.0]), present, weights, prior)
    assert torch.equal(before[:, 0], after[:, 0])


def test_a_constant_added_to_all_class_logits_of_a_network_changes_no_statement() -> None:
    # Softmax logits are defined up to a constant; with a weight, scale and bias per class it would matter.
    task = make_task("multiclass")
    batch = make_cohort(task, 20).batch()
    ensembles, student = make_ensembles("multiclass"), make_student("multiclass", "late", per_output=True)
    weights, c = student.weights(), calibration(3)
    said, fused = consilium(ensembles(batch), batch.present, weights, c), student(batch).fused
    with torch.no_grad():
        for teacher in ensembles.members.values():
            teacher.head.bias += 3.0  # type: ignore[union-attr, operator]
        for head in student.heads.values():
            head.bias += 3.0  # type: ignore[operator]
    assert torch.allclose(consilium(ensembles(batch), batch.present, weights, c), said, atol=1e-5)
    assert torch.allclose(student(batch).fused, fused, atol=1e-5)


def test_an_ensemble_says_the_mean_of_its_architectures() -> None:
    ensembles = make_ensembles("binary")
    cohort = make_cohort(make_task("binary"), 15)
    batch, at = cohort.batch(), list(cohort.task.modalities).index("labs")
    held = batch.present[:, at]
    x = batch.inputs["labs"][held]
    mean = (ensembles.members["labs/linear"](x) + ensembles.members["labs/small"](x)) / 2
    said = ensembles(batch)
    assert torch.allclose(said[held, at], mean, atol=1e-6)
    assert not said[~held, at].any()


def test_a_modality_without_a_teacher_has_no_voice() -> None:
    task = make_task("binary")
    states = {g: t.state_dict() for g, t in make_ensembles("binary").members.items() if not g.startswith("labs")}
    ensembles = Ensembles(task, MODEL, states)
    assert ensembles.modalities() == {"admission", "cxr", "note"}
    assert not ensembles(make_cohort(task, 15).batch())[:, 2].any()


@pytest.mark.parametrize(("kind", "fusion"), KIND_AND_FUSION)
def test_every_head_starts_from_the_prior(kind: TaskType, fusion: str) -> None:
    student = Student(make_task(kind), replace(MODEL, fusion=fusion)).eval()
    prior = torch.linspace(-1, 1, len(OUTPUTS[kind])) if kind == "multiclass" else torch.full((len(OUTPUTS[kind]),), -2.0)
    student.start_at(prior)
    assert torch.equal(student.prior, prior)
    nothing = {m: torch.zeros_like(x) for m, x in make_cohort(student.task, 4).inputs.items()}
    for head in student.heads.values():
        assert torch.equal(head.bias, prior)  # type: ignore[arg-type]
    if fusion in ("joint", "weighted"):
        assert torch.equal(student.fusion.head[-1].bias, prior)  # type: ignore[union-attr, index]
        return
    everything = torch.ones(4, 4, dtype=torch.bool)
    features, alike = student.features(Batch(nothing, everything, torch.zeros(4))), prior.expand(4, 4, -1)
    fused = student.fusion(features, alike, everything, student.weights(), student.prior)  # nobody tells anything
    assert torch.allclose(fused, prior.expand(4, -1), atol=1e-6)


@pytest.mark.parametrize("fusion", fusions())
def test_every_parameter_belongs_to_the_block_of_its_modality_or_to_fusion(fusion: str) -> None:
    student = make_student("binary", fusion)
    blocks = {name: block_of(name) for name, _ in student.named_parameters()}
    tokens = {f"tokens.{m}" for m in student.task.modalities} if fusion == "bottleneck" else set()
    assert set(blocks.values()) == {*student.task.modalities, "fusion", *tokens}
    assert all(block in name for name, block in blocks.items())
    assert parameters_of(student) == sum(p.numel() for p in student.parameters())


@pytest.mark.parametrize(("per_output", "rows"), [(False, 1), (True, 3)])
def test_modality_weights_are_a_distribution_per_row_and_no_parameter(per_output: bool, rows: int) -> None:
    student = make_student("multiclass", "late", per_output=per_output)
    assert student.weights().shape == (rows, 4)
    assert torch.allclose(student.weights().sum(1), torch.ones(rows))
    assert "omega" not in dict(student.named_parameters())
    assert {"omega", "prior"} <= set(student.state_dict())
