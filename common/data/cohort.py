"""The patients of one folder as tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.data.rows import joined, taken
from common.data.standardise import Moments, Standardisation, moments, target_moments, visits_behind
from common.task import COMPLETE, LABELS, Task, pattern_name

SPLITS = ("train", "meta", "validation", "test")


@dataclass(frozen=True)
class Finding:
    """A fault of the hospital's files: patient table, row (the first is 2, under the header), column and cause."""

    file: str
    row: int
    column: str
    problem: str

    def __str__(self) -> str:
        """Returns one line for a log."""
        return f"{self.file}, row {self.row}, column '{self.column}': {self.problem}"

    @property
    def visit(self) -> int:
        """Row of the patient table that is left out for it."""
        return self.row


@dataclass(frozen=True)
class SharedFinding(Finding):
    """A fault of a file that many visits share; the row is that file's, 1 if the whole file is at fault.

    Attributes:
        patients_row: Row of the patient table that is left out for it.
    """

    patients_row: int

    @property
    def visit(self) -> int:
        """Row of the patient table that is left out for it."""
        return self.patients_row


@dataclass(frozen=True)
class Batch:
    """Some patients, model-ready.

    Attributes:
        inputs: Modality -> [B, ...] (``common.data.standardise``); rows of absent modalities are meaningless.
        present: bool [B, M], modalities in the task's order.
        labels: float32 [B, C] (standardised for regression), int64 [B] for multi-class, or regions uint8 [B, C, D, H, W].
    """

    inputs: dict[str, Tensor]
    present: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Returns B."""
        return len(self.present)

    def taken(self, index: Tensor) -> Batch:
        """Returns the patients at indices, in that order."""
        return Batch({m: x[index] for m, x in self.inputs.items()}, self.present[index], self.labels[index])

    def holders(self, at: int) -> Tensor:
        """Returns the indices of the patients who hold a modality, which is named by its place in the task's order."""
        return self.present[:, at].nonzero().squeeze(1)

    def spread(self, rows: Tensor, index: Tensor) -> Tensor:
        """Returns what was made of the patients at indices, [n, ...], as rows of the whole batch, [B, ...]; the others are 0."""
        return spread(rows, index, len(self))

    def masked(self, present: Tensor) -> Batch:
        """Returns the batch with fewer modalities present."""
        return replace(self, present=self.present & present)


def spread(rows: Tensor, index: Tensor, size: int) -> Tensor:
    """Returns rows [n, ...] at their indices among [size, ...]; the others are 0."""
    return rows.new_zeros(size, *rows.shape[1:]).index_copy(0, index, rows)


