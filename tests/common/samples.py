"""Small tasks, cohorts and hospital folders that the tests of ``common`` and ``client`` share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import torch
import yaml
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
from torch import Tensor

from common.config import (
    BalanceConfig,
    Config,
    DistillConfig,
    FederationConfig,
    ModelConfig,
    RefineConfig,
    SplitConfig,
    TeachConfig,
    Training,
    WeightsConfig,
)
from common.data.cohort import Batch, Cohort
from common.data.standardise import table_columns
from common.models.registry import architectures
from common.task import Feature, Modality, Task, TaskType

MODALITIES = {
    "admission": Modality("table", {"age": Feature("a"), "sex": Feature(codes=("female", "male"))}),
    "cxr": Modality("image", pixels=8),
    "labs": Modality("series", {"crea": Feature("mg/dL"), "hr": Feature("/min")}, steps=6),
    "note": Modality("text", buckets=64, tokens=8),
}
SPEECH = Modality("audio", frames=12, coefficients=8)
EVERY_KIND = {**MODALITIES, "speech": SPEECH}
OUTPUTS: dict[TaskType, tuple[str, ...]] = {
    "binary": ("death",),
    "multilabel": ("aki", "shock"),
    "multiclass": ("cn", "mci", "ad"),
    "regression": ("los", "cost"),
}
KINDS: tuple[TaskType, ...] = ("binary", "multilabel", "multiclass", "regression")
TRAINING = Training(lr=0.02, batch_size=16)
MODEL = ModelConfig(
    teachers={"image": ("small",), "series": ("linear", "small"), "table": ("linear",), "text": ("linear",)},
    student={kind: "compact" for kind in ("image", "series", "table", "text")},
    width=4,
)


def make_task(kind: TaskType = "binary", modalities: Sequence[str] = tuple(MODALITIES)) -> Task:
    return Task("toy", kind, OUTPUTS[kind], {m: MODALITIES[m] for m in modalities})


def make_config(kind: TaskType = "binary", modalities: Sequence[str] = tuple(MODALITIES), **changes: Any) -> Config:
    """A small configuration; ``fusion`` changes the model, ``per_output`` the weights, every other name a part of it."""
    model = replace(MODEL, fusion=changes.pop("fusion", "joint"))
    weights = WeightsConfig(per_output=changes.pop("per_output", False), steps=2)
    parts: dict[str, Any] = {
        "model": model,
        "teach": TeachConfig(rounds=2, training={"default": TRAINING}),
        "distill": DistillConfig(epochs=4, training=TRAINING),
        "weights": weights,
        "balance": BalanceConfig(),
        "refine": RefineConfig(rounds=1, training=TRAINING),
        "federation": FederationConfig(),
        "split": SplitConfig(),
    }
    return Config(name="toy", task=make_task(kind, modalities), **(parts | changes))


def make_inputs(modality: Modality, size: int, generator: torch.Generator) -> Tensor:
    """Random model-ready inputs of a modality."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(size, *shape, generator=generator)

    if modality.kind == "image":
        return normal(1, modality.pixels, modality.pixels)
    if modality.kind == "text":
        ids = torch.randint(0, modality.buckets, (size, modality.tokens), generator=generator)
        return torch.stack([ids.float(), 1 + (ids > 0) * torch.rand(ids.shape, generator=generator)], 1)
    if modality.kind == "audio":
        frames = torch.randint(4, modality.frames + 1, (size, 1), generator=generator)
        heard = (torch.arange(modality.frames) < frames).float()[:, :, None].expand(-1, -1, modality.coefficients)
        return torch.stack([normal(modality.frames, modality.coefficients) * heard, heard], 1)
    shape = (table_columns(modality),) if modality.kind == "table" else (modality.steps, len(modality.features))
    seen = torch.rand(size, *shape, generator=generator) < 0.8
    flags = seen.float() if modality.kind == "series" else (~seen).float()
    return torch.stack([normal(*shape) * seen, flags], 1)


