"""Between torch modules and the named arrays that travel and are stored."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from torch import Tensor, nn

from common.data.standardise import Moments, Standardisation
from common.models.ensemble import Calibration

Arrays = dict[str, NDArray[Any]]


def module_arrays(module: nn.Module) -> Arrays:
    """Returns parameters and buffers of a module as copies."""
    return {n: t.detach().cpu().numpy().copy() for n, t in module.state_dict().items()}


def tensors(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """Returns arrays as tensors with memory of their own."""
    return {n: torch.from_numpy(np.array(a)) for n, a in arrays.items()}


def consilium_arrays(calibration: Calibration, omega: Tensor) -> Arrays:
    """Returns ``scale``, ``bias`` and ``prior`` [C] and ``omega`` [C or 1, M]."""
    named = {"scale": calibration.scale, "bias": calibration.bias, "prior": calibration.prior, "omega": omega}
    return {n: t.detach().numpy().copy() for n, t in named.items()}


def consilium_of(arrays: Mapping[str, NDArray[Any]]) -> tuple[Calibration, Tensor]:
    """Returns calibration and omega of :func:`consilium_arrays`."""
    loaded = tensors(arrays)
    return Calibration(loaded["scale"], loaded["bias"], loaded["prior"]), loaded["omega"]


def moments_arrays(moments: Mapping[str, Moments]) -> dict[str, Arrays]:
    """Returns modality -> count, mean and variance."""
    return {m: {"count": v.count, "mean": v.mean, "variance": v.variance} for m, v in moments.items()}


def moments_of(arrays: Mapping[str, Arrays]) -> dict[str, Moments]:
    """Returns the moments of :func:`moments_arrays`."""
    return {m: Moments(a["count"], a["mean"], a["variance"]) for m, a in arrays.items()}


def standardisation_of(arrays: Mapping[str, Arrays]) -> Standardisation:
    """Returns the pooled standardisation that a message carries."""
    return Standardisation(moments_of(arrays))


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a run killed meanwhile, sees the old or the new one, never half of it."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: object) -> None:
    """Writes JSON atomically."""
    write_atomically(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], **metadata: str) -> None:
    """Writes arrays as safetensors, atomically."""
    # None instead of {}: with neither arrays nor metadata, safetensors writes a file that it cannot read.
    write_atomically(path, save({n: np.asarray(a, order="C") for n, a in arrays.items()}, metadata=metadata or None))


def read_arrays(path: Path) -> Arrays:
    """Returns the arrays of a safetensors file."""
    loaded: Arrays = load_file(path)
    return loaded
