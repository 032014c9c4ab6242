"""The server's reference set: public or donated patients; may be labelled, unlabelled or absent."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from common.config import Config, SplitConfig
from common.data.cohort import Cohort
from common.data.folder import open_cohort
from common.data.manifest import FILE_NAME, REFERENCE_FOLDER, Manifest, load_manifest
from common.errors import ConsiliumError
from common.learning.loop import derive_seed


def find_reference(config: Config) -> tuple[Path, Manifest] | None:
    """Returns folder and manifest of the reference set; None if there is none or ``distill.reference`` is off.

    It lies where ``CONSILIUM_REFERENCE`` says, else in the folder ``reference`` of ``CONSILIUM_SITES``.

    Raises:
        ConsiliumError: If the manifest cannot be used, or says what only a hospital's may say.
    """
    if not config.distill.reference:
        return None
    place = os.environ.get("CONSILIUM_REFERENCE")
    sites = os.environ.get("CONSILIUM_SITES")
    folder = Path(place) if place else Path(sites) / REFERENCE_FOLDER if sites else None
    if folder is None or (not place and not (folder / FILE_NAME).is_file()):
        return None
    manifest = load_manifest(folder)
    where = f"The reference set's manifest in {folder}"
    if manifest.role != "train":
        raise ConsiliumError(
            f"{where} says 'role: {manifest.role}': the student would learn from test patients. A hospital that only evaluates "
            "runs a SuperNode of its own; for patients that may train, take the line out."
        )
    if manifest.split is not None:
        raise ConsiliumError(
            f"{where} says 'split: {manifest.split}', but its patients are split by the server, without test patients "
            "(split.meta and split.validation). Leave test patients out of its table, and take the line out."
        )
    return folder, manifest


def open_reference(config: Config) -> Cohort | None:
    """Opens the reference set, raw; None if there is none. It has no test patients.

    Raises:
        ConsiliumError: If it cannot be used.
    """
    found = find_reference(config)
    if found is None:
        return None
    split = SplitConfig(meta=config.split.meta, validation=config.split.validation, test=0.0)
    return open_cohort(*found, config.task, split, derive_seed(config.seed, "reference"))


def checksum(reference: Cohort | None) -> str:
    """Returns the SHA-256 of the patients as they were read, whatever else lies in their folder; empty without any."""
    if reference is None:
        return ""
    digest = hashlib.sha256()
    for tensor in (*(x for _, x in sorted(reference.inputs.items())), reference.present, reference.labels):
        for row in tensor:  # volumes are read one at a time
            digest.update(row.numpy().tobytes())
    digest.update(reference.patient.tobytes() + reference.split.tobytes())
    return digest.hexdigest()
