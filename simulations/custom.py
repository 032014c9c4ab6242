"""The user's own data as a benchmark: a task file and a folder of sites, as they are."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.config import TASK_FILE, Config, load_config, parts_not_needed
from common.data.cohort import Cohort
from common.data.manifest import (
    FILE_NAME,
    OWN_FOLDER,
    REFERENCE_FOLDER,
    Manifest,
    check_against_task,
    check_labels,
    check_names,
    hospital_folders,
    load_manifest,
    reference_folder,
    stray_folders,
)
from common.data.quality import column_warnings, mask_warnings, modality_warnings, shared_patients, unheld
from common.errors import ConsiliumError, TooManyFaults, no_file
from common.evaluation.metrics import REGION_METRICS
from common.task import TaskType
from simulations.baselines import Consortium, open_consortium
from simulations.benchmarks.base import CUSTOM, Benchmark, Split

UNIFORM = "student-uniform"
METHODS = ("student", "teachers", UNIFORM, "student-no-kd", "fedavg", "local", "central")
"""Of these the student with equal weights is left out where the weights are equal anyway, as they are by default."""

METRICS: Mapping[TaskType, tuple[str, ...]] = {
    "multiclass": ("accuracy", "auroc", "f1", "auprc"),
    "regression": ("mae", "rmse", "r2"),
    "segmentation": REGION_METRICS,
}
OF_NUMBERS: tuple[str, ...] = ("median",)
"""Methods of a regression besides."""


def custom_benchmark(task: Path, sites: Path, settings: Sequence[str] = ()) -> Benchmark:
    """Returns the benchmark of a task on a folder of sites.

    Sites hold no patients back for a part of the split that nobody needs (:func:`common.config.parts_not_needed`), unless the
    settings say otherwise.

    Args:
        task: Task file, in the format of ``configs/task``.
        sites: Folder with one folder per hospital and perhaps one named ``reference``. Nothing is written there.
        settings: Hydra overrides of the experiment ``custom``.

    Raises:
        ConsiliumError: If the task, a setting or a manifest is refused, or there is no hospital that trains or tests.
    """
    task, sites = task.resolve(), sites.resolve()
    manifests = _manifests(sites)
    roles = Counter(m.role for f, m in manifests.items() if f.name != REFERENCE_FOLDER)
    labelled = any(m.labels for f, m in manifests.items() if f.name == REFERENCE_FOLDER)
    wanted = load_config(CUSTOM, (f"{TASK_FILE}{task}", *settings))
    parts = parts_not_needed(wanted, evaluated=bool(roles["evaluate"]), reference=labelled)
    overrides = (f"{TASK_FILE}{task}", *(f"split.{part}=0" for part in parts), *settings)
    config = load_config(CUSTOM, overrides)
    for folder, manifest in manifests.items():
        check_against_task(manifest, config.task)
        if folder.name != REFERENCE_FOLDER:
            check_labels(manifest)
    if not roles["train"]:
        raise ConsiliumError(f"No site in {sites} trains. Write a manifest without 'role: evaluate' for one at least.")
    if not roles["evaluate"] and not config.split.test:
        raise ConsiliumError("Nobody is left to test on: no site has 'role: evaluate', and split.test is 0. Raise split.test.")
    checksum = source_checksum(task, sites)
    generated = any(m.data == "generated" for m in manifests.values())
    reference = " and a reference set" if sites / REFERENCE_FOLDER in manifests else ""
    names = tuple(config.task.modalities)
    methods = METHODS + (OF_NUMBERS if config.task.type == "regression" else ())
    return Benchmark(
        name=CUSTOM,
        title=f"{config.task.name}: {', '.join(config.task.outputs)} from {', '.join(names)}",
        experiment=CUSTOM,
        data="generated" if generated else "real",
        data_version=f"{sites.name}: {roles.total()} sites{reference}",
        task_type=config.task.type,
        modalities=names,
        prepare=Prepare(task, sites, config, checksum),
        methods=tuple(m for m in methods if m != UNIFORM or config.weights.estimator != "uniform"),
        overrides=dict.fromkeys(methods, overrides),
        metrics=METRICS.get(config.task.type, Benchmark.metrics),
        source=hashlib.sha256("\0".join((checksum, *overrides)).encode()).hexdigest(),
    )


@dataclass(frozen=True)
class Prepare:
    """Puts the sites into the folder of a cell; see :data:`simulations.benchmarks.base.Prepare`.

    Attributes:
        task: Task file.
        sites: The user's folder.
        config: Composed from both; its seed is each cell's own.
        checksum: Of task and sites when the run was planned.
    """

    task: Path
    sites: Path
    config: Config
    checksum: str

    def __call__(self, folder: Path, split: Split) -> dict[str, Any]:
        """Mirrors the sites, opens them once as a run will, and counts what they hold.

        Raises:
            ConsiliumError: If the files have changed since the run was planned, a site refuses, or no site can train on a
                modality.
        """
        if source_checksum(self.task, self.sites) != self.checksum:
            raise ConsiliumError(f"{self.task} or files in {self.sites} have changed since the run began. Start it anew.")
        for place in _manifests(self.sites):
            _mirror(place, folder / place.name)
        exclusions: Counter[str] = Counter()
        silent: list[str] = []

        def look(place: Path, manifest: Manifest, cohort: Cohort) -> None:
            site = REFERENCE_FOLDER if place.name == REFERENCE_FOLDER else manifest.site
            exclusions.update(f"visits of {site}: {finding.problem}" for finding in cohort.findings)
            exclusions.update({f"visits of {site}: every modality is empty": len(cohort.empty)} if cohort.empty else {})
            silent.extend(_silent(site, place, manifest, cohort))

        try:
            consortium = open_consortium(folder, replace(self.config, seed=split.seed), look)
        except TooManyFaults as error:
            listed = f"The faults are listed by: consilium-client check {self.sites} --task {self.task}"
            raise TooManyFaults(f"{error} {listed}", error.findings) from None
        _refuse_unheld(consortium, {m.site: m.limits.min_count for m in _manifests(folder).values()})
        return {
            "n": _counts(consortium),
            "exclusions": dict(sorted(exclusions.items())),
            "data_checksum": self.checksum,
            "units": dict(self.config.task.units),
            "warnings": [*_untaught(consortium), *map(str, shared_patients(_manifests(folder))), *silent],
        }


def source_checksum(task: Path, sites: Path) -> str:
    """Returns the SHA-256 of a task file and of every file of the sites, by content, without the sites' own ``.consilium``."""
    digest = hashlib.sha256(task.read_bytes())
    for place in (*hospital_folders(sites), *reference_folder(sites)):
        for file in sorted(f for f in place.rglob("*") if f.is_file() and OWN_FOLDER not in f.relative_to(place).parts):
            digest.update(f"\0{file.relative_to(sites).as_posix()}\0".encode())
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _manifests(sites: Path) -> dict[Path, Manifest]:
    """Returns folder -> manifest of every site, the reference set last.

    Raises:
        ConsiliumError: If there is none, one is refused, or two sites have one name.
    """
    if not sites.is_dir():
        raise ConsiliumError(no_file(sites))
    folders = [*hospital_folders(sites), *reference_folder(sites)]
    if not folders:
        raise ConsiliumError(
            f"{sites} holds no site: no folder in it has a {FILE_NAME}. Name the folder that holds one folder per site, or make "
            "sites of one table with: consilium-bench split"
        )
    strays = stray_folders(sites)
    if strays:
        names = ", ".join(f"'{stray.name}'" for stray in strays)
        raise ConsiliumError(f"Folder(s) {names} in {sites} have no {FILE_NAME}. Write a manifest, or move the folder away.")
    found = {folder: load_manifest(folder) for folder in folders}
    check_names(found)
    return found


