"""A site: the opened manifest, and what this hospital allows."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import pandas as pd
from flwr.app import Context
from pydantic import TypeAdapter

from common.config import Config, SplitConfig
from common.data.cohort import Cohort, Finding
from common.data.folder import open_cohort
from common.data.ingest.frames import IngestError, inside, read_frame
from common.data.manifest import FILE_NAME, OWN_FOLDER, Manifest, check_labels, hospital_folders, load_manifest
from common.data.quality import content_warnings
from common.data.standardise import Standardisation
from common.errors import ConsiliumError, TooManyFaults
from common.models.ensemble import GROUP_SEPARATOR, groups
from common.models.registry import SIZES, size_of
from common.task import COMPLETE, MASK, Task

LOG = logging.getLogger(__name__)
FAULTS = "faults.log"
FINDINGS = "findings.csv"
KEY = "checksum.key"
KEY_BYTES = 32
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def site_folder(context: Context) -> tuple[Path, int]:
    """Returns this site's folder, and how many hospital folders this machine knows of.

    The place comes from the site alone: node-config ``manifest``, else environment ``CONSILIUM_SITES`` and the node's
    partition-id. No message can name a file.

    Raises:
        ConsiliumError: If neither leads to a manifest.
    """
    manifest = context.node_config.get("manifest")
    if manifest:
        path = Path(str(manifest)).expanduser()
        if not path.is_dir() and path.name != FILE_NAME:
            raise ConsiliumError(f"The node-config 'manifest' names neither a folder nor a file {FILE_NAME}. Correct it.")
        return (path if path.is_dir() else path.parent), 1
    sites = os.environ.get("CONSILIUM_SITES")
    if not sites:
        raise ConsiliumError(
            "This site does not know its manifest. Start the SuperNode with "
            f"--node-config \"manifest='/path/to/{FILE_NAME}'\", or set CONSILIUM_SITES to a folder with one folder per hospital "
            "before the SuperLink starts."
        )
    folders = hospital_folders(Path(sites))
    partition = int(str(context.node_config.get("partition-id", 0)))
    if partition >= len(folders):
        raise ConsiliumError(
            f"Node {partition} has no hospital: the folder that CONSILIUM_SITES names has {len(folders)} folder(s) with "
            f"{FILE_NAME}. Start {len(folders)} SuperNodes: flwr run . --federation-config 'num-supernodes={len(folders)}'."
        )
    return folders[partition], len(folders)


@dataclass
class Site:
    """One hospital's patients, opened for one task.

    Attributes:
        folder: Where the manifest lies.
        manifest: What it says.
        cohort: Raw patients.
        sites_here: Hospital folders that this machine knows of (1 unless simulated).
    """

    folder: Path
    manifest: Manifest
    cohort: Cohort
    sites_here: int = 1
    _ready: dict[bytes, Cohort] = field(default_factory=dict)

    def ready(self, standardisation: Standardisation) -> Cohort:
        """Returns the model-ready patients; the last standardisation is kept."""
        pooled = sorted(standardisation.moments.items())
        key = b"".join(part.tobytes() for _, v in pooled for part in (v.count, v.mean, v.variance))
        if key not in self._ready:
            self._ready.clear()
            self._ready[key] = self.cohort.standardised(standardisation)
        return self._ready[key]

    def trainable(self, config: Config) -> list[str]:
        """Returns the groups that this site holds training patients for and whose size it allows."""
        if self.manifest.role == "evaluate":
            return []
        train = self.cohort.part("train")
        held = {m for m in (*config.task.modalities, COMPLETE) if len(train.holding(m))}
        allowed = SIZES[: SIZES.index(self.manifest.limits.largest) + 1]
        kinds = {n: m.kind for n, m in config.task.modalities.items()}

        def carried(modality: str, architecture: str) -> bool:
            encoders = {modality: architecture} if modality in kinds else {m: config.model.student[k] for m, k in kinds.items()}
            return all(size_of(kinds[m], a) in allowed for m, a in encoders.items())

        pairs = ((g, *g.split(GROUP_SEPARATOR)) for g in groups(config.task, config.model))
        return [g for g, m, a in pairs if m in held and carried(m, a)]

    @contextmanager
    def own_folder(self) -> Iterator[Path]:
        """Gives this hospital's own folder, to write into.

        Raises:
            ConsiliumError: If it cannot be written.
        """
        try:
            place = self.folder / OWN_FOLDER
            place.mkdir(exist_ok=True)
            yield place
        except OSError as error:
            raise ConsiliumError(
                f"Site '{self.manifest.site}' cannot write into its folder {OWN_FOLDER} ({type(error).__name__}). Let the user "
                f"who runs the SuperNode write there, beside {FILE_NAME}, and see that the disk is not full."
            ) from None

    def checksum(self) -> str:
        """Returns a keyed hash of every file that the manifest points to: the same as long as none of them changes.

        The key never leaves this hospital. Without it nobody can try whether a guessed table is the table; the server only sees
        whether the files are those of the last time. Manifest, patient table and the files of many visits (``key``) count by
        their content, a visit's own file (an image, a note) by name, size and time: to read them all would take too long. Such
        files must keep their times when they are restored from a backup.
        """
        table = read_frame(self.folder / self.manifest.patients)
        whole, single = {FILE_NAME, self.manifest.patients}, set[str]()
        for source in self.manifest.modalities.values():
            if source.column and not source.inline:
                (whole if source.key else single).update(table[source.column].dropna().astype(str))
        if any(source.kind == "volume" for source in self.manifest.modalities.values()):
            single.update(table[self.manifest.labels[MASK]].dropna().astype(str))
        states = [(name, _state(self.folder, name, whole=name in whole)) for name in sorted(whole | single)]
        return hmac.digest(self._key(), json.dumps(states).encode(), "sha256").hex()

    def _key(self) -> bytes:
        """Returns the key of the checksum, random and made once; its file is for this user's eyes only."""
        with self.own_folder() as place:
            file = place / KEY
            with suppress(FileExistsError), open(file, "xb", opener=lambda p, flags: os.open(p, flags, 0o600)) as new:
                new.write(secrets.token_bytes(KEY_BYTES))
            key = file.read_bytes()
        if len(key) != KEY_BYTES:
            raise ConsiliumError(
                f"{OWN_FOLDER}/{KEY} of site '{self.manifest.site}' is damaged. Delete it; a new one is made, and the site's "
                "checksum changes once."
            )
        return key

    def store_findings(self) -> None:
        """Writes faults and what tells nothing into this hospital's own folder; the server is told the number of the faults."""
        told = content_warnings(self.folder, self.manifest, self.cohort)
        with self.own_folder() as place:
            _write_findings(place, (*self.cohort.findings, *told))

    def store_predictions(self, run: str, predictions: pd.DataFrame) -> None:
        """Keeps predictions for this hospital's own use; they never leave its folder.

        Raises:
            ConsiliumError: If the run's name is no plain name, or the folder cannot be written.
        """
        if not PLAIN_NAME.fullmatch(run):
            raise ConsiliumError(
                "Request refused: a run's name holds letters, digits, '.', '_' and '-', and begins with a letter or digit."
            )
        with self.own_folder() as place:
            (place / run).mkdir(exist_ok=True)
            predictions.to_parquet(place / run / "predictions.parquet", index=False)

    def epochs(self, asked: int) -> int:
        """Returns the local epochs that this hospital allows."""
        return min(asked, self.manifest.limits.epochs)


