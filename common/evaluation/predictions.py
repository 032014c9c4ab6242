"""Predictions for every modality pattern, and what of their metrics may be released."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from common.data.cohort import Batch, Cohort
from common.data.patches import windowed
from common.data.standardise import Standardisation
from common.evaluation.metrics import REGION_METRICS, metrics
from common.evaluation.regions import prediction_columns, region_scores
from common.models.ensemble import Calibration, Ensembles, consilium, read_by
from common.models.fusion import probabilities
from common.models.student import Student
from common.task import COMPLETE, Task, pattern_name, patterns

ALL = "all"
STUDENT = "student"
TEACHERS = "teachers"


@dataclass(frozen=True)
class Speaker:
    """Something that predicts.

    Attributes:
        name: ``student``, ``teachers``, ``teacher:<modality>`` (its ensemble), ``teacher:<modality>/<architecture>`` or
            ``teacher:complete``.
        logits: From a batch to logits [B, C].
        only: The pattern that it can read, if it is only one.
    """

    name: str
    logits: Callable[[Batch], Tensor]
    only: tuple[str, ...] | None = None


def student_speaker(student: Student) -> Speaker:
    """Returns the student: unimodal head for a lone modality, fused head else."""
    return Speaker(STUDENT, lambda batch: windowed(lambda part: student(part).prediction(), batch, student.patch))


def teachers_speakers(ensembles: Ensembles, calibration: Calibration, omega: Tensor) -> list[Speaker]:
    """Returns the consilium, every modality's ensemble and every single teacher."""

    def together(batch: Batch) -> Tensor:
        logits = ensembles(batch)
        alone = (batch.present.sum(1) == 1).reshape(-1, *(1,) * (logits.ndim - 2))
        return torch.where(alone, logits.sum(1), consilium(logits, batch.present, omega.softmax(1), calibration))

    def speaker(name: str, logits: Callable[[Batch], Tensor], *only: str) -> Speaker:
        return Speaker(name, lambda batch: windowed(logits, batch, ensembles.patch), only or None)

    task = ensembles.task
    found = [speaker(TEACHERS, together)] if ensembles.modalities() == set(task.modalities) else []
    for at, name in enumerate(task.modalities):
        if name in ensembles.modalities():
            found.append(speaker(f"teacher:{name}", lambda batch, at=at: ensembles(batch)[:, at], name))  # type: ignore[misc]
    for group, teacher in ensembles.members.items():
        name = read_by(group)
        found.append(speaker(f"teacher:{group}", lambda batch, t=teacher, m=name: t(batch.inputs[m]), name))  # type: ignore[misc]
    if (complete := ensembles.of_complete) is not None:
        found.append(speaker(f"teacher:{COMPLETE}", lambda batch: complete(batch).fused, *sorted(task.modalities)))
    return found


