"""What the modules of data sets share: finding and checking the official files, and writing a site."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from common.data.manifest import FILE_NAME
from common.errors import ConsiliumError

PATIENTS = "patients.parquet"
PARTIAL = ".partial"


def data_folder(name: str, how_to_get: str) -> Path:
    """Returns the folder of a data set below ``CONSILIUM_DATA``.

    Raises:
        ConsiliumError: If the environment variable is not set, saying how to get the data.
    """
    root = os.environ.get("CONSILIUM_DATA")
    if not root:
        raise ConsiliumError(f"CONSILIUM_DATA is not set: it names the folder that holds '{name}'. {how_to_get}")
    return Path(root) / name


def verified(root: Path, names: Iterable[str], how_to_get: str) -> str:
    """Checks the official files of a data set.

    Args:
        root: Their folder; a ``SHA256SUMS`` in it is believed.
        names: Names of the files.
        how_to_get: What errors tell of where the data come from.

    Returns:
        SHA-256 over the checksums of the files.

    Raises:
        ConsiliumError: If a file is missing or differs from its checksum.
    """
    listing = root / "SHA256SUMS"
    lines = [line.split(maxsplit=1) for line in listing.read_text().splitlines()] if listing.is_file() else []
    listed = {line[1].lstrip("*"): line[0] for line in lines if len(line) == 2}
    whole = hashlib.sha256()
    for name in sorted(names):
        file = root / name
        if not file.is_file():
            raise ConsiliumError(f"The data are not complete: {file} is missing. {how_to_get}")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if listed.get(name, digest) != digest:
            raise ConsiliumError(f"{file} differs from its checksum in {listing}. Download the file again. {how_to_get}")
        whole.update(f"{digest}  {name}\n".encode())
    return whole.hexdigest()


def with_split(checksum: str, placed: pd.DataFrame) -> str:
    """Returns the SHA-256 of a data set's checksum and of who was placed where."""
    return hashlib.sha256(f"{checksum}\n{placed.to_csv(index=False)}".encode()).hexdigest()


def new_sites(folder: Path) -> Path:
    """Returns where to write sites; :func:`finish_sites` gives the folder its name, so that sites appear complete or not at all.

    Raises:
        ConsiliumError: If the folder has content.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConsiliumError(f"{folder} is not empty. Name a new folder for the sites, or remove it first.")
    partial = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    return partial


def finish_sites(partial: Path) -> None:
    """Gives a folder of :func:`new_sites` its name."""
    os.replace(partial, partial.with_name(partial.name.removesuffix(PARTIAL)))


def place_file(source: Path, target: Path) -> None:
    """Puts a file at another place: as a link where the file system can, else as a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def write_site(folder: Path, patients: pd.DataFrame, manifest: Mapping[str, Any], files: Mapping[str, pd.DataFrame]) -> None:
    """Writes one hospital.

    Args:
        folder: New folder, named like the site.
        patients: The patient table, with columns ``patient`` and ``visit``.
        manifest: What its manifest says beside format, site and patient table.
        files: Name of a Parquet file -> its content.
    """
    folder.mkdir(parents=True)
    for name, frame in {PATIENTS: patients, **files}.items():
        frame.to_parquet(folder / name, index=False)
    head = {"schema_version": 1, "site": folder.name, "patients": PATIENTS, "patient": "patient", "visit": "visit"}
    text = yaml.dump({**head, **manifest}, Dumper=yaml.CSafeDumper, sort_keys=False)
    (folder / FILE_NAME).write_text(text, encoding="utf-8")
