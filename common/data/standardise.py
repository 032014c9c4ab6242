"""Common standardisation: sites tell feature moments, the server pools them, everybody scales alike.

Raw tensors (from ``common.data.ingest``) -> model-ready tensors (into the encoders):

======== ==================================== =======================================================
kind     raw                                  model-ready, float32
======== ==================================== =======================================================
table    [N, D], NaN where missing            [N, 2, D]: standardised values (0 where missing), missing flags, centred
series   [N, T, F], NaN where missing         [N, 2, T, F]: standardised values (0 where missing), observation masks
audio    [N, T, K], NaN behind the end        [N, 2, T, K]: standardised values (0 behind the end), observation masks
text     [N, L] hashed word ids, 0 pads       [N, 2, L]: ids, inverse document frequencies
image    [N, 1, H, W] in [0, 1]               [N, 1, H, W]: standardised by the pooled mean and deviation
volume   [N, 1, D, H, W], NaN outside         [N, 1, D, H, W]: standardised by the pooled mean and deviation, 0 outside
======== ==================================== =======================================================

The targets of a regression task, [N, C], are standardised like features, their logarithm where the task says so: their moments
stand beside those of the modalities, under ``LABELS``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.data.rows import LazyRows
from common.task import LABELS, Modality, Task

CLIP = 5.0
Float = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Count, mean and (population) variance of every feature of a modality; float64 [D].

    For text the features are the hash buckets, a value is 1 if the bucket occurs, so that ``mean`` is the document frequency.
    """

    count: Float
    mean: Float
    variance: Float

    @property
    def varies(self) -> NDArray[np.bool_]:
        """Whether a feature varies by more than the rounding of float32 about its mean, bool [D]; whatever its unit is."""
        return np.asarray((self.variance > 0) & (self.variance > np.finfo(np.float32).eps ** 2 * self.mean**2))

    def suppressed(self, least: int, *, words: bool, visits: Float | None = None) -> Moments:
        """Returns the moments without the features that fewer than ``least`` visits stand behind.

        Args:
            least: Smallest number of visits that may be told.
            words: Whether the features are hash buckets: a word is told if ``least`` documents hold it.
            visits: Visits behind every feature (:func:`visits_behind`): many hours or pixels may be one patient's. By default
                every observation is a visit, as in a table.
        """
        behind = self.mean * self.count if words else self.count if visits is None else visits
        keep = np.round(behind) >= least
        count = self.count * (self.count >= least) if words else self.count * keep
        return Moments(count, self.mean * keep, self.variance * keep)


def visits_behind(modality: Modality, raw: Tensor) -> Float:
    """Returns the visits with at least one observation of every feature, float64 [D]."""
    if modality.kind in ("text", "image", "volume"):
        return np.array([float(len(raw))])
    observed = ~raw.isnan()
    return np.asarray((observed if modality.kind == "table" else observed.any(1)).sum(0).double().numpy())


def table_columns(modality: Modality) -> int:
    """Returns D: one column per number, one per category of a categorical feature."""
    return sum(len(f.codes) or 1 for f in modality.features.values())


def moments(modality: Modality, raw: Tensor) -> Moments:
    """Returns the moments of a raw tensor (the patients who hold the modality)."""
    if isinstance(raw, LazyRows):
        return pool([moments(modality, row[None]) for row in raw] or [_column_moments(torch.empty(0, 1))])
    if modality.kind == "text":
        seen = torch.zeros(len(raw), modality.buckets, dtype=torch.float64).scatter_(1, raw.long(), 1.0)
        seen[:, 0] = 0.0
        frequency = seen.mean(0).numpy() if len(raw) else np.zeros(modality.buckets)
        return Moments(np.full(modality.buckets, float(len(raw))), frequency, frequency * (1 - frequency))
    return _column_moments(raw.reshape(-1, raw.shape[-1] if modality.kind in ("table", "series", "audio") else 1))


