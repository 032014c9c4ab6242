"""Components by name: an encoder or a fusion is added as one new file, and no other file changes."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Literal, get_args

from torch import Tensor, nn

from common.task import Modality

Size = Literal["linear", "small", "base"]
SIZES: tuple[Size, ...] = get_args(Size)
"""Of teachers, from the smallest: a hospital says which is the largest that its hardware carries."""


class Encoder(nn.Module):
    """Maps one modality to features; subclasses set ``features``, their number, and ``size``, what hardware must carry.

    Encoders stay trainable under DP-SGD: no BatchNorm, nothing in-place.
    """

    features: int
    size: Size = "base"

    def forward(self, x: Tensor) -> Tensor:
        """Returns features [B, features] of model-ready inputs (shapes: ``common.data.standardise``)."""
        raise TypeError(f"{type(self).__name__} is no encoder: it lacks forward().")


class Fusion(nn.Module):
    """Makes fused logits of features and unimodal logits (shapes: ``common.models.fusion``)."""

    def start_at(self, scale: Tensor, bias: Tensor) -> None:
        """Starts from the consilium's s and b, both [C], if it has such parameters."""


_ENCODERS: dict[tuple[str, str], type[Encoder]] = {}
FusionClass = Callable[[int, int, int, float], Fusion]
_FUSIONS: dict[str, FusionClass] = {}


def encoder(kind: str, *names: str) -> Callable[[type[Encoder]], type[Encoder]]:
    """Registers an encoder class, built as ``cls(modality, width, dropout)``, under architecture names of a kind."""

    def register(cls: type[Encoder]) -> type[Encoder]:
        for name in names:
            _ENCODERS[kind, name] = cls
        return cls

    return register


def fusion(name: str) -> Callable[[type[Fusion]], type[Fusion]]:
    """Registers a fusion class, built as ``cls(modalities, width, outputs, dropout)``."""

    def register(cls: type[Fusion]) -> type[Fusion]:
        _FUSIONS[name] = cls
        return cls

    return register


@cache
def _discover() -> None:
    """Imports every module that registers components."""
    from common.models import encoders, fusion  # the modules import this one

    for module in pkgutil.iter_modules(encoders.__path__):
        importlib.import_module(f"{encoders.__name__}.{module.name}")
    importlib.import_module(fusion.__name__)


def architectures(kind: str) -> list[str]:
    """Returns the architecture names of a modality kind."""
    _discover()
    return sorted(name for k, name in _ENCODERS if k == kind)


def fusions() -> list[str]:
    """Returns the names of the fusions."""
    _discover()
    return sorted(_FUSIONS)


def build_encoder(modality: Modality, architecture: str, width: int, dropout: float) -> Encoder:
    """Returns a new encoder; initialised from torch's global generator."""
    _discover()
    made: Callable[[Modality, int, float], Encoder] = _ENCODERS[modality.kind, architecture]
    return made(modality, width, dropout)


def size_of(kind: str, architecture: str) -> Size:
    """Returns the size of an architecture."""
    _discover()
    return _ENCODERS[kind, architecture].size


def build_fusion(name: str, modalities: int, width: int, outputs: int, dropout: float) -> Fusion:
    """Returns a new fusion; initialised from torch's global generator."""
    _discover()
    return _FUSIONS[name](modalities, width, outputs, dropout)
