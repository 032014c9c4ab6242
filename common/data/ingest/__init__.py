"""Files -> raw tensors, one module per modality kind. Shapes: ``common.data.standardise``."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.data.ingest.audio import read_audio
from common.data.ingest.frames import Frames, IngestError, inside
from common.data.ingest.image import read_image
from common.data.ingest.series import bin_series
from common.data.ingest.table import read_table
from common.data.ingest.text import hash_words, read_text
from common.data.ingest.volume_store import VolumeStore
from common.data.manifest import Source
from common.task import Kind, Modality

__all__ = ["Frames", "IngestError", "Reader", "VolumeStore", "reader"]


class Reader(Protocol):
    """Reads one modality of one visit."""

    def __call__(self, cell: str, visit: str) -> NDArray[np.generic] | None:
        """Returns the raw array of the visit that a patient-table cell points at; None if it holds nothing after all.

        Raises:
            IngestError: Saying what is wrong, without any value of the file.
        """


def reader(folder: Path, source: Source, modality: Modality, frames: Frames, volumes: VolumeStore | None = None) -> Reader:
    """Returns the reader of a modality whose cells are relative to ``folder``."""
    store = volumes or VolumeStore(folder)

    def image(cell: str, visit: str) -> NDArray[np.generic]:
        return read_image(inside(folder, cell), modality.pixels)

    def audio(cell: str, visit: str) -> NDArray[np.generic]:
        return read_audio(inside(folder, cell), modality)

    def text(cell: str, visit: str) -> NDArray[np.generic]:
        words = cell if source.inline else read_text(inside(folder, cell), source.encoding)
        return hash_words(words, modality.buckets, modality.tokens)

    def series(cell: str, visit: str) -> NDArray[np.generic] | None:
        return bin_series(frames.rows(inside(folder, cell), source.key, visit), source, modality)

    def table(cell: str, visit: str) -> NDArray[np.generic]:
        return read_table(frames.rows(inside(folder, cell), source.key, visit), source, modality)

    def volume(cell: str, visit: str) -> NDArray[np.generic]:
        return store.scan(cell, modality).voxels

    readers: dict[Kind, Reader] = {
        "image": image, "audio": audio, "text": text, "series": series, "table": table, "volume": volume,
    }  # fmt: skip
    return readers[modality.kind]
