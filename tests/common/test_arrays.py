"""Named arrays: between modules, messages and files nothing changes, and a reader never sees half a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from common.arrays import (
    consilium_arrays,
    consilium_of,
    module_arrays,
    moments_arrays,
    moments_of,
    read_arrays,
    standardisation_of,
    tensors,
    write_arrays,
    write_atomically,
    write_json,
)
from common.data.standardise import Moments
from common.models.ensemble import Calibration
from common.models.student import Student
from tests.common.samples import MODEL, make_task


def test_a_network_survives_arrays_and_files(tmp_path: Path) -> None:
    student, other = Student(make_task(), MODEL), Student(make_task(), MODEL)
    arrays = module_arrays(student)
    write_arrays(tmp_path / "s.safetensors", arrays, task="toy")
    read = read_arrays(tmp_path / "s.safetensors")
    assert {n: (a.dtype, a.shape) for n, a in read.items()} == {n: (a.dtype, a.shape) for n, a in arrays.items()}
    other.load_state_dict(tensors(read))
    assert all(torch.equal(a, b) for a, b in zip(student.state_dict().values(), other.state_dict().values(), strict=True))


def test_arrays_are_copies_that_later_training_does_not_change() -> None:
    layer = torch.nn.Linear(2, 1)
    arrays = module_arrays(layer)
    loaded = tensors(arrays)
    with torch.no_grad():
        layer.bias += 1
        loaded["bias"] += 5
    assert arrays["bias"].item() == pytest.approx(layer.bias.item() - 1, abs=1e-6)


@pytest.mark.parametrize(
    "array", [np.array(3.5), np.zeros((0, 2), np.float32), np.arange(6).reshape(2, 3).T, np.array([True, False])]
)
def test_every_shape_survives_a_file(tmp_path: Path, array: np.ndarray) -> None:
    write_arrays(tmp_path / "a.safetensors", {"a": array})
    read = read_arrays(tmp_path / "a.safetensors")["a"]
    assert (read.shape, read.dtype) == (array.shape, array.dtype)
    assert np.array_equal(read, array)


def test_the_consilium_and_the_standardisation_survive_arrays() -> None:
    calibration, omega = Calibration(torch.tensor([2.0]), torch.tensor([0.1]), torch.tensor([-1.0])), torch.tensor([[0.1, 0.2]])
    back, weights = consilium_of(consilium_arrays(calibration, omega))
    assert (back.scale, back.bias, back.prior, weights.tolist()) == (2.0, pytest.approx(0.1), -1.0, omega.tolist())
    moments = {"labs": Moments(np.array([3.0]), np.array([1.0]), np.array([2.0]))}
    assert moments_of(moments_arrays(moments)) == moments
    assert standardisation_of(moments_arrays(moments)).moments == moments


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "state.json"
    write_json(file, {"round": 1})

    def die(fd: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", die)
    with pytest.raises(OSError, match="disk full"):
        write_json(file, {"round": 2})
    assert file.read_text() == '{\n "round": 1\n}\n'


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "a"
    write_atomically(file, b"old and long")
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_json_without_a_number_for_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []
