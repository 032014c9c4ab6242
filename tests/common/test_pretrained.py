"""The pretrained text encoder: local, verified, frozen, and loud when it is not what it should be."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from opacus import GradSampleModule
from opacus.validators import ModuleValidator
from safetensors.torch import save_file
from torch import Tensor, nn

from common.arrays import module_arrays, tensors
from common.errors import ConsiliumError
from common.models.encoders.pretrained import ENVIRONMENT
from common.models.encoders.text import AttentionText
from common.models.student import parameters_of
from common.models.teacher import Teacher
from common.task import Modality
from server.aggregation import weighted_mean
from tests.common.samples import MODALITIES, make_inputs

TEXT = MODALITIES["note"]
WIDTH = 6


def sums(folder: Path) -> None:
    names = ("model.safetensors", "config.json")
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines))


def write(folder: Path, seed: int = 0, buckets: int = TEXT.buckets) -> AttentionText:
    torch.manual_seed(seed)
    network = AttentionText(Modality("text", buckets=buckets, tokens=TEXT.tokens), WIDTH, 0.0).eval()
    nn.init.normal_(network.wide.weight)
    folder.mkdir()
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"buckets": buckets, "tokens": TEXT.tokens, "width": WIDTH}))
    sums(folder)
    return network


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "encoder"))
    return tmp_path / "encoder"


def teacher() -> Teacher:
    return Teacher(TEXT, "pretrained", 3, width=4, dropout=0.0)


def draw() -> Tensor:
    return make_inputs(TEXT, 5, torch.Generator().manual_seed(0))


def test_it_says_what_the_stored_encoder_says_and_only_a_linear_map_of_it_learns_and_travels(folder: Path) -> None:
    network, mine, x = write(folder), teacher(), draw()
    assert torch.equal(mine.encoder.frozen(x), network(x))  # type: ignore[operator]
    learning = {n for n, p in mine.named_parameters() if p.requires_grad}
    assert learning == {"encoder.out.1.weight", "encoder.out.1.bias", "head.weight", "head.bias"}
    assert parameters_of(mine) == (WIDTH + 1) * 4 + (4 + 1) * 3
    assert set(module_arrays(mine)) == learning | {"encoder.fingerprint"}
    mine.train()
    nn.functional.cross_entropy(mine(x), torch.tensor([0, 1, 2, 0, 1])).backward()
    assert mine(x[:0]).shape == (0, 3)
    assert torch.equal(mine.encoder.frozen(x), network(x))  # type: ignore[operator]


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # the inputs are data
def test_dp_sgd_and_second_derivatives_reach_the_linear_map(folder: Path) -> None:
    write(folder)
    mine, x = teacher(), draw()
    assert ModuleValidator.validate(mine, strict=False) == []
    parameters = {n: p for n, p in mine.named_parameters() if p.requires_grad}
    scale = torch.ones((), requires_grad=True)
    gradients = torch.autograd.grad(scale * mine(x).square().sum(), list(parameters.values()), create_graph=True)
    moved = {n: p - 0.01 * g for (n, p), g in zip(parameters.items(), gradients, strict=True)}
    (second,) = torch.autograd.grad(torch.func.functional_call(mine, moved, (x,)).square().sum(), scale)
    assert second != 0
    wrapped = GradSampleModule(mine)
    wrapped(x).square().sum().backward()
    assert all(p.grad_sample.shape == (5, *p.shape) for p in wrapped.parameters() if p.requires_grad)


def test_its_fingerprint_survives_the_mean_over_sites_and_tells_another_directory(folder: Path, tmp_path: Path) -> None:
    write(folder)
    arrays = module_arrays(teacher())
    mean = weighted_mean({"a": arrays, "b": arrays, "c": arrays}, {"a": 3, "b": 7, "c": 11})
    teacher().load_state_dict(tensors(mean))
    folder.rename(tmp_path / "former")
    write(folder, seed=1)
    with pytest.raises(ConsiliumError, match="not the one that this run began with"):
        teacher().load_state_dict(tensors(mean))


def damage(folder: Path, fault: str) -> None:
    if fault == "a file is missing":
        (folder / "config.json").unlink()
    elif fault == "changed weights":
        content = bytearray((folder / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (folder / "model.safetensors").write_bytes(content)
    elif fault == "no checksum":
        (folder / "SHA256SUMS").write_text("")
    elif fault == "other settings":
        (folder / "config.json").write_text(json.dumps({"buckets": TEXT.buckets, "tokens": TEXT.tokens, "width": WIDTH + 1}))
        sums(folder)
    else:
        (folder / "model.safetensors").write_bytes(b"no safetensors")
        sums(folder)


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("a file is missing", r"cannot be read \(FileNotFoundError\).* Correct the variable"),
        ("changed weights", "was changed: model.safetensors .* Copy the directory again"),
        ("no checksum", "was changed"),
        ("other settings", r"is none \(RuntimeError\).* Make it anew"),
        ("no weights", "is none"),
    ],
)
def test_a_directory_that_is_damaged_is_refused_with_the_remedy(folder: Path, fault: str, cause: str) -> None:
    write(folder)
    damage(folder, fault)
    with pytest.raises(ConsiliumError, match=cause) as found:
        teacher()
    assert str(folder) not in str(found.value)


def test_an_encoder_for_other_texts_is_refused(folder: Path) -> None:
    write(folder, buckets=32)
    with pytest.raises(ConsiliumError, match="8 tokens in 32 buckets, the task has 8 in 64"):
        teacher()


def test_without_the_variable_it_says_how_to_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    with pytest.raises(ConsiliumError, match=f"{ENVIRONMENT} is needed.* Set it"):
        teacher()
