"""What is predicted from what: the task, its modalities and their features."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from torch import nn

from common.errors import nearest

Kind = Literal["image", "series", "text", "table", "audio", "volume"]
TaskType = Literal["binary", "multilabel", "multiclass", "regression", "segmentation"]
STRICT = ConfigDict(extra="forbid", coerce_numbers_to_str=True)  # a class may be called 0
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
MASK = "mask"
LABELS = "labels"  # where modalities are listed by name: the targets of a regression task
COMPLETE = "complete"  # where modalities are listed by name: all of them, of the visits that lack none
RESERVED = {"all", "fusion", "shared", LABELS, COMPLETE}  # the pattern of whatever is present; the student's common blocks
EVERY_SUBSET = 5  # most modalities of which every subset is evaluated: 31 patterns; ten would have 1,023


VoxelEdge = Annotated[int, Field(ge=8, multiple_of=4)]
Length = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, config=STRICT)
class Feature:
    """One variable of a table or a time series.

    Attributes:
        unit: UCUM unit in which the task counts the variable; empty for a pure number.
        codes: Categories, in order, if the variable is categorical (tables only).
    """

    unit: str = ""
    codes: tuple[str, ...] = ()


def misspelt(error: Any) -> str:
    """Returns ``"; did you mean 'x'? Known: ..."`` for a pydantic error of a word that is none of those allowed; else nothing."""
    is_word = error["type"] == "literal_error" and isinstance(error["input"], str)
    return nearest(error["input"], re.findall(r"'([^']+)'", error["ctx"]["expected"])) if is_word else ""


def _by_name(features: Any) -> Any:
    """Returns a list of names, short for features without unit or codes, as the mapping that it stands for."""
    if isinstance(features, list) and len(set(map(str, features))) < len(features):
        raise ValueError("a feature is named twice")
    return {str(name): {} for name in features} if isinstance(features, list) else features


@dataclass(frozen=True, config=STRICT)
class Modality:
    """One source of information about a patient.

    Attributes:
        kind: How it is read and which encoders fit it.
        features: Variables by name, in order (``table`` and ``series``); a list of names is short for plain numbers.
        steps: Time steps kept from the start of the visit (``series``).
        step_hours: Length of a step in hours; values within a step are averaged (``series``).
        pixels: Edge length to which an image is resampled (``image``).
        buckets: Number of hash buckets for words (``text``).
        tokens: Words kept per text; the rest is cut (``text``).
        sample_rate: Samples per second in Hz; faster recordings are resampled to it, slower ones are a fault (``audio``).
        coefficients: Mel-frequency cepstral coefficients per frame (``audio``).
        frames: Frames kept from the start of a recording; shorter ones are padded (``audio``).
        window_ms: Length of a frame in milliseconds (``audio``).
        hop_ms: From the start of a frame to that of the next, in milliseconds (``audio``).
        voxels: Grid in which a volume is centred; a larger one is a fault (``volume``).
        spacing_mm: Edge lengths of a voxel in mm to which volumes are resampled; by default they stay as they are (``volume``).
    """

    kind: Kind
    features: Annotated[dict[str, Feature], BeforeValidator(_by_name)] = field(default_factory=dict)
    steps: int = Field(default=24, ge=1)
    step_hours: float = Field(default=1.0, gt=0)
    pixels: int = Field(default=32, ge=8)
    buckets: int = Field(default=2048, ge=16)
    tokens: int = Field(default=128, ge=1)
    sample_rate: int = Field(default=8000, ge=1000)
    coefficients: int = Field(default=20, ge=5, le=40)
    frames: int = Field(default=48, ge=8)
    window_ms: float = Field(default=32.0, ge=4)
    hop_ms: float = Field(default=16.0, ge=1)
    voxels: tuple[VoxelEdge, VoxelEdge, VoxelEdge] = (64, 64, 64)
    spacing_mm: tuple[Length, Length, Length] | None = None

    @model_validator(mode="after")
    def _features_where_needed(self) -> Modality:
        if self.kind in ("table", "series") and not self.features:
            raise ValueError(f"a modality of kind '{self.kind}' needs 'features'")
        return self


@dataclass(frozen=True, config=STRICT)
class Task:
    """What is predicted from what.

    Attributes:
        name: Name of the task.
        type: ``binary`` and ``multilabel`` predict every output by itself, ``multiclass`` exactly one of them; the outputs of
            ``regression`` are numbers, those of ``segmentation`` regions of a volume, which may overlap.
        outputs: Names of the outputs, in the order of the logits. A binary task has one.
        modalities: Modalities by name, in the order of the modality weights.
        units: Output -> UCUM unit in which it is counted (``regression``); without, it is a pure number.
        log: Outputs with a heavy tail, above -1: networks learn log(1 + y) of them (``regression``).
        regions: Output -> the values of a mask that belong to the region (``segmentation``); 0 is background.
    """

    name: str
    type: TaskType
    outputs: tuple[str, ...]
    modalities: dict[str, Modality]
    units: dict[str, str] = field(default_factory=dict)
    log: tuple[str, ...] = ()
    regions: dict[str, tuple[Annotated[int, Field(ge=1)], ...]] = field(default_factory=dict)

    @model_validator(mode="after")
    def _outputs_fit_type(self) -> Task:
        if self.type == "binary" and len(self.outputs) != 1:
            raise ValueError(f"outputs: a binary task has exactly one output, yours has {len(self.outputs)}")
        if self.type == "multiclass" and len(self.outputs) < 2:
            raise ValueError(f"outputs: a multiclass task needs at least two outputs, yours has {len(self.outputs)}")
        if len(set(self.outputs)) < len(self.outputs):
            raise ValueError("outputs: an output is named twice")
        if not {*self.units, *self.log} <= (set(self.outputs) if self.type == "regression" else set()):
            raise ValueError("'units' and 'log' may name outputs of a regression task only")
        if not self.modalities:
            raise ValueError("modalities: a task needs at least one modality")
        segments = self.type == "segmentation"
        if set(self.regions) != (set(self.outputs) if segments else set()) or not all(self.regions.values()):
            raise ValueError("'regions' names, for every output of a segmentation task and no other, the values of the mask")
        volumes = [m for m in self.modalities.values() if m.kind == "volume"]
        if len(volumes) != (len(self.modalities) if segments else 0):
            raise ValueError("the modalities of a segmentation task, and of no other, are of kind 'volume'")
        if len({(m.voxels, m.spacing_mm) for m in volumes}) > 1:
            raise ValueError("the volumes of a task have the same 'voxels' and 'spacing_mm'")
        for fault in filter(None, map(no_name, self.modalities)):
            raise ValueError(fault)
        return self

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Keys under ``labels`` in a manifest: one per output, or the single ``class`` of a multiclass task.

        That of a segmentation is ``mask``, a column of paths.
        """
        return {"multiclass": ("class",), "segmentation": (MASK,)}.get(self.type, self.outputs)


def no_name(word: str) -> str:
    """Returns why a modality cannot be called so, as networks and tables use the name; empty if it can."""
    if NAME.fullmatch(word) and word not in RESERVED and not hasattr(nn.ModuleDict(), word):
        return ""
    return (
        f"'{word}' is no name for a modality: letters, digits, '_' and '-', a letter first, not 'all', 'complete', 'fusion', "
        "'labels' or 'shared', nor a word that PyTorch's modules use, such as 'values' or 'type'"
    )


def pattern_name(modalities: Iterable[str]) -> str:
    """Returns the name of a modality pattern: the sorted names joined by ``+``."""
    return "+".join(sorted(modalities))


def patterns(modalities: Iterable[str]) -> list[tuple[str, ...]]:
    """Returns the non-empty subsets of the modalities that are evaluated, small ones first.

    These are all of them; with more than ``EVERY_SUBSET`` modalities every single one, all but one, and all. Which patterns occur
    does not matter: sites would evaluate different ones, and their figures could not be pooled.
    """
    names = sorted(modalities)
    few = len(names) <= EVERY_SUBSET
    sizes = range(1, len(names) + 1) if few else (1, len(names) - 1, len(names))
    return [p for k in sizes for p in itertools.combinations(names, k)]