@dataclass(frozen=True)
class Cohort:
    """Patient visits of one folder; nothing writes into its tensors.

    Attributes:
        task: What is predicted from what.
        inputs: Modality -> raw or model-ready tensor [N, ...], after :meth:`holding` of that modality alone; volumes and regions
            are :class:`~common.data.rows.LazyRows`.
        present: bool [N, M].
        labels: float32 [N, C], or int64 [N] for multi-class; the targets of a regression are in the task's units in a raw cohort,
            the regions of a segmentation uint8 [N, C, D, H, W].
        labelled: Whether labels are known.
        patient: int64 [N], number of the patient: visits of one patient share it.
        row: int64 [N], row in the patient table, counted from 0.
        split: str [N], one of ``SPLITS``.
        findings: Faults; their rows are left out.
        empty: Rows of the patient table, as in a finding, whose modalities are all empty: left out too, but no fault.
        keeps: Whether parts are kept with it, once made: every round asks for those of a model-ready cohort again; those of a raw
            one would only fill the memory.
    """

    task: Task
    inputs: dict[str, Tensor]
    present: Tensor
    labels: Tensor
    labelled: bool
    patient: NDArray[np.int64]
    row: NDArray[np.int64]
    split: NDArray[np.str_]
    findings: tuple[Finding, ...] = ()
    empty: tuple[int, ...] = ()
    keeps: bool = False
    _kept: dict[Hashable, Cohort] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        """Returns N."""
        return len(self.row)

    @property
    def excluded(self) -> int:
        """Number of the folder's visits that are left out, because of a fault or because they hold nothing."""
        return len({f.visit for f in self.findings} | set(self.empty))

    def keeping(self, what: Hashable, made: Callable[[], Cohort]) -> Cohort:
        """Returns what is made of this cohort, made once if it keeps its parts."""
        if not self.keeps:
            return made()
        if what not in self._kept:
            part = made()
            if part is self:  # whoever holds itself is not freed at once
                return self
            self._kept[what] = part
        return self._kept[what]

    def select(self, keep: NDArray[np.generic]) -> Cohort:
        """Returns the visits at a boolean mask or at indices, in that order."""
        if keep.dtype == bool and keep.all():
            return self
        index = np.flatnonzero(keep) if keep.dtype == bool else keep.astype(np.int64)
        at = torch.from_numpy(index)
        return replace(
            self,
            inputs={m: taken(x, at) for m, x in self.inputs.items()},
            present=self.present[at],
            labels=taken(self.labels, at),
            patient=self.patient[index],
            row=self.row[index],
            split=self.split[index],
        )

    def part(self, *splits: str) -> Cohort:
        """Returns the visits of the named splits."""
        return self.keeping(("part", *splits), lambda: self.select(np.isin(self.split, splits)))

    def holding(self, modality: str) -> Cohort:
        """Returns the visits that have a modality, with its inputs alone; or those that lack none (``complete``), with all."""
        return self.keeping(("holding", modality), lambda: self._holding(modality))

    def _holding(self, modality: str) -> Cohort:
        if modality == COMPLETE:
            return self.select(self.present.all(1).numpy())
        alone = replace(self, inputs={modality: self.inputs[modality]})
        return alone.select(self.present[:, list(self.task.modalities).index(modality)].numpy())

    def batch(self, index: Tensor | None = None) -> Batch:
        """Returns visits, all by default, as a batch; of volumes only visits that are named are read."""
        whole = Batch(self.inputs, self.present, self.labels)
        return whole if index is None else whole.taken(index)

    def moments(self) -> dict[str, Moments]:
        """Returns the feature moments of every modality over the training visits that hold it, and of targets (raw cohort)."""
        return self.moments_told(0)

    def moments_told(self, least: int) -> dict[str, Moments]:
        """Returns the moments without the features that fewer than ``least`` visits stand behind (raw cohort)."""
        train = self.part("train")
        told: dict[str, Moments] = {}
        for name, modality in self.task.modalities.items():
            raw = train.holding(name).inputs[name]
            words = modality.kind == "text"
            told[name] = moments(modality, raw).suppressed(least, words=words, visits=visits_behind(modality, raw))
        if self.task.type == "regression":
            known = train.labels if self.labelled else train.labels[:0]
            told[LABELS] = target_moments(self.task, known).suppressed(least, words=False)
        return told

    def standardised(self, standardisation: Standardisation) -> Cohort:
        """Returns the cohort with model-ready inputs and targets (raw cohort)."""
        scaled = {m: standardisation.apply(m, self.task.modalities[m], x) for m, x in self.inputs.items()}
        return replace(self, inputs=scaled, labels=standardisation.targets(self.task, self.labels), keeps=True)

    def label_counts(self) -> Tensor:
        """Returns how many visits have each output, int64 [C] (no regression: its outputs are numbers, which every visit has)."""
        if self.task.type == "multiclass":
            return torch.bincount(self.labels, minlength=len(self.task.outputs))
        if self.task.type == "segmentation":
            held = [[bool(region.any()) for region in regions] for regions in self.labels]  # one mask at a time is in memory
            return torch.tensor(held).reshape(-1, len(self.task.outputs)).sum(0).long()
        return self.labels.sum(0).long()

    def events(self) -> int:
        """Returns the number of events, by which is judged whether the visits are enough to learn from.

        Binary: the visits of the rarer side. Multi-label: the visits with an event of any output. Multi-class: the visits of the
        rarest class; a class of the task without a visit counts, so that it is 0 until every class is there. Regression: all
        visits, and so of a segmentation.
        """
        if self.task.type in ("regression", "segmentation"):
            return len(self)
        if self.task.type == "multiclass":
            return int(self.label_counts().min())
        positive = int(self.labels.any(1).sum())
        return positive if self.task.type == "multilabel" else min(positive, len(self) - positive)


def concatenate(cohorts: Iterable[Cohort]) -> Cohort:
    """Returns all visits together; patients of different cohorts stay different."""
    parts = list(cohorts)
    offsets = np.cumsum([0, *(int(c.patient.max(initial=-1)) + 1 for c in parts[:-1])])
    return replace(
        parts[0],
        inputs={m: joined([c.inputs[m] for c in parts]) for m in parts[0].inputs},
        present=torch.cat([c.present for c in parts]),
        labels=joined([c.labels for c in parts]),
        labelled=all(c.labelled for c in parts),
        patient=np.concatenate([c.patient + o for c, o in zip(parts, offsets, strict=True)]),
        row=np.concatenate([c.row for c in parts]),
        split=np.concatenate([c.split for c in parts]),
        findings=tuple(f for c in parts for f in c.findings),
        empty=tuple(row for c in parts for row in c.empty),
    )


def count_patterns(cohort: Cohort) -> dict[str, int]:
    """Returns the number of visits per modality pattern."""
    names = list(cohort.task.modalities)
    held = (pattern_name(n for n, p in zip(names, row, strict=True) if p) for row in cohort.present.tolist())
    return dict(sorted(Counter(held).items()))