def _column_moments(values: Tensor) -> Moments:
    """Returns the moments of the columns of [N, D], NaN where missing."""
    flat = values.double()
    seen = ~flat.isnan()
    count = seen.sum(0).double()
    mean = flat.nan_to_num().sum(0) / count.clamp(min=1)
    variance = (flat.nan_to_num() - mean).mul(seen).square().sum(0) / count.clamp(min=1)
    return Moments(count.numpy(), mean.numpy(), variance.numpy())


def target_moments(task: Task, labels: Tensor) -> Moments:
    """Returns the moments of what networks learn of the labels [N, C] of a regression task."""
    return _column_moments(torch.where(_by_log(task), labels.double().log1p(), labels.double()))


def _by_log(task: Task) -> Tensor:
    """Returns which targets are learned by their logarithm, bool [C]."""
    return torch.tensor([output in task.log for output in task.outputs])


def pool(parts: Sequence[Moments]) -> Moments:
    """Returns the moments of all observations together; a feature that nobody observed gets mean 0 and variance 0."""
    count = np.sum([p.count for p in parts], axis=0)
    safe = np.maximum(count, 1)
    mean = np.sum([p.count * p.mean for p in parts], axis=0) / safe
    spread = np.sum([p.count * (p.variance + (p.mean - mean) ** 2) for p in parts], axis=0)
    return Moments(count, mean, spread / safe)


@dataclass(frozen=True)
class Standardisation:
    """The pooled moments of every modality, and of the targets if the task is a regression."""

    moments: Mapping[str, Moments]

    def targets(self, task: Task, labels: Tensor) -> Tensor:
        """Returns what networks learn, float32: the labels [N, C] of a regression task standardised, others as they are."""
        if task.type != "regression":
            return labels
        mean, deviation = self._target()
        values = torch.where(_by_log(task), labels.double().log1p(), labels.double())
        return ((values - mean) / deviation).float()

    def outcomes(self, task: Task, outputs: Tensor) -> Tensor:
        """Returns the outputs [N, C] of a network for a regression task in the task's units, float64."""
        mean, deviation = self._target()
        values = outputs.double() * deviation + mean
        return torch.where(_by_log(task), values.expm1(), values)

    def _target(self) -> tuple[Tensor, Tensor]:
        """Returns mean and deviation of the targets, both float64 [C]; a target that never varies keeps its unit."""
        pooled = self.moments[LABELS]
        return torch.from_numpy(pooled.mean), torch.from_numpy(np.where(pooled.varies, np.sqrt(pooled.variance), 1.0))

    def apply(self, name: str, modality: Modality, raw: Tensor) -> Tensor:
        """Returns the model-ready tensor of a raw one (table above); of a lazy one a lazy one."""
        if isinstance(raw, LazyRows):
            return raw.mapped(partial(self.apply, name, modality))
        pooled = self.moments[name]
        if modality.kind == "text":
            documents = float(pooled.count.max(initial=0.0))
            idf = torch.from_numpy(np.log((1 + documents) / (1 + documents * pooled.mean)) + 1).float()
            idf[torch.from_numpy(pooled.mean == 0)] = 0.0  # a word that nobody may name has no trained weight
            ids = raw.long()
            return torch.stack([ids.float(), idf[ids]], dim=1)
        mean = torch.from_numpy(pooled.mean)
        usable = torch.from_numpy(pooled.varies)
        deviation = torch.from_numpy(np.where(pooled.varies, np.sqrt(pooled.variance), 1.0))
        scaled = ((raw.double() - mean) / deviation).clamp(-CLIP, CLIP).float()
        if modality.kind in ("image", "volume"):
            return scaled if modality.kind == "image" else scaled.nan_to_num()
        missing = raw.isnan() | ~usable
        if modality.kind == "table":
            # The fullest column counts as one that is always there: of visits without a table nothing is known.
            usual = torch.from_numpy(1 - pooled.count / max(pooled.count.max(initial=1.0), 1.0)).float()
            return torch.stack([scaled.masked_fill(missing, 0.0), raw.isnan().float() - usual], dim=1)
        return torch.stack([scaled.masked_fill(missing, 0.0), (~missing).float()], dim=1)
