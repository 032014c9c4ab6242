"""Components by name: an encoder is added as one new file in ``encoders/``, a fusion in ``fusion.py``; nothing else changes."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from common.task import Modality

Size = Literal["linear", "small", "base"]
SIZES: tuple[Size, ...] = get_args(Size)
"""Of teachers, from the smallest: a hospital says which is the largest that its hardware carries."""


@dataclass(frozen=True)
class Reading:
    """What an encoder makes of one modality.

    Attributes:
        feature: [B, features].
        tokens: The parts it was made of, [B, n, token_width]: places of a feature map, steps, words, columns.
        seen: bool [B, n], which of them hold something; the others must not matter.
    """

    feature: Tensor
    tokens: Tensor
    seen: Tensor


def all_seen(tokens: Tensor) -> Tensor:
    """Returns that every token [B, n, t] holds something, bool [B, n]."""
    return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)


class Encoder(nn.Module):
    """Maps one modality to features; subclasses set ``features``, their number, and ``size``, what hardware must carry.

    One that has parts to tell overrides :meth:`read` and sets ``token_width``; of another its feature is the only token.

    Encoders stay trainable under DP-SGD: no BatchNorm, nothing in-place.
    """

    features: int
    size: Size = "base"
    token_width: int | None = None

    def prepared(self, x: Tensor) -> Tensor:
        """Returns what the parameters work on, and that itself as it is: a training loop works it out once for all its steps.

        Overridden where that depends on the class alone, on no parameter, and is not much larger than the inputs; ``forward`` and
        ``read`` take both.
        """
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Returns features [B, features] of model-ready inputs (shapes: ``common.data.standardise``)."""
        if type(self).read is Encoder.read:
            raise TypeError(f"{type(self).__name__} is no encoder: it lacks forward() and read().")
        return self.read(x).feature

    def read(self, x: Tensor) -> Reading:
        """Returns features and tokens of model-ready inputs."""
        feature = self(x)
        return Reading(feature, feature[:, None], all_seen(feature[:, None]))


class MapEncoder(Encoder):
    """An encoder of volumes: what a decoder needs is a map per level of resolution.

    Attributes:
        channels: Of every level, fine to coarse.
    """

    channels: tuple[int, ...]

    def maps(self, x: Tensor) -> list[Tensor]:
        """Returns the map of every level, [B, C_l, D_l, H_l, W_l]; the last one is the bottleneck."""
        raise TypeError(f"{type(self).__name__} is no encoder of volumes: it lacks maps().")


class Fusion(nn.Module):
    """Makes fused logits of features and unimodal logits (shapes: ``common.models.fusion``)."""

    reads_tokens = False

    def start_at(self, scale: Tensor, bias: Tensor) -> None:
        """Starts from the consilium's s and b, both [C], if it has such parameters."""


_ENCODERS: dict[tuple[str, str], type[Encoder]] = {}
FusionClass = Callable[[Mapping[str, Encoder], int, int, float], Fusion]
_FUSIONS: dict[str, FusionClass] = {}


def encoder(kind: str, *names: str) -> Callable[[type[Encoder]], type[Encoder]]:
    """Registers an encoder class, built as ``cls(modality, width, dropout)``, under architecture names of a kind."""

    def register(cls: type[Encoder]) -> type[Encoder]:
        for name in names:
            _ENCODERS[kind, name] = cls
        return cls

    return register


def fusion(name: str) -> Callable[[type[Fusion]], type[Fusion]]:
    """Registers a fusion class, built as ``cls(encoders, width, outputs, dropout)``."""

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


def build_fusion(name: str, encoders: Mapping[str, Encoder], width: int, outputs: int, dropout: float) -> Fusion:
    """Returns a new fusion of the modalities with these encoders; initialised from torch's global generator."""
    _discover()
    return _FUSIONS[name](encoders, width, outputs, dropout)
