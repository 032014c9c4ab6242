"""``consilium-client``: what a hospital does before it takes part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common import terminal
from common.config import TASK_FILE, Config, load_config, parts_not_needed
from common.data.cohort import SPLITS, Cohort, Finding
from common.data.folder import open_cohort
from common.data.ingest.frames import HEADER, read_frame
from common.data.manifest import (
    FILE_NAME,
    REFERENCE_FOLDER,
    Manifest,
    check_against_task,
    check_labels,
    check_names,
    hospital_folders,
    load_manifest,
    reference_folder,
    stray_folders,
    unlabelled,
)
from common.data.quality import (
    content_warnings,
    modality_warnings,
    shared_patients,
    split_warnings,
    unheld_warnings,
    unit_warnings,
)
from common.errors import ConsiliumError, TooManyFaults

OWN_TASK = "custom"  # the experiment for any task
MOST_ALIKE = 10
OTHER_TASK = "Pass --task TASK.yaml if the site is for another task, or --experiment NAME."
EMPTY = "every modality is empty{}. Fill one in where there is something, or leave the row out"
OF_SERIES = ", of a series within the task's steps"
NO_SITE = "a folder without a manifest is no site: nobody uses what lies there. Write a manifest, or move the folder away"

app = terminal.command_line(__doc__)


@app.command()
def check(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Hospitals' manifest.yaml or folders, or a folder of several hospitals' folders."),
    ],
    experiment: Annotated[str, typer.Option(help="Experiment whose task the files are for.")] = "demo",
    task: Annotated[Path | None, typer.Option(metavar="TASK.yaml", help="A task of your own instead.")] = None,
    predict: Annotated[
        bool, typer.Option("--predict", help="The visits shall only be predicted: labels are neither asked for nor read.")
    ] = False,
) -> None:
    """Opens the hospital's files as a run would, counts them and lists every fault; nothing leaves this machine."""
    config = load_config(OWN_TASK, [f"{TASK_FILE}{task.resolve()}"]) if task else load_config(experiment)
    console = terminal.console()
    places = [found for path in paths for found in _sites(path)]
    if len(places) == 1 and places == paths:
        folder = places[0] if places[0].is_dir() else places[0].parent
        if _check_site(folder, _manifest(places[0], predict=predict), config, console, predict=predict)[0].findings:
            raise typer.Exit(1)
        return
    if not _check_several(places, [f for path in paths for f in _strays(path)], config, console, predict=predict):
        raise typer.Exit(1)


def _manifest(place: Path, *, predict: bool) -> Manifest:
    """Returns a site's manifest, as ``consilium-bench predict`` takes it if that is what the site is for."""
    return unlabelled(load_manifest(place)) if predict else load_manifest(place)


def _sites(path: Path) -> list[Path]:
    """Returns the hospitals' folders, and that of the reference set, below a folder of sites; else the path itself."""
    several = [] if (path / FILE_NAME).is_file() else [*hospital_folders(path), *reference_folder(path)]
    return several or [path]


def _strays(path: Path) -> list[Finding]:
    """Returns a warning for every folder below a folder of sites that is none for want of a manifest."""
    strays = stray_folders(path) if _sites(path) != [path] else []
    return [Finding(f"{stray.name}/{FILE_NAME}", HEADER, "", NO_SITE) for stray in strays]


def _check_several(places: Sequence[Path], strays: Sequence[Finding], config: Config, console: Console, *, predict: bool) -> bool:
    """Checks sites one by one and then beside each other; returns whether no site has a fault.

    Their splits are as ``consilium-bench run custom`` has them; the reference set has no test patients anywhere.
    """
    manifests: dict[Path, Manifest] = {}
    for place in places:
        with _refusals(console):
            manifests[place if place.is_dir() else place.parent] = _manifest(place, predict=predict)
    if config.name == OWN_TASK:
        evaluated = any(m.role == "evaluate" for m in manifests.values())
        judged = any(m.labels for folder, m in manifests.items() if folder.name == REFERENCE_FOLDER)
        parts = parts_not_needed(config, evaluated=evaluated, reference=judged)
        config = replace(config, split=replace(config.split, **dict.fromkeys(parts, 0.0)))
    cohorts: dict[Path, Cohort] = {}
    within = 0
    for folder, manifest in manifests.items():
        mine = replace(config, split=replace(config.split, test=0.0)) if folder.name == REFERENCE_FOLDER else config
        with _refusals(console):
            cohorts[folder], number = _check_site(folder, manifest, mine, console, predict=predict)
            within += number
    named = False
    with _refusals(console):
        check_names(manifests)
        named = True
    opened = {folder: manifests[folder] for folder in cohorts}
    between = [*strays, *unit_warnings(opened, cohorts), *shared_patients(opened)]
    if not predict and len(cohorts) == len(places):  # a site that is refused may hold what the others lack
        between += unheld_warnings(opened, cohorts, config.federation.min_patients)
    if between:
        _show_findings("Warnings between sites", between, console)
    refused = len(places) - len(cohorts) + (not named)
    left_out = sum(c.excluded for c in cohorts.values())
    console.print(
        f"In all: {refused:,} refused (see above), {left_out:,} visit(s) left out, "
        f"{within:,} warning(s) within sites, {len(between):,} between sites"
    )
    return not refused and not any(c.findings for c in cohorts.values())


