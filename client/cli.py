"""``consilium-client``: what a hospital does before it takes part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common import terminal
from common.config import TASK_FILE, Config, load_config
from common.data.cohort import SPLITS, Cohort, Finding
from common.data.folder import open_cohort
from common.data.ingest.frames import read_frame
from common.data.manifest import FILE_NAME, Manifest, hospital_folders, load_manifest, reference_folder
from common.data.quality import column_warnings, shared_patients
from common.errors import ConsiliumError, TooManyFaults

OWN_TASK = "custom"  # the experiment for any task

app = terminal.command_line(__doc__)


@app.command()
def check(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="The hospital's manifest.yaml, its folder, or a folder of several hospitals' folders."
        ),
    ],
    experiment: Annotated[str, typer.Option(help="Experiment whose task the files are for.")] = "demo",
    task: Annotated[Path | None, typer.Option(metavar="TASK.yaml", help="A task of your own instead.")] = None,
) -> None:
    """Opens the hospital's files as a run would, counts them and lists every fault; nothing leaves this machine."""
    config = load_config(OWN_TASK, [f"{TASK_FILE}{task.resolve()}"]) if task else load_config(experiment)
    console = terminal.console()
    several = [] if (path / FILE_NAME).is_file() else [*hospital_folders(path), *reference_folder(path)]
    if not several:
        if not _check_site(path if path.is_dir() else path.parent, load_manifest(path), config, console):
            raise typer.Exit(1)
        return
    manifests = {folder: load_manifest(folder) for folder in several}
    sound = [_check_one_of_several(folder, manifest, config, console) for folder, manifest in manifests.items()]
    readable = {folder: m for (folder, m), opened in zip(manifests.items(), sound, strict=True) if opened is not None}
    _show_findings("Warnings over all sites", shared_patients(readable), console)
    if not all(sound):
        raise typer.Exit(1)


def _check_one_of_several(folder: Path, manifest: Manifest, config: Config, console: Console) -> bool | None:
    """Checks a site; returns whether it has no fault. What makes it refuse is printed, so that the others are checked: None."""
    try:
        return _check_site(folder, manifest, config, console)
    except ConsiliumError as error:
        console.print(f"Refused: {escape(str(error))}", soft_wrap=True)
        return None


def _check_site(folder: Path, manifest: Manifest, config: Config, console: Console) -> bool:
    """Opens a site and prints what is in it; returns whether it has no fault."""
    console.print(f"Site: {manifest.site}")
    try:
        cohort = open_cohort(folder, manifest, config.task, config.split, config.seed)
    except TooManyFaults as error:
        _show_findings("Findings", error.findings, console)
        raise
    console.print(f"Visits used: {len(cohort):,} of {len(read_frame(folder / manifest.patients)):,} rows")
    _show_counts(cohort, console)
    _show_findings("Findings", cohort.findings, console)
    warnings = column_warnings(folder, manifest, cohort)
    if warnings:
        _show_findings("Warnings", warnings, console)
    return not cohort.findings


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


def _show_findings(what: str, findings: Iterable[Finding], console: Console) -> None:
    """Prints the number of findings, then every one of them."""
    table = Table("file", "row", "column", "problem")
    for column in table.columns:
        column.overflow = "fold"
    for f in findings:
        table.add_row(escape(f.file), str(f.row), escape(f.column), escape(f.problem))
    console.print(f"{what}: {table.row_count:,}")
    if table.row_count:
        console.print(table)


def main() -> None:
    """Runs the command."""
    terminal.run(app)
