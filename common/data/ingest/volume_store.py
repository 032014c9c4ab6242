"""Scans and masks as they were read, kept in the folder's own corner: to read NIfTI files takes seconds each.

There is a file for each, named after a digest of what it was made from and with: name, size and times of the file (its content
is not read), grid and regions, this code, and the versions of the packages that read and resample. So a file that changed, or
another grid, is read anew. Kept scans are mapped into memory, not loaded: only the voxels that somebody looks at are there, as
long as they are needed. Where nothing can be written, scans are held in memory.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.data.ingest import volume
from common.data.ingest.frames import IngestError, inside
from common.data.manifest import OWN_FOLDER
from common.task import Modality, Task

LOG = logging.getLogger(__name__)
VOLUMES = "volumes"
ENDING, PARTIAL = ".safetensors", ".partial"
ABANDONED_S = 3600.0  # by then a file is written
PACKAGES = ("monai", "nibabel", "torch")
CODE = [hashlib.sha256(Path(module).read_bytes()).hexdigest() for module in (volume.__file__, __file__)]


@dataclass(frozen=True)
class Volume:
    """A scan or the regions of a mask.

    Attributes:
        voxels: float16 [1, D, H, W] (:func:`common.data.ingest.volume.read_volume`), or regions uint8 [C, D, H, W].
        place: Where it lies, float64 [5, 4] (:func:`common.data.ingest.volume.place_of`).
    """

    voxels: NDArray[np.generic]
    place: NDArray[np.float64]


@dataclass
class VolumeStore:
    """The scans and masks of a manifest's folder."""

    folder: Path
    _known: dict[str, Volume] = field(default_factory=dict)
    _versions: list[str] = field(default_factory=lambda: [importlib.metadata.version(package) for package in PACKAGES])
    _writable: bool = True

    def scan(self, cell: str, modality: Modality) -> Volume:
        """Returns the scan that a cell names.

        Raises:
            IngestError: If it cannot be used.
        """
        file = inside(self.folder, cell)
        return self._kept(file, [modality.voxels, modality.spacing_mm], lambda: volume.read_volume(file, modality).astype("f2"))

    def regions(self, cell: str, task: Task) -> Volume:
        """Returns the regions of the mask that a cell names.

        Raises:
            IngestError: If it cannot be used.
        """
        file, modality = inside(self.folder, cell), next(iter(task.modalities.values()))
        regions = [task.regions[output] for output in task.outputs]

        def made() -> NDArray[np.generic]:
            mask = volume.read_mask(file, modality, {value for region in regions for value in region})
            return np.stack([np.isin(mask, region) for region in regions]).astype(np.uint8)

        return self._kept(file, [modality.voxels, modality.spacing_mm, regions], made)

    def tidy(self) -> None:
        """Removes what was kept for files or tasks that are no longer asked for, and what an interrupted opening left."""
        if not self._known:
            return
        with suppress(OSError):
            for file in self._corner().iterdir():
                strange = file.suffix == ENDING and file.stem not in self._known
                if strange or (file.suffix == PARTIAL and time.time() - file.stat().st_mtime > ABANDONED_S):
                    file.unlink(missing_ok=True)

    def _corner(self) -> Path:
        return self.folder / OWN_FOLDER / VOLUMES

    def _kept(self, file: Path, how: list[object], make: Callable[[], NDArray[np.generic]]) -> Volume:
        """Returns what was kept of a file that was read in a certain way; else reads it, and keeps it."""
        try:
            state = file.stat()
        except OSError as error:
            raise IngestError(f"the file cannot be read ({type(error).__name__})") from None
        source = [str(file.relative_to(self.folder.resolve())), state.st_size, state.st_mtime_ns]
        if state.st_nlink == 1:  # of linked files it also changes whenever a simulation makes or removes a link elsewhere
            source.append(state.st_ctime_ns)
        digest = hashlib.sha256(json.dumps([CODE, self._versions, how, source]).encode()).hexdigest()
        if digest not in self._known:
            self._known[digest] = self._mapped(digest) or self._stored(digest, Volume(make(), volume.place_of(file)))
        return self._known[digest]

    def _mapped(self, digest: str) -> Volume | None:
        """Returns what is kept under a digest; None if that is nothing, or damaged."""
        try:
            with safe_open(self._corner() / f"{digest}{ENDING}", "pt") as file:  # numpy's would load it
                return Volume(file.get_tensor("voxels").numpy(), file.get_tensor("place").numpy())
        except (OSError, SafetensorError):
            return None

    def _stored(self, digest: str, made: Volume) -> Volume:
        """Keeps a volume; whoever reads meanwhile, or after a crash, finds all of it or nothing."""
        if not self._writable:
            return made
        partial = self._corner() / f"{digest}-{secrets.token_hex(4)}{PARTIAL}"
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(save({"voxels": np.ascontiguousarray(made.voxels), "place": made.place}))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._corner() / f"{digest}{ENDING}")
        except OSError as error:
            self._writable = False
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            LOG.warning(
                "Scans cannot be kept in the folder %s beside the manifest (%s): they are held in memory, and read anew at every "
                "opening. Let this user write there, and see that the disk is not full.",
                OWN_FOLDER,
                type(error).__name__,
            )
        return self._mapped(digest) or made
