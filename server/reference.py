"""The server's reference set: public or donated patients; may be labelled, unlabelled or absent."""

from __future__ import annotations

import os
from pathlib import Path

from common.config import Config, SplitConfig
from common.data.cohort import Cohort
from common.data.folder import open_cohort
from common.data.manifest import FILE_NAME, REFERENCE_FOLDER, load_manifest
from common.learning.loop import derive_seed


def open_reference(config: Config) -> Cohort | None:
    """Opens the reference set, raw; None if there is none or ``distill.reference`` is off.

    It lies where ``CONSILIUM_REFERENCE`` says, else in the folder ``reference`` of ``CONSILIUM_SITES``. It has no test patients.
    """
    if not config.distill.reference:
        return None
    place = os.environ.get("CONSILIUM_REFERENCE")
    sites = os.environ.get("CONSILIUM_SITES")
    folder = Path(place) if place else Path(sites) / REFERENCE_FOLDER if sites else None
    if folder is None or (not place and not (folder / FILE_NAME).is_file()):
        return None
    manifest = load_manifest(folder)
    split = SplitConfig(meta=config.split.meta, validation=config.split.validation, test=0.0)
    return open_cohort(folder, manifest, config.task, split, derive_seed(config.seed, "reference"))
