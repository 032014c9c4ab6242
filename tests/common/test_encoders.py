"""Every registered encoder: shapes, empty batches, second derivatives, and training under DP-SGD."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from opacus import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from common.models.attention import AttentionBlock
from common.models.encoders.series import SUMMARIES, steps_since, summaries
from common.models.encoders.table import AttentionTable, table_features
from common.models.encoders.text import bag_of_words
from common.models.encoders.trend import TRENDS, trends
from common.models.registry import Encoder, architectures, build_encoder, build_fusion, fusions
from common.models.student import Student, parameters_of
from common.models.teacher import Teacher
from common.task import Modality
from tests.common.samples import EVERY_KIND, MODALITIES, MODEL, every_encoder, make_inputs, make_task

WIDTH = 4
READ_STEPS = {("labs", "conv"), ("labs", "attention"), ("labs", "gru")}


def make_teacher(name: str, architecture: str) -> Teacher:
    torch.manual_seed(0)
    teacher = Teacher(EVERY_KIND[name], architecture, 3, width=WIDTH, dropout=0.0)
    with torch.no_grad():  # some start at zero, where gradients vanish
        for p in teacher.parameters():
            p += 0.1 * torch.randn(p.shape)
    return teacher


def draw(name: str, size: int, seed: int = 0) -> Tensor:
    return make_inputs(EVERY_KIND[name], size, torch.Generator().manual_seed(seed))


def leaves(module: nn.Module) -> Iterator[nn.Module]:
    return (m for m in module.modules() if not list(m.children()))


@pytest.mark.parametrize("kind", ["image", "series", "table", "text", "audio"])
def test_every_kind_has_a_linear_a_small_and_a_base_teacher_and_a_compact_student(kind: str) -> None:
    assert {"linear", "small", "base", "compact"} <= set(architectures(kind))


@pytest.mark.parametrize(("name", "architecture"), every_encoder())
def test_an_encoder_maps_any_number_of_patients_to_its_features_and_leaves_its_input_alone(name: str, architecture: str) -> None:
    encoder = build_encoder(EVERY_KIND[name], architecture, WIDTH, 0.1).eval()
    x = draw(name, 5)
    before = x.clone()
    features = encoder(x)
    assert features.shape == (5, encoder.features)
    assert features.isfinite().all()
    assert torch.equal(x, before)
    assert encoder(x[:0]).shape == (0, encoder.features)
    assert torch.allclose(encoder(x[2:3]), features[2:3], atol=1e-5)


@pytest.mark.parametrize(("name", "architecture"), every_encoder())
def test_what_an_encoder_prepares_it_reads_as_it_reads_its_inputs(name: str, architecture: str) -> None:
    encoder = make_teacher(name, architecture).encoder.eval()
    x = draw(name, 5)
    prepared = encoder.prepared(x)
    assert prepared.numel() <= 2 * x.numel()
    assert encoder.prepared(prepared) is prepared
    assert torch.equal(encoder(prepared), encoder(x))
    assert torch.equal(encoder.read(prepared).tokens, encoder.read(x).tokens)


@pytest.mark.parametrize(("name", "architecture"), every_encoder())
def test_an_encoder_tells_its_feature_and_the_tokens_it_was_made_of(name: str, architecture: str) -> None:
    encoder = build_encoder(EVERY_KIND[name], architecture, WIDTH, 0.1).eval()
    x = draw(name, 5)
    reading = encoder.read(x)
    assert torch.equal(reading.feature, encoder(x))
    assert reading.tokens.shape == (5, reading.seen.shape[1], encoder.token_width or encoder.features)
    assert reading.seen.dtype == torch.bool
    assert encoder.read(x[:0]).tokens.shape == (0, *reading.tokens.shape[1:])
    if encoder.token_width is None:
        assert torch.equal(reading.tokens, reading.feature[:, None])


def test_a_column_has_a_token_of_its_own() -> None:
    encoder = build_encoder(EVERY_KIND["admission"], "attention", WIDTH, 0.0).eval()
    assert isinstance(encoder, AttentionTable)
    x = draw("admission", 4)
    x[:, :, 0], other = 0.3, x.clone()
    other[:, 0, 0] = 1.5
    said = table_features(x).unflatten(1, (3, -1))
    changed = table_features(other).unflatten(1, (3, -1))
    assert (said != changed).any(1).any(0).tolist() == [True, *[False] * (x.shape[2] - 1)]
    assert not torch.allclose(encoder(x), encoder(other), atol=1e-4)


def test_the_words_that_pad_a_text_are_no_tokens() -> None:
    x = draw("note", 3)
    x[:, :, 5:] = 0
    for architecture in ("base", "attention"):
        assert not build_encoder(EVERY_KIND["note"], architecture, WIDTH, 0.0).read(x).seen[:, 5:].any()


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # the first layer's inputs are data
@pytest.mark.parametrize(("name", "architecture"), every_encoder())
def test_dp_sgd_gets_the_gradient_of_every_patient(name: str, architecture: str) -> None:
    teacher = make_teacher(name, architecture)
    assert ModuleValidator.validate(teacher, strict=False) == []
    assert not any(isinstance(m, nn.modules.batchnorm._NormBase) for m in teacher.modules())
    assert not any(getattr(m, "inplace", False) for m in teacher.modules())
    x, labels = draw(name, 6), torch.rand(6, 3)
    wrapped = GradSampleModule(teacher.train(), loss_reduction="sum")
    nn.functional.binary_cross_entropy_with_logits(wrapped(x), labels, reduction="sum").backward()
    samples = {n: p.grad_sample.clone() for n, p in wrapped._module.named_parameters()}
    alone = make_teacher(name, architecture).eval()
    for i in range(6):
        alone.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(alone(x[i : i + 1]), labels[i : i + 1], reduction="sum").backward()
        for n, p in alone.named_parameters():
            assert p.grad is not None
            assert torch.allclose(samples[n][i], p.grad, rtol=1e-3, atol=1e-4), n


@pytest.mark.parametrize(("name", "architecture"), every_encoder())
def test_a_virtual_step_can_be_differentiated_through_an_encoder(name: str, architecture: str) -> None:
    teacher = make_teacher(name, architecture).double().eval()
    x = draw(name, 4).double()
    parameters = dict(teacher.named_parameters())
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    gradients = torch.autograd.grad(scale * teacher(x).square().sum(), list(parameters.values()), create_graph=True)
    moved = {n: p - 0.01 * g for (n, p), g in zip(parameters.items(), gradients, strict=True)}
    (second,) = torch.autograd.grad(torch.func.functional_call(teacher, moved, (x,)).square().sum(), scale)
    assert second.isfinite()
    assert second != 0


@pytest.mark.parametrize("name", EVERY_KIND)
def test_teachers_grow_with_their_name_and_the_compact_encoder_is_no_larger_than_the_base_one(name: str) -> None:
    sizes = {a: parameters_of(make_teacher(name, a)) for a in ("compact", "small", "base")}
    assert sizes["small"] <= sizes["base"]
    assert sizes["compact"] <= sizes["base"]


def test_a_linear_teacher_starts_at_the_prior_wherever_it_is_built() -> None:
    prior = torch.tensor([-1.0, 0.5, 0.5])
    for name in EVERY_KIND:
        teacher = Teacher(EVERY_KIND[name], "linear", 3, width=WIDTH, dropout=0.1, prior=prior)
        assert torch.equal(teacher(draw(name, 2)), prior.expand(2, 3))


@pytest.mark.parametrize(
    ("kind", "architecture", "size", "parameters"), [("image", "lenet", 28, 6872), ("audio", "smil", 20, 67254)]
)
def test_the_networks_of_smil_have_its_number_of_parameters(kind: str, architecture: str, size: int, parameters: int) -> None:
    modality = Modality("image", pixels=size) if kind == "image" else Modality("audio", frames=size, coefficients=20)
    assert parameters_of(Teacher(modality, architecture, 10, width=32, dropout=0.5)) == parameters


@pytest.mark.parametrize("architecture", architectures("image"))
@pytest.mark.parametrize("pixels", [8, 15, 16, 28, 33])
def test_images_of_any_size_are_read(architecture: str, pixels: int) -> None:
    encoder = build_encoder(Modality("image", pixels=pixels), architecture, WIDTH, 0.0)
    assert encoder(torch.rand(2, 1, pixels, pixels)).shape == (2, encoder.features)


def test_building_no_monai_network_imports_no_monai() -> None:
    code = (
        "import sys; from common.models.registry import build_encoder; from common.task import Modality; "
        "build_encoder(Modality('image'), 'lenet', 4, 0.0); print({'monai', 'librosa', 'opacus'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(("name", "architecture"), [p for p in every_encoder() if p[0] == "speech" or p in READ_STEPS])
def test_what_a_mask_hides_does_not_matter(name: str, architecture: str) -> None:
    teacher, x = make_teacher(name, architecture).eval(), draw(name, 6)
    hidden = torch.stack([torch.where(x[:, 1] > 0, x[:, 0], 9.0), x[:, 1]], 1)
    assert not torch.equal(hidden, x)
    assert torch.equal(teacher(hidden), teacher(x))
    none = torch.zeros_like(x)
    assert teacher(none).isfinite().all()


@pytest.mark.parametrize("architecture", ["attention", "base"])
def test_words_that_weigh_nothing_are_not_read(architecture: str) -> None:
    teacher, x = make_teacher("note", architecture).eval(), draw("note", 6)
    x[:, 0] = x[:, 0].clamp(min=1)
    x[:, 1, 5:] = 0
    other = x.clone()
    other[:, 0, 5:] = 7
    assert torch.allclose(teacher(other), teacher(x), atol=1e-6)
    other[:, 0, 4] = x[:, 0, 4] % 63 + 1
    assert not torch.allclose(teacher(other), teacher(x), atol=1e-3)
    x[:, 1] = 0
    assert teacher(x).isfinite().all()


@pytest.mark.parametrize(("name", "architecture"), [("labs", "attention"), ("note", "attention"), ("labs", "gru")])
def test_the_order_of_steps_and_words_matters(name: str, architecture: str) -> None:
    teacher, x = make_teacher(name, architecture).eval(), draw(name, 6)
    assert not torch.allclose(teacher(x.flip(2)), teacher(x), atol=1e-3)


def test_time_since_the_last_observation_counts_from_the_start_until_there_is_one() -> None:
    seen = torch.tensor([[[0.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]])
    assert (steps_since(seen) * 4).tolist() == [[[1, 0], [2, 1], [0, 2], [1, 3]]]


def test_attention_is_pytorchs() -> None:
    torch.manual_seed(0)
    block, tokens, seen = AttentionBlock(8, 0.0), torch.randn(3, 5, 8), torch.tensor([[1.0, 1, 1, 0, 0]] * 3)
    theirs = nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": torch.cat([m.weight for m in (block.query, block.key, block.value)]),
            "in_proj_bias": torch.cat([m.bias for m in (block.query, block.key, block.value)]),
            "out_proj.weight": block.mix.weight,
            "out_proj.bias": block.mix.bias,
        }
    )
    normal = block.before(tokens)
    attended = tokens + theirs(normal, normal, normal, key_padding_mask=seen == 0)[0]
    assert torch.allclose(block(tokens, seen), attended + block.perceptron(attended), atol=1e-5)


def test_an_encoder_class_without_forward_says_so() -> None:
    with pytest.raises(TypeError, match="no encoder"):
        Encoder()(torch.zeros(1))


@pytest.mark.parametrize("name", fusions())
def test_fusions_hold_nothing_in_place_and_no_batch_norm(name: str) -> None:
    encoders = {n: build_encoder(m, "linear", WIDTH, 0.1) for n, m in MODALITIES.items()}
    fusion = build_fusion(name, encoders, WIDTH, 2, 0.1)
    assert not any(isinstance(m, nn.modules.batchnorm._NormBase) or getattr(m, "inplace", False) for m in leaves(fusion))


def test_the_student_is_smaller_than_the_teachers_together() -> None:
    student = Student(make_task("multilabel"), MODEL)
    encoders = sum(parameters_of(encoder) for encoder in student.encoders.values())
    base = sum(parameters_of(build_encoder(m, "base", MODEL.width, 0.1)) for m in MODALITIES.values())
    assert encoders < base


def test_series_summaries_see_observed_values_only() -> None:
    value = torch.tensor([[5.0, 1.0, 0.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]]).T[None]
    seen = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]]).T[None]
    hidden = torch.where(seen > 0, value, 99.0)
    found = summaries(torch.stack([value * seen, seen], 1))
    assert found.shape == (1, 2 * SUMMARIES)
    assert found[0, 1::2].tolist() == [0] * SUMMARIES  # never observed
    assert found[0, -2].item() == pytest.approx(2 / 5)
    assert torch.equal(found, summaries(torch.stack([hidden * (seen > 0), seen], 1)))
    later = value.clone()
    later[0, 3, 0] = -3.0
    assert not torch.equal(found, summaries(torch.stack([later * seen, seen], 1)))


def test_trends_see_observed_values_only_and_change_between_halves_that_both_have_one() -> None:
    value = torch.tensor([[-1.0, 0.0, 0.0, 1.0], [9.0, 9.0, 9.0, 1.0], [9.0, 9.0, 9.0, 9.0]]).T[None]
    seen = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]).T[None]
    found = trends(torch.stack([value, seen], 1))
    assert found.shape == (1, 3 * TRENDS)
    change, size, count, ever = found[0, 3 * (TRENDS - 4) :].reshape(4, 3)
    assert change.tolist() == pytest.approx([torch.tensor(2.0).tanh().item(), 0, 0])
    assert size.tolist() == pytest.approx([torch.tensor(2.0).tanh().item() - 0.5, 0, 0])
    assert (count + 1).exp().tolist() == pytest.approx([3, 2, 1])
    assert ever.tolist() == [0.5, 0.5, -0.5]
    hidden = torch.where(seen > 0, value, -7.0)
    assert torch.equal(found, trends(torch.stack([hidden, seen], 1)))


def test_a_bag_of_words_is_the_normalised_sum_of_its_words_and_padding_does_not_count() -> None:
    x = torch.tensor([[[3.0, 5.0, 3.0, 0.0], [2.0, 1.0, 2.0, 0.0]], [[0.0] * 4, [0.0] * 4]])
    bag = bag_of_words(x, 8)
    assert bag[0, [3, 5]].tolist() == pytest.approx([4 / 17**0.5, 1 / 17**0.5])
    assert bag.count_nonzero() == 2
