"""What the modules of data sets share: finding and checking the official files, and writing a site."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import yaml
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

from common.data.manifest import FILE_NAME
from common.errors import ConsiliumError

PATIENTS = "patients.parquet"
PARTIAL = ".partial"
MARK = "GENERATED.json"
"""A root that holds this file holds no real patients."""
TESTS = "test-"
"""Begins the name of a site that only tests; the rest names the training site of the same unit or network, if there is one."""
Data = Literal["real", "generated"]
UNREADABLE = (OSError, EOFError, zlib.error, ValueError)  # pandas' parser errors and wrong encodings are ValueErrors


def data_folder(name: str, how_to_get: str) -> Path:
    """Returns the folder of a data set below ``CONSILIUM_DATA``.

    Raises:
        ConsiliumError: If the environment variable is not set or holds no such folder, saying how to get the data.
    """
    root = os.environ.get("CONSILIUM_DATA")
    if not root:
        raise ConsiliumError(f"CONSILIUM_DATA is not set: it names the folder that holds '{name}'. {how_to_get}")
    if not (Path(root) / name).is_dir():
        raise ConsiliumError(f"The data are not there: {Path(root) / name} is missing. {how_to_get}")
    return Path(root) / name


def write_png(pixels: NDArray[np.uint8], target: Path) -> None:
    """Writes a grey [H, W] or coloured [H, W, 3] image, quickly: it is read a few times."""
    Image.fromarray(pixels).save(target, format="png", compress_level=1)


def official_or_twin(name: str, beside: Path, write: Callable[[Path], object], how_to_get: str) -> tuple[Path, list[str]]:
    """Returns where a data set lies: below ``CONSILIUM_DATA``, or if it is not there, a generated twin.

    Args:
        name: Its folder.
        beside: Folder in which the twin is written, once.
        write: Writes the twin into a new folder.
        how_to_get: What is told of where the data come from.

    Returns:
        The folder, and a sentence on the twin, if it is one.
    """
    official = Path(os.environ.get("CONSILIUM_DATA") or ".") / name
    if os.environ.get("CONSILIUM_DATA") and official.is_dir():
        return official, []
    root = beside / f"{name}-twin"
    beside.mkdir(parents=True, exist_ok=True)
    with FileLock(root.with_suffix(".lock")):
        if not root.is_dir():
            write(root)
    return root, [f"These patients are generated: CONSILIUM_DATA has no folder '{name}'. {how_to_get}"]


@contextmanager
def new_twin(root: Path, **said: int) -> Iterator[Path]:
    """Gives a folder to write a twin into, with the mark of generated data; ``root`` appears complete or not at all.

    Args:
        root: New folder.
        **said: What the mark tells: ``version``, ``seed``, and how many.

    Raises:
        ConsiliumError: If the folder exists.
    """
    if root.exists():
        raise ConsiliumError(f"{root} exists. A twin is written into a new folder: name another, or remove it first.")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{root.name}.", dir=root.parent) as home:
        partial = Path(home) / root.name
        partial.mkdir()
        mark = json.dumps({**said, "said": "Nothing in this folder was recorded: no patient in it is real."})
        (partial / MARK).write_text(mark, encoding="utf-8")
        yield partial
        os.rename(partial, root)


def origin(root: Path, official: str, short: str) -> tuple[Data, str]:
    """Returns whether the patients of a root are real, and what to call them.

    Args:
        root: Folder of a data set, official or a twin.
        official: What the official data are called.
        short: Their name in that of the twin.

    Raises:
        ConsiliumError: If the mark of generated patients cannot be read.
    """
    file = root / MARK
    if not file.exists():
        return "real", official
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        return "generated", f"generated twin of {short}, version {said['version']}, seed {said['seed']}"
    except (OSError, ValueError, KeyError, TypeError):
        raise ConsiliumError(f"{file} marks generated patients but cannot be read. Remove the folder {root}.") from None


def verified(root: Path, names: Iterable[str] | Mapping[str, Path], how_to_get: str) -> str:
    """Checks the official files of a data set.

    Args:
        root: Their folder; a ``SHA256SUMS`` in it is believed.
        names: Names of the files; or name -> file, where distributions spell names differently.
        how_to_get: What errors tell of where the data come from.

    Returns:
        SHA-256 over the checksums of the files.

    Raises:
        ConsiliumError: If a file is missing or differs from its checksum.
    """
    listing = root / "SHA256SUMS"
    lines = [line.split(maxsplit=1) for line in listing.read_text().splitlines()] if listing.is_file() else []
    listed = {line[1].lstrip("*"): line[0] for line in lines if len(line) == 2}
    files = names if isinstance(names, Mapping) else {name: root / name for name in names}
    whole = hashlib.sha256()
    for name, file in sorted(files.items()):
        if not file.is_file():
            raise ConsiliumError(f"The data are not complete: {file} is missing. {how_to_get}")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if listed.get(file.relative_to(root).as_posix(), digest) != digest:
            raise ConsiliumError(f"{file} differs from its checksum in {listing}. Download the file again. {how_to_get}")
        whole.update(f"{digest}  {name}\n".encode())
    return whole.hexdigest()


def refuse(bad: pd.Series[bool] | NDArray[np.bool_], file: Path, fault: str, remedy: str, *, first: int | None = 1) -> None:
    """Refuses rows that have a fault.

    Args:
        bad: Which rows; a series names them by its index, an array by their places, both from 0.
        file: The file, one row per line.
        fault: What is wrong with them.
        remedy: What to do.
        first: Line of row 0; 2 below a header. None if rows are no lines, because cells have several or rows were left out.

    Raises:
        ConsiliumError: With the line of the first of them, if rows are lines, and how many there are.
    """
    rows = bad.index[bad.to_numpy(bool)] if isinstance(bad, pd.Series) else np.flatnonzero(bad)
    if len(rows):
        line = "" if first is None else f", line {int(np.min(rows)) + first}"
        more = f" ({len(rows):,} rows)" if len(rows) > 1 else ""
        raise ConsiliumError(f"{file}{line}: {fault}{more}. {remedy}")


def differs(what: str, found: Iterable[int], reported: Iterable[int], where: str) -> str:
    """Returns a sentence where counts are not the reported ones; else nothing."""
    ours, theirs = (" / ".join(f"{n:,}" for n in each) for each in (found, reported))
    return "" if ours == theirs else f"{what}: {ours}; {where} has {theirs}."


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


def place_file(source: str | Path, target: Path) -> None:
    """Puts a file at another place: as a link where the file system can, because there are gigabytes of them, else as a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(Path(source).resolve(), target)
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
