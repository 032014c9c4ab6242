"""The one training loop."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.config import Training

ADAM_EPSILON = 1e-3
WHOLE = (0.0, 1.0)
Span = tuple[float, float]


def derive_seed(*parts: object) -> int:
    """Returns a seed below 2^63 from its parts: run seed, phase, round, site, group."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


def span_of(round: int, rounds: int) -> Span:
    """Returns from where to where in its phase a round lies, in [0, 1]."""
    return round / rounds, (round + 1) / rounds


def annealed(lr: float, at: float) -> float:
    """Returns the learning rate at a point of the phase in [0, 1], along half a cosine (Loshchilov and Hutter, 2017)."""
    return lr * (1 + math.cos(math.pi * at)) / 2


@dataclass(frozen=True)
class Fit:
    """How a training went.

    Attributes:
        epochs: Epochs run.
        training: Mean loss per epoch.
        validation: Validation loss before training and after every epoch; empty without validation.
    """

    epochs: int
    training: tuple[float, ...]
    validation: tuple[float, ...]


def minibatches(size: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yields indices of a shuffled epoch."""
    yield from torch.split(torch.randperm(size, generator=generator), batch_size)


def fit(
    module: nn.Module,
    size: int,
    loss: Callable[[Tensor, torch.Generator], Tensor],
    training: Training,
    *,
    epochs: int,
    seed: int,
    span: Span = WHOLE,
    validate: Callable[[], float] | None = None,
    pace: Callable[[], Mapping[str, float]] | None = None,
) -> Fit:
    """Trains a module in place, and keeps the parameters of the best validated epoch (the start counts as one).

    Args:
        module: What is trained.
        size: Number of training patients; 0 trains nothing.
        loss: From indices [B] of patients and a generator to a scalar.
        training: Optimiser and batch size.
        epochs: Most epochs.
        seed: Of shuffling, dropout and whatever the loss draws.
        span: From where to where in its phase these epochs lie, for a learning rate that is annealed over several rounds.
        validate: Returns the validation loss; None keeps the last epoch.
        pace: Asked before every step: beginning of parameters' names -> share of the learning rate that they learn with.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = _groups(module, pace() if pace else {})
    optimiser: torch.optim.Optimizer
    if training.optimiser == "sgd":
        optimiser = torch.optim.SGD(parameters, lr=training.lr, weight_decay=training.weight_decay)
    else:  # a large epsilon: else Adam moves a word met once as far as a word met daily
        decay = training.weight_decay
        optimiser = torch.optim.AdamW(parameters, lr=training.lr, weight_decay=decay, eps=ADAM_EPSILON, fused=True)
    curve: list[float] = []
    validated: list[float] = []
    best = _validated(module, validate, validated)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed asks every kind of device each time
        for epoch in range(epochs if size else 0):
            module.train()
            lr = annealed(training.lr, span[0] + (span[1] - span[0]) * epoch / epochs) if training.anneal else training.lr
            losses = []
            for index in minibatches(size, training.batch_size, generator):
                optimiser.zero_grad()
                value = loss(index, generator)
                value.backward()  # type: ignore[no-untyped-call]
                shares = pace() if pace else {}
                for group in optimiser.param_groups:
                    group["lr"] = lr * shares.get(group["name"], 1.0)
                optimiser.step()
                losses.append(float(value.detach()) * len(index))
            curve.append(sum(losses) / size)
            best = _validated(module, validate, validated) or best
    if best is not None:
        module.load_state_dict(best)
    module.eval()
    return Fit(len(curve), tuple(curve), tuple(validated))


def _groups(module: nn.Module, names: Iterable[str]) -> list[dict[str, Any]]:
    """Returns the trainable parameters by the beginnings of their names, those of no other under an empty one."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(next((n for n in names if name.startswith(n)), ""), []).append(parameter)
    return [{"params": parameters, "name": name} for name, parameters in groups.items()]


def _validated(module: nn.Module, validate: Callable[[], float] | None, seen: list[float]) -> dict[str, Tensor] | None:
    """Appends the validation loss; returns a copy of the parameters if it is the best so far."""
    if validate is None:
        return None
    module.eval()
    with torch.no_grad():
        seen.append(validate())
    least = min((loss for loss in seen if math.isfinite(loss)), default=math.inf)
    return copy.deepcopy(module.state_dict()) if seen[-1] <= least else None