@contextmanager
def _refusals(console: Console) -> Iterator[None]:
    """Prints what makes a site refuse, so that the others are checked too."""
    try:
        yield
    except ConsiliumError as error:
        console.print(f"Refused: {escape(str(error))}", soft_wrap=True)


def _check_site(folder: Path, manifest: Manifest, config: Config, console: Console, *, predict: bool) -> tuple[Cohort, int]:
    """Opens a site and prints what is in it; returns its patients and the number of warnings."""
    console.print(f"Site: {manifest.site}")
    if not predict and folder.resolve().name != REFERENCE_FOLDER:
        check_labels(manifest)
    try:
        check_against_task(manifest, config.task)
    except ConsiliumError as error:
        meant = {*manifest.labels, *manifest.modalities} <= {*config.task.label_columns, *config.task.modalities}
        raise ConsiliumError(f"{error}{'' if meant or config.name == OWN_TASK else f'. {OTHER_TASK}'}") from None
    try:
        cohort = open_cohort(folder, manifest, config.task, config.split, config.seed)
    except TooManyFaults as error:
        bad, rows = len({f.visit for f in error.findings}), len(read_frame(folder / manifest.patients))
        console.print(f"Rows with a fault: {bad:,} of {rows:,}, limits.bad_rows is {manifest.limits.bad_rows:g}")
        _show_findings("Findings", error.findings, console)
        raise
    console.print(f"Visits used: {len(cohort):,} of {len(read_frame(folder / manifest.patients)):,} rows")
    _show_counts(cohort, console)
    _show_findings("Findings", cohort.findings, console)
    if cohort.empty:
        problem = EMPTY.format(OF_SERIES if any(m.kind == "series" for m in config.task.modalities.values()) else "")
        _show_findings("Left out, and no fault", [Finding(manifest.patients, row, "", problem) for row in cohort.empty], console)
    warnings = [*modality_warnings(manifest, cohort), *content_warnings(folder, manifest, cohort)]
    if folder.resolve().name != REFERENCE_FOLDER:
        warnings += split_warnings(manifest, cohort, config.split)
    if warnings:
        _show_findings("Warnings", warnings, console)
    return cohort, len(warnings)


def _show_counts(cohort: Cohort, console: Console) -> None:
    """Prints how many visits have each modality and each label, and are in each split."""
    task = cohort.task
    number = [len(cohort)] * len(task.outputs) if task.type == "regression" else cohort.label_counts().tolist()
    labels = _counts(dict(zip(task.outputs, number, strict=True))) if cohort.labelled else "none, an unlabelled set"
    held = dict(zip(task.modalities, cohort.present.sum(0).tolist(), strict=True))
    console.print(f"Visits per modality: {_counts(held)}")
    console.print(f"Visits per label: {labels}")
    console.print(f"Visits per split: {_counts({s: int((cohort.split == s).sum()) for s in SPLITS})}")


def _counts(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{escape(name)} {number:,}" for name, number in numbers.items())


def _show_findings(what: str, findings: Sequence[Finding], console: Console) -> None:
    """Prints the number of findings, then every one of them, but the first ten of a problem where many rows have the same.

    What is wrong with a place for many visits is one line.
    """
    table = Table("file", "row", "column", "problem")
    for wide in table.columns:
        wide.overflow = "fold"
    visits = Counter((f.file, f.row, f.column, f.problem) for f in findings)
    alike = Counter((file, column, problem) for file, _, column, problem in visits)
    shown: Counter[tuple[str, str, str]] = Counter()
    for (file, row, column, problem), number in visits.items():
        same = (file, column, problem)
        shown[same] += 1
        if shown[same] <= MOST_ALIKE:
            many = f" ({number:,} visits)" if number > 1 else ""
            table.add_row(escape(file), str(row), escape(column), escape(problem + many))
        elif shown[same] == alike[same]:
            table.add_row(escape(file), f"to {row}", escape(column), f"the same in {alike[same] - MOST_ALIKE:,} more rows")
    console.print(f"{what}: {len(findings):,}")
    if table.row_count:
        console.print(table)


def main() -> None:
    """Runs the command."""
    terminal.run(app)