@torch.no_grad()
def predict_patterns(raw: Cohort, speakers: Sequence[Speaker], scaling: Standardisation) -> pd.DataFrame:
    """Predicts every visit of a raw cohort for every pattern that it can form.

    Args:
        raw: Whom to predict; labels are told as they stand there.
        speakers: Who predicts.
        scaling: Makes the cohort ready for the speakers, and what they say of a regression numbers in the task's units.

    Returns:
        One line per pattern, speaker, visit and output, with columns ``row``, ``patient`` (numbers within the cohort),
        ``pattern``, ``model``, ``output``, ``score`` (probability; regression: the number) and ``label`` (0 or 1; the true
        number). Pattern ``all`` is every visit with what it has. Of a segmentation ``output`` is ``region:metric``, ``score`` its
        value and ``label`` whether the region is there.
    """
    task, cohort = raw.task, replace(raw.standardised(scaling), labels=raw.labels)
    names = list(task.modalities)
    frames: list[pd.DataFrame] = []
    for pattern in [None, *patterns(names)]:
        kept = torch.tensor([pattern is None or n in pattern for n in names])
        visits = cohort if pattern is None else cohort.select(cohort.present[:, kept].all(1).numpy())
        if not len(visits):
            continue
        batch = visits.batch().masked(kept)
        for speaker in speakers:
            if speaker.only is not None and pattern != speaker.only:
                continue
            shown = ALL if pattern is None else pattern_name(pattern)
            if task.type == "segmentation":
                frames.append(_region_frame(visits, batch, speaker, shown))
                continue
            said = speaker.logits(batch)
            scores = scaling.outcomes(task, said) if task.type == "regression" else probabilities(task.type, said)
            frames.append(_frame(visits, scores.numpy(), shown, speaker.name))
    columns = ["row", "patient", "pattern", "model", "output", "score", "label"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def _region_frame(visits: Cohort, batch: Batch, speaker: Speaker, pattern: str) -> pd.DataFrame:
    """Returns the scores of every scan's regions, found where the probability is above one half; one scan at a time."""
    modality = next(iter(visits.task.modalities.values()))
    scores, held = [], []
    for at in range(len(visits)):
        one = batch.taken(torch.tensor([at]))
        held.append(one.labels.flatten(2).any(2))
        scores.append(region_scores(speaker.logits(one)[0] > 0, one.labels[0] > 0, modality).ravel())
    there = torch.cat(held).repeat_interleave(len(REGION_METRICS), 1).float()
    return _frame(replace(visits, labels=there), np.array(scores), pattern, speaker.name)


def _frame(visits: Cohort, scores: np.ndarray[Any, Any], pattern: str, model: str) -> pd.DataFrame:
    outputs = prediction_columns(visits.task)
    labels = visits.labels.numpy()
    table = np.eye(len(outputs))[labels] if labels.ndim == 1 else labels
    told = table.ravel() if visits.labelled else np.full(table.size, np.nan)
    return pd.DataFrame(
        {
            "row": np.repeat(visits.row, len(outputs)),
            "patient": np.repeat(visits.patient, len(outputs)),
            "pattern": pattern,
            "model": model,
            "output": np.tile(np.array(outputs), len(visits)),
            "score": scores.ravel().astype(np.float64),
            "label": told.astype(np.float64),
        }
    )


def arrays_of(predictions: pd.DataFrame, task: Task) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Returns scores [N, C] and labels ([N, C], or int [N] for multi-class) of one pattern and speaker."""
    shape = (-1, len(prediction_columns(task)))
    scores, labels = predictions["score"].to_numpy().reshape(shape), predictions["label"].to_numpy().reshape(shape)
    return scores, labels.argmax(1) if task.type == "multiclass" else labels


def released_rows(predictions: pd.DataFrame, task: Task, least: int) -> tuple[list[dict[str, Any]], int]:
    """Returns the metrics that may leave the site, and the number of cells withheld.

    A cell (speaker, pattern) is withheld if it rests on fewer than ``least`` visits, or on fewer events or non-events of any
    output (a regression has none; a scan with a region is its event): a metric on a handful of patients tells about them. Where
    that is a single pattern, the next smallest is withheld with it: the visits (and events) of ``all`` and of every pattern but
    one tell those of the one, by inclusion and exclusion.

    What is not guarded: two patterns that are told, of which one is part of the other, differ by the visits that hold only the
    one. Where these are few, their number is the difference of ``n``, and since metrics are told in full their events can often
    be worked out as well. To withhold one of every pair that close would cost most patterns where nearly all hold everything.
    """
    hidden = _withheld(predictions, task, least)
    rows: list[dict[str, Any]] = []
    withheld = 0
    for (model, pattern), part in predictions.groupby(["model", "pattern"], sort=True):
        if pattern in hidden:
            withheld += 1
            continue
        n = len(part) // len(prediction_columns(task))
        values = metrics(task.type, *arrays_of(part, task))
        rows += [{"model": model, "pattern": pattern, "metric": m, "value": float(v), "n": n} for m, v in values.items()]
    return rows, withheld


def _withheld(predictions: pd.DataFrame, task: Task, least: int) -> set[str]:
    """Returns the patterns that may not be told; every speaker of a pattern was asked about the same visits."""
    counts = (
        predictions.drop_duplicates(["pattern", "row", "output"]).groupby(["pattern", "output"])["label"].agg(["sum", "count"])
    )
    counts["others"] = counts["count"] - counts["sum"]
    if task.type == "segmentation":  # a region that no scan has, or every one, tells of nobody
        counts = counts.replace({"sum": {0.0: np.inf}, "others": {0.0: np.inf}})
    small = ["count"] if task.type == "regression" else ["sum", "others"]
    rarest = counts[small].min(axis=1).groupby("pattern").min()
    sizes = counts["count"].groupby("pattern").first()
    hidden = set(rarest.index[rarest < least])
    if len(hidden) == 1:
        hidden |= set(sizes.drop([*hidden, ALL], errors="ignore").sort_values(kind="stable").index[:1])
    return hidden
