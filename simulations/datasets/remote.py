"""Where an open data set lies on the network, and how what was fetched is checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RemoteFile:
    """One file of a data set.

    Attributes:
        name: Path below the data set's folder.
        url: Official address.
        sha256: Of the download, where the official file is known byte by byte.
        content_sha256: Of a gzip file's content: whoever packed it again changed the wrapper only.
        convert: ``convert(download, file)`` writes the file that is kept, where it is not the download itself.
    """

    name: str
    url: str
    sha256: str | None = None
    content_sha256: str | None = None
    convert: Callable[[Path, Path], None] | None = None


@dataclass(frozen=True)
class RemoteData:
    """An open data set.

    Attributes:
        folder: Its folder below ``CONSILIUM_DATA``, and its name for ``consilium-bench fetch``.
        title: What it is.
        licence: Under which it is open.
        files: Its files.
        check: Raises ``ConsiliumError`` if a folder does not hold the data set, by what is in the files.
        benchmarks: Names of the benchmarks that need it.
    """

    folder: str
    title: str
    licence: str
    files: tuple[RemoteFile, ...]
    check: Callable[[Path], None]
    benchmarks: tuple[str, ...] = ()