def _state(folder: Path, name: str, *, whole: bool) -> str | tuple[int, int] | None:
    """Returns the SHA-256 of a whole file, else its size and time; None if it cannot be read."""
    with suppress(IngestError, OSError):
        path = inside(folder, name)
        if not whole:
            return path.stat().st_size, path.stat().st_mtime_ns
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return None


def fingerprint(folder: Path) -> int:
    """Returns a number that changes, within this process, with the name, size or time of any file that is the hospital's own."""
    files: list[tuple[str, int, int]] = []
    places = [str(folder)]
    while places:
        with suppress(OSError), os.scandir(places.pop()) as entries:  # what cannot be looked at is found when it is opened
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    places += [entry.path] if entry.name != OWN_FOLDER else []
                else:
                    with suppress(OSError):
                        state = entry.stat()
                        files.append((entry.path, state.st_size, state.st_mtime_ns))
    return hash(frozenset(files))


@lru_cache(maxsize=64)
def _open(folder: Path, sites_here: int, changed: int, task: str, split: str, seed: int) -> Site:
    """Opens a folder; the arguments are the key under which it is kept, hence the JSON texts."""
    try:
        manifest = load_manifest(folder, FILE_NAME)
    except ConsiliumError as error:
        LOG.error("In %s: %s", folder, error)  # for this hospital's console: the text that leaves names no folder
        raise
    check_labels(manifest)
    shares = TypeAdapter(SplitConfig).validate_json(split)
    try:
        cohort = open_cohort(folder, manifest, TypeAdapter(Task).validate_json(task), shares, seed)
    except TooManyFaults as error:
        with suppress(OSError):
            (folder / OWN_FOLDER).mkdir(exist_ok=True)
            _write_findings(folder / OWN_FOLDER, error.findings)
        seen = f"{error} The faults are listed by 'consilium-client check' and in {OWN_FOLDER}/{FINDINGS}."
        raise TooManyFaults(seen, error.findings) from None
    return Site(folder, manifest, cohort, sites_here)


def _write_findings(place: Path, findings: Iterable[Finding]) -> None:
    columns = ["file", "row", "column", "problem"]
    pd.DataFrame([vars(f) for f in findings], columns=columns).to_csv(place / FINDINGS, index=False)


def open_site(context: Context, config: Config) -> Site:
    """Returns this node's site, opened; one opened before in this process, and unchanged since, is kept."""
    folder, sites_here = site_folder(context)
    task, split = TypeAdapter(Task).dump_json(config.task), TypeAdapter(SplitConfig).dump_json(config.split)
    return _open(folder, sites_here, fingerprint(folder), task.decode(), split.decode(), config.seed)


def note_fault(context: Context) -> None:
    """Appends the exception being handled to the hospital's own log: its text may quote patient data, kept out of others."""
    with suppress(ConsiliumError, OSError):
        place = site_folder(context)[0] / OWN_FOLDER
        place.mkdir(exist_ok=True)
        with (place / FAULTS).open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC).isoformat()}\n{traceback.format_exc()}\n")