def _mirror(source: Path, target: Path, home: Path | None = None) -> None:
    """Makes a folder of links to a site's files (copies, where no link can be made), in which a run may write its own.

    Args:
        source: Folder of the site, or in it.
        target: New folder.
        home: Folder of the site; by default the source.

    Raises:
        ConsiliumError: If a file cannot be read.
    """
    target.mkdir(parents=True)
    home = home or source.resolve()
    try:
        for entry in sorted(e for e in source.iterdir() if e.name != OWN_FOLDER):
            place = target / entry.name
            if not entry.resolve(strict=True).is_relative_to(home):
                place.symlink_to(entry.resolve())  # out of the site: what reads it says so, as it would in place
            elif entry.is_dir():
                _mirror(entry, place, home)
            else:
                with suppress(OSError):
                    os.link(entry.resolve(), place)
                if not place.exists():
                    shutil.copy2(entry, place)
    except OSError as error:
        raise ConsiliumError(f"Files in {source} cannot be read ({type(error).__name__}). Let this user read them.") from None


def _refuse_unheld(consortium: Consortium, counts: Mapping[str, int]) -> None:
    """Raises ConsiliumError if no site has enough training visits with a modality, as enrolling would find in every cell.

    Args:
        consortium: Of all sites; without meta patients, so that none has fewer training visits here than in a run.
        counts: Site -> smallest count that it tells.
    """
    config = consortium.config
    training = {site: c for site, c in consortium.training.items() if site != REFERENCE_FOLDER}
    absent = unheld(training, {site: max(counts[site], config.federation.min_patients) for site in training})
    if absent:
        raise ConsiliumError(
            f"No site trains on {', '.join(absent)}, which task '{config.task.name}' asks for: none has enough training visits "
            "with it (federation.min_patients; limits.min_count in a manifest). Add a site that holds it, or take it out of the "
            "task and the manifests."
        )


