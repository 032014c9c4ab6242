"""What MIND's multi-class sets share: real files or a twin, samples as sites, and how what is wrong is said."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from common.data.manifest import REFERENCE_FOLDER
from common.errors import ConsiliumError
from simulations.datasets.files import Data, finish_sites, new_sites, with_split, write_site
from simulations.partition import assign_modalities

REFERENCE_SHARE, FULL_SHARE = 0.1, 1 / 3
TEST = "test"
LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class Stored:
    """How a modality rests at a site.

    Attributes:
        source: Its entry in the manifest, without ``column``.
        suffix: Ending of its files; empty where the cell itself is the text.
        write: Writes the file of one sample: what stands in its cell of ``Samples.rows``, and the file.
        long: Series: numbers of samples (their cells) and their visits -> one table of all their rows.
    """

    source: Mapping[str, Any]
    suffix: str = ""
    write: Callable[[Any, Path], object] | None = None
    long: Callable[[NDArray[np.int64], NDArray[Any]], pd.DataFrame] | None = None


@dataclass(frozen=True)
class Samples:
    """The samples of one set.

    Attributes:
        rows: One row per sample: visit, patient (whoever must not be on two sides), part (train, test), label, and per modality a
            cell; empty where the sample lacks it.
        stored: Modality -> how it rests at a site.
        exclusions: What was left out -> how many.
        checksum: SHA-256 of what was read.
        data: Whether it was recorded.
        version: What the data are called.
        warnings: What people should know of them.
    """

    rows: pd.DataFrame
    stored: Mapping[str, Stored]
    exclusions: Mapping[str, int]
    checksum: str
    data: Data
    version: str
    warnings: tuple[str, ...] = field(default=())


def write_sites(
    samples: Samples,
    folder: Path,
    *,
    seed: int,
    sites: tuple[str, ...],
    masked: bool = True,
    reference: float = REFERENCE_SHARE,
) -> dict[str, Any]:
    """Writes the training samples as sites and ``reference``, and the test samples as one site that only evaluates.

    Patients are dealt as a whole, evenly, by label where each has one. A third of the sites, rounded up, hold all modalities, the
    others one or two; the reference set and the test site hold all.

    Args:
        samples: What a reader returned.
        folder: New or empty folder; it appears complete or not at all.
        seed: Seed of who is where and of who holds what.
        sites: Names of the training sites.
        masked: Whether sites lack modalities.
        reference: Share of the training patients that make the labelled reference set; with 0 there is none.

    Returns:
        ``data``, ``data_version``, ``data_checksum``, ``exclusions``, ``warnings`` and ``n`` per role.

    Raises:
        ConsiliumError: If the folder is not empty, or there are fewer patients than sites.
    """
    frame = samples.rows.assign(site=_places(samples.rows, sites, seed, reference))
    frame["role"] = frame["site"].map({TEST: "test", REFERENCE_FOLDER: "reference"}).fillna("train")
    everything = tuple(sorted(samples.stored))
    held = dict.fromkeys(frame["site"], everything)
    if masked:
        held |= assign_modalities(sites, everything, full_share=FULL_SHARE, seed=seed)
    partial = new_sites(folder)
    for site, rows in frame.groupby("site"):
        _write(partial / str(site), rows, samples, held[str(site)])
    finish_sites(partial)
    return {
        "data": samples.data,
        "data_version": samples.version,
        "data_checksum": with_split(samples.checksum, frame[["visit", "site"]]),
        "exclusions": dict(samples.exclusions),
        "warnings": list(samples.warnings),
        "n": {str(role): _counts(rows, everything) for role, rows in frame.groupby("role")},
    }


def _places(rows: pd.DataFrame, sites: tuple[str, ...], seed: int, reference: float) -> pd.Series[str]:
    """Returns the site of every sample."""
    train = rows[rows["part"] == "train"]
    labels = train.groupby("patient")["label"]
    kind = labels.first().where(labels.nunique() == 1, "several")
    rng = np.random.default_rng(seed)
    place: dict[str, str] = {}
    if reference:
        strata = kind if kind.value_counts().min() > 1 and reference * len(kind) >= kind.nunique() else None
        _, drawn = train_test_split(kind.index.to_numpy(), test_size=reference, random_state=seed, stratify=strata)
        place = dict.fromkeys(drawn, REFERENCE_FOLDER)
    left = rng.permutation([p for p in kind.index if p not in place])
    if len(left) < len(sites):
        raise ConsiliumError(
            f"{len(left)} training patients cannot make {len(sites)} sites. Get the whole set, or a larger twin."
        )
    dealt = left[np.argsort(kind.loc[left].to_numpy(), kind="stable")]
    place |= dict(zip(dealt, np.resize(sites, len(dealt)), strict=True))
    return rows["patient"].map(place).where(rows["part"] == "train", TEST)


def _write(folder: Path, rows: pd.DataFrame, samples: Samples, held: tuple[str, ...]) -> None:
    """Writes one site: patient table, manifest, values and files."""
    cells = rows[["patient", "visit"]].assign(**{"class": rows["label"]})
    long: dict[str, pd.DataFrame] = {}
    for name in held:
        how, known = samples.stored[name], rows[name].notna()
        if how.long:
            long[f"{name}.parquet"] = how.long(rows.loc[known, name].to_numpy(np.int64), rows.loc[known, "visit"].to_numpy())
            cells[name] = known.map({True: f"{name}.parquet", False: None})
        else:
            cells[name] = (rows["visit"] + how.suffix if how.write else rows[name]).where(known, None)
    manifest = {
        "labels": {"class": "class"},
        "role": "evaluate" if folder.name == TEST else "train",
        "data": samples.data,
        "modalities": {name: {**samples.stored[name].source, "column": name} for name in held},
    }
    write_site(folder, cells, manifest, long)
    for name in held:
        write = samples.stored[name].write
        if write:
            for cell, source in zip(cells[name], rows[name], strict=True):
                if pd.notna(cell):
                    write(source, folder / cell)


def _counts(rows: pd.DataFrame, modalities: Iterable[str]) -> dict[str, int]:
    held = {f"with {name}": int(rows[name].notna().sum()) for name in modalities}
    people = {"samples": len(rows), "patients": int(rows["patient"].nunique())}
    return people | held | {"sites": int(rows["site"].nunique())}


def refuse_pointers(files: Iterable[Path], how_to_get: str) -> None:
    """Refuses recordings that are no more than pointers of Git LFS, or empty.

    Raises:
        ConsiliumError: With the first of them.
    """
    for file in files:
        with file.open("rb") as opened:
            head = opened.read(len(LFS))
        if head == LFS or not head:
            what = "is a pointer of Git LFS, not the recording: run 'git lfs pull' in its repository" if head else "is empty"
            raise ConsiliumError(f"{file} {what}. {how_to_get}")


def digest(rows: pd.DataFrame, files: Iterable[Path], checksum: str = "") -> str:
    """Returns the SHA-256 of a table and of names and sizes of files."""
    whole = hashlib.sha256(f"{checksum}\n{rows.to_csv(index=False)}".encode())
    for file in files:
        whole.update(f"{file.name} {file.stat().st_size}\n".encode())
    return whole.hexdigest()