def make_cohort(task: Task, size: int = 60, seed: int = 0, *, complete: bool = False) -> Cohort:
    """Random model-ready visits, two per patient; a label is what the first numbers of each modality say together."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {n: make_inputs(m, size, generator) for n, m in task.modalities.items()}
    present = torch.rand(size, len(inputs), generator=generator) < (2.0 if complete else 0.6)
    present[torch.arange(size), torch.randint(0, len(inputs), (size,), generator=generator)] = True
    said = sum(x.flatten(2).mean(2)[:, 0] * 3 for n, x in inputs.items() if task.modalities[n].kind != "text")
    score = said + 0.3 * torch.randn(size, generator=generator)
    if task.type == "multiclass":
        labels = torch.bucketize(score, score.quantile(torch.tensor([0.3, 0.6])))
    elif task.type == "regression":
        labels = torch.stack([score, -score], 1)
    else:
        labels = (score[:, None] > torch.arange(len(task.outputs))[None, :] * 0.5).float()
    splits = np.array(["train", "train", "meta", "validation", "test"])
    return Cohort(
        task=task,
        inputs={
            n: x.masked_fill(~present[:, k].reshape(-1, *[1] * (x.ndim - 1)), torch.nan)
            for k, (n, x) in enumerate(inputs.items())
        },
        present=present,
        labels=labels,
        labelled=True,
        patient=np.arange(size) // 2,
        row=np.arange(size),
        split=splits[(np.arange(size) // 2) % len(splits)],
    )


def doubled(batch: Batch) -> Batch:
    """The batch in float64."""
    labels = batch.labels.double() if batch.labels.is_floating_point() else batch.labels
    return Batch({m: x.double() for m, x in batch.inputs.items()}, batch.present, labels)


def every_encoder() -> list[tuple[str, str]]:
    """Modality and architecture, for all that are registered and need no files."""
    return [(n, a) for n, m in EVERY_KIND.items() for a in architectures(m.kind) if a != "pretrained"]


def write_dicom(path: Path, pixels: np.ndarray[Any, Any], photometric: str = "MONOCHROME2", **tags: Any) -> None:
    """Writes 16-bit grey frames [H, W] or [F, H, W], or an 8-bit colour image [H, W, 3]."""
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID, image.SOPInstanceUID = SecondaryCaptureImageStorage, meta.MediaStorageSOPInstanceUID
    image.PatientName = "Doe^Jane"
    image.Rows, image.Columns = pixels.shape[:2] if colour or pixels.ndim == 2 else pixels.shape[1:]
    image.PhotometricInterpretation = photometric
    image.SamplesPerPixel = 3 if colour else 1
    if colour:
        image.PlanarConfiguration = 0
    elif pixels.ndim == 3:
        image.NumberOfFrames = len(pixels)
    image.BitsAllocated = image.BitsStored = 8 if colour else 16
    image.HighBit, image.PixelRepresentation = image.BitsStored - 1, 0
    image.PixelData = pixels.astype(np.uint8 if colour else np.uint16).tobytes()
    for name, value in tags.items():
        setattr(image, name, value)
    pydicom.dcmwrite(path, image)


def write_folder(
    folder: Path, task: Task, size: int = 40, *, site: str = "riverside", seed: int = 0, **manifest: Any
) -> pd.DataFrame:
    """Writes a hospital: DICOM images, labs of all visits in a Parquet file, notes as files, admissions in the patient table.

    Every modality is missing for some visits, each patient has two visits, and the age tells the label.

    Returns:
        The patient table, as written to ``patients.csv``.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    age = rng.normal(60, 15, size).round(1)
    table = pd.DataFrame({"patient_id": [f"p{i // 2:03}" for i in range(size)], "visit_id": np.arange(size) + 100})
    rank = np.argsort(np.argsort(age)) / size
    if task.type == "multiclass":
        table["class"] = np.array(task.outputs)[(rank * len(task.outputs)).astype(int)]
        labels = {"class": "class"}
    else:
        for k, output in enumerate(task.outputs):
            above = rank - 0.5 - 0.1 * k
            table[output] = 5 + 20 * above if task.type == "regression" else (above > 0).astype(int)
        labels = {output: output for output in task.outputs}
    sources: dict[str, Any] = {}
    if "admission" in task.modalities:
        held = np.arange(size) % 5 != 0
        table["age"], table["sex"] = np.where(held, age, np.nan), np.where(held, rng.choice(["F", "M"], size), None)
        codes = {"F": "female", "M": "male"}
        sources["admission"] = {
            "kind": "table",
            "variables": {"age": {"column": "age", "unit": "a"}, "sex": {"column": "sex", "codes": codes}},
        }
    if "cxr" in task.modalities:
        table["cxr"] = [f"image-{i}.dcm" if i % 4 != 1 else None for i in range(size)]
        for i, name in enumerate(table["cxr"]):
            if isinstance(name, str):
                write_dicom(folder / name, rng.integers(0, 1000, (16, 16)) + np.arange(16) * int(50 * rank[i]))
        sources["cxr"] = {"kind": "image", "column": "cxr"}
    if "labs" in task.modalities:
        table["labs"] = ["labs.parquet" if i % 4 != 2 else None for i in range(size)]
        stays = np.repeat(table["visit_id"].to_numpy(), 6)
        rows = {
            "visit_id": stays,
            "hour": np.tile(np.arange(6.0), size),
            "crea": rng.normal(1, 0.3, 6 * size) + np.repeat(rank, 6),
        }
        pd.DataFrame(rows | {"hr": rng.normal(80, 10, 6 * size)}).to_parquet(folder / "labs.parquet")
        units = {"crea": "mg/dL", "hr": "/min"}
        variables = {name: {"column": name, "unit": unit} for name, unit in units.items()}
        sources["labs"] = {"kind": "series", "column": "labs", "key": "visit_id", "variables": variables}
    if "note" in task.modalities:
        table["note"] = [f"note-{i}.txt" if i % 4 != 3 else None for i in range(size)]
        for i, name in enumerate(table["note"]):
            if isinstance(name, str):
                (folder / name).write_text("pale and short of breath" if rank[i] > 0.5 else "walks, feels well")
        sources["note"] = {"kind": "text", "column": "note"}
    table.to_csv(folder / "patients.csv", index=False)
    head = {"site": site, "patients": "patients.csv", "patient": "patient_id", "visit": "visit_id", "labels": labels}
    (folder / "manifest.yaml").write_text(yaml.safe_dump(head | {"modalities": sources} | manifest))
    return table