def _counts(consortium: Consortium) -> dict[str, dict[str, int]]:
    """Returns role -> what -> how many."""
    training = {site: cohort for site, cohort in consortium.training.items() if site != REFERENCE_FOLDER}
    parts = {"train": list(training.values()), "test": list(consortium.testing.values())}
    if REFERENCE_FOLDER in consortium.training:
        parts["reference"] = [consortium.training[REFERENCE_FOLDER]]
    return {role: _count(cohorts) for role, cohorts in parts.items()}


def _count(cohorts: Sequence[Cohort]) -> dict[str, int]:
    patients = sum(len(np.unique(c.patient)) for c in cohorts)
    return {"visits": sum(map(len, cohorts)), "patients": patients, "sites": len(cohorts)}


def _untaught(consortium: Consortium) -> list[str]:
    """Returns a sentence for every output that no training visit has."""
    if consortium.config.task.type == "regression":
        return []
    labelled = [c for c in consortium.training.values() if c.labelled]
    counts = np.sum([c.label_counts().numpy() for c in labelled], axis=0)
    outputs = consortium.config.task.outputs
    missing = [o for o, number in zip(outputs, counts.tolist(), strict=True) if not number]
    return [f"No training visit of any site has '{o}': nobody can learn it. Add such patients, or take it out." for o in missing]


def _silent(site: str, place: Path, manifest: Manifest, cohort: Cohort) -> list[str]:
    """Returns a line for everything of a site that tells nothing: modalities, columns, and one for masks that mark nothing."""
    if manifest.role == "evaluate" and not len(cohort):
        return [f"{site} has nobody to test on: all its visits are left out, or hold nothing. Correct its files, or remove it."]
    blank = mask_warnings(manifest, cohort)
    told = [*modality_warnings(manifest, cohort), *column_warnings(place, manifest, cohort), *blank[:1]]
    found = [f"{site}/{warning}" for warning in told]
    if len(blank) > 1:
        found[-1] += f" ({len(blank) - 1} more of its masks are like that: consilium-client check names them)"
    return found
