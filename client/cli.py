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
from common.config import load_config
from common.data.cohort import SPLITS, Cohort, Finding
from common.data.folder import open_cohort
from common.data.ingest.frames import read_frame
from common.data.manifest import load_manifest
from common.errors import TooManyFaults

app = terminal.command_line(__doc__)


@app.command()
def check(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The hospital's manifest.yaml, or the folder that holds it.")],
    experiment: Annotated[str, typer.Option(help="Experiment whose task the files are for.")] = "demo",
) -> None:
    """Opens the hospital's files as a run would, counts them and lists every fault; nothing leaves this machine."""
    config, manifest = load_config(experiment), load_manifest(path)
    folder = path if path.is_dir() else path.parent
    console = terminal.console()
    console.print(f"Site: {manifest.site}")
    try:
        cohort = open_cohort(folder, manifest, config.task, config.split, config.seed)
    except TooManyFaults as error:
        _show_findings(error.findings, console)
        raise
    console.print(f"Visits used: {len(cohort):,} of {len(read_frame(folder / manifest.patients)):,} rows")
    _show_counts(cohort, console)
    _show_findings(cohort.findings, console)
    if cohort.findings:
        raise typer.Exit(1)


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


def _show_findings(findings: Iterable[Finding], console: Console) -> None:
    """Prints the number of faults, then every one of them."""
    table = Table("file", "row", "column", "problem")
    for column in table.columns:
        column.overflow = "fold"
    for f in findings:
        table.add_row(escape(f.file), str(f.row), escape(f.column), escape(f.problem))
    console.print(f"Findings: {table.row_count:,}")
    if table.row_count:
        console.print(table)


def main() -> None:
    """Runs the command."""
    terminal.run(app)
