"""Gets open data sets from their official homes; a folder appears complete and checked, or not at all."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import logging
import os
import pkgutil
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pooch

import simulations.datasets
from common.errors import ConsiliumError, nearest
from simulations.benchmarks.base import benchmarks
from simulations.benchmarks.brats import home_of
from simulations.datasets.remote import RemoteData, RemoteFile

TIMEOUT_S = 60
DOWNLOAD = "download"
CHECKSUMS = "SHA256SUMS"
UNREADABLE = (OSError, EOFError, zlib.error, tarfile.TarError)
BY_HAND = {
    "covid-cxr": "covid_cxr",
    "hippocampus": "hippocampus",
    "metakd-adni": "adni.tables",
    "mind-cremad": "mind.cremad",
    "mind-luma": "mind.luma",
    "mind-mortality": "mimic.layout",
    "mind-phenotyping": "mimic.layout",
    "mind-smnist": "mind.smnist",
    "pb-mortality": "mimic.layout",
}
"""Benchmark -> module of ``simulations.datasets`` that tells, as ``FOLDER`` and ``HOW_TO_GET``, where its data are to be had."""

BRATS = "metakd-brats"


def remote_data() -> dict[str, RemoteData]:
    """Returns every data set that a module of ``simulations.datasets`` tells the home of, by name, sorted."""
    package = simulations.datasets
    modules = [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    found = {v.folder: v for m in modules for v in vars(m).values() if isinstance(v, RemoteData)}
    return dict(sorted(found.items()))


def fetch(name: str, to: Path | None, say: Callable[[str], None]) -> Path:
    """Gets a data set by name.

    Args:
        name: Of the data set, or of a benchmark that needs it.
        to: Folder in which its folder is made; ``CONSILIUM_DATA`` by default.
        say: Told what happens.

    Returns:
        The data set's folder.

    Raises:
        ConsiliumError: If the name is unknown, the data cannot be fetched (:func:`by_hand` says where they are), no folder is
            named, or as :func:`fetch_data`.
    """
    known = remote_data()
    wanted = known.get(name) or next((data for data in known.values() if name in data.benchmarks), None)
    if wanted is None and name in benchmarks():
        raise ConsiliumError(by_hand(name))
    if wanted is None:
        raise ConsiliumError(f"There is no data set or benchmark '{name}'{nearest(name, [*known, *benchmarks()])}")
    root = to or (Path(os.environ["CONSILIUM_DATA"]) if os.environ.get("CONSILIUM_DATA") else None)
    if root is None:
        raise ConsiliumError("Say where the data shall lie: --to DIR, or set CONSILIUM_DATA.")
    return fetch_data(wanted, root.resolve(), say)


def by_hand(name: str) -> str:
    """Returns where to get the data of a benchmark that cannot be fetched, and the name of their folder.

    Args:
        name: Of the benchmark.
    """
    if benchmarks()[name].data == "generated":
        return f"'{name}' needs no data: it generates its patients. Run it: consilium-bench run {name}"
    if name.startswith(BRATS):
        folder, how = home_of(name.removeprefix(BRATS))
    elif name in BY_HAND:
        module = importlib.import_module(f"{simulations.datasets.__name__}.{BY_HAND[name]}")
        folder, how = module.FOLDER, module.HOW_TO_GET
    else:
        return f"The data of '{name}' cannot be fetched. 'consilium-bench run {name}' says where to get what is missing."
    return f"The data of '{name}' cannot be fetched; their folder below CONSILIUM_DATA is '{folder}'. {how}"


def fetch_data(data: RemoteData, root: Path, say: Callable[[str], None]) -> Path:
    """Gets a data set.

    Args:
        data: Which.
        root: Folder in which its folder is made.
        say: Told what happens.

    Returns:
        The data set's folder.

    Raises:
        ConsiliumError: If a file cannot be got or is not what it should be; nothing of it is left then. If the folder exists and
            does not hold the data set.
    """
    folder = root / data.folder
    if folder.exists():
        _check(data, folder, f"Remove {folder}, or name another folder with --to.")
        say(f"{folder} holds the data already.")
        return folder
    say(f"{data.title}. Licence: {data.licence}")
    partial = root / f".{data.folder}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for number, file in enumerate(data.files, 1):
            say(f"{number}/{len(data.files)} {file.url}")
            _get(file, partial)
        _check(data, partial, "What lies there now is not the data set that was expected; nothing was kept.")
        sums = [f"{_sha256(partial / file.name)}  {file.name}\n" for file in data.files]
        (partial / CHECKSUMS).write_text("".join(sums), encoding="utf-8")
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    say(f"The data lie in {folder}")
    return folder


def _get(file: RemoteFile, partial: Path) -> None:
    """Downloads, checks and, where needed, converts one file."""
    target = partial / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    pooch.get_logger().setLevel(logging.WARNING)
    try:
        got = pooch.retrieve(
            file.url,
            known_hash=f"sha256:{file.sha256}" if file.sha256 else None,
            fname=DOWNLOAD,
            path=partial,
            downloader=pooch.HTTPDownloader(timeout=TIMEOUT_S),
        )
    except ValueError:
        raise ConsiliumError(
            f"{file.url} is not the file that was expected: its SHA-256 is not {file.sha256}. Try again; if it stays so, the "
            "file was changed there. Nothing was kept."
        ) from None
    except OSError as error:  # all of requests' errors are
        raise ConsiliumError(
            f"{file.url} cannot be got ({type(error).__name__}: {error}). Check the network and its proxy settings, then try "
            "again. Nothing was kept."
        ) from None
    download = Path(got)
    try:
        if file.content_sha256 and _sha256(download, content=True) != file.content_sha256:
            raise ConsiliumError(f"{file.url}: the content's SHA-256 differs from {file.content_sha256}. Nothing was kept.")
        if file.convert:
            file.convert(download, target)
            download.unlink()
        else:
            download.rename(target)
    except UNREADABLE as error:
        raise ConsiliumError(f"{file.url} cannot be unpacked ({type(error).__name__}). Nothing was kept; try again.") from None


def _check(data: RemoteData, folder: Path, remedy: str) -> None:
    """Raises ConsiliumError, with what can be done, if a folder does not hold the data set."""
    missing = [file.name for file in data.files if not (folder / file.name).is_file()]
    if missing:
        raise ConsiliumError(f"{folder} lacks {', '.join(missing)}. {remedy}")
    for file in data.files:
        found, expected = folder / file.name, file.sha256 or file.content_sha256
        try:
            same = file.convert or not expected or _sha256(found, content=not file.sha256) == expected
        except UNREADABLE:
            same = False
        if not same:
            raise ConsiliumError(f"{found} is not the file that was expected: its SHA-256 is not {expected}. {remedy}")
    try:
        data.check(folder)
    except ConsiliumError as error:
        raise ConsiliumError(f"{error} {remedy}") from None
    except UNREADABLE as error:
        raise ConsiliumError(f"A file in {folder} cannot be read ({type(error).__name__}). {remedy}") from None


def _sha256(file: Path, *, content: bool = False) -> str:
    with gzip.open(file) if content else file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
