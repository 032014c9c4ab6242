"""``consilium-server``: what an administrator does at the coordinating centre."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from common import terminal
from common.data.manifest import hospital_folders
from common.errors import ConsiliumError
from common.evaluation.metrics import METRICS, REGION_METRICS, REGRESSION_METRICS
from common.evaluation.predictions import ALL, STUDENT, TEACHERS
from common.evaluation.results import FILE_NAME, load_results
from common.flower import run_flower, run_flower_at
from server import checkpoint
from server.run import read_config

app = terminal.command_line(__doc__)


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, like runs/demo/<time>.")],
    sites: Annotated[
        Path | None,
        typer.Option(help="Simulate the hospitals of this folder, on this machine, in a SuperLink that ends with the run."),
    ] = None,
    connection: Annotated[
        str | None, typer.Option(help="Run on this SuperLink, a connection of Flower's configuration; its default if left out.")
    ] = None,
) -> None:
    """Continues a run that was interrupted or failed: a new Flower run takes it up at its last transition."""
    if sites is not None and connection is not None:
        raise typer.BadParameter("name either --sites or --connection: simulated hospitals get a SuperLink of their own")
    state, config = checkpoint.load(run), read_config(run)
    if state.phase == "finished":
        typer.echo(f"The run at {run} has finished: there is nothing to resume.")
        return
    if sites is None:
        run_flower_at(connection, run_dir=run, num_supernodes=state.nodes)
    else:
        here = len(hospital_folders(sites))
        if not here:
            raise ConsiliumError(
                f"No hospital in {sites}: name a folder that holds one folder with a manifest.yaml per hospital."
            )
        run_flower(
            experiment=config.name,
            overrides=(),
            run_dir=run,
            sites=sites,
            num_supernodes=here,
            timeout_s=math.inf,
            resume=True,
        )
    typer.echo(f"Finished. Student, teachers, weights and record of the run lie in {run.resolve()}")


@app.command()
def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, like runs/demo/<time>.")],
) -> None:
    """Shows what the hospitals told of student and teachers, each of its own test patients, and the modality weights."""
    state = checkpoint.load(run)
    if state.phase != "finished":
        raise ConsiliumError(
            f"The run at {run} has no results yet (its state: {state.phase}). If it still runs, wait for its end. If it stopped: "
            f"consilium-server resume {run} --connection NAME; or, where the hospitals are simulated, --sites FOLDER."
        )
    results = load_results(run / FILE_NAME)
    told = {(r.site or "", r.pattern, r.metric, r.method): r for r in results.rows if r.method in (STUDENT, TEACHERS)}
    metrics = [m for m in (*METRICS, *REGRESSION_METRICS, *REGION_METRICS) if any(m == metric for _, _, metric, _ in told)][:2]
    table = Table("hospital", "modalities given", "visits", *(f"{m}, {name}" for m in metrics for name in (STUDENT, TEACHERS)))
    for site, pattern in sorted({key[:2] for key in told}, key=lambda key: (key[0], key[1] != ALL, key[1].count("+"), key[1])):
        rows = [told.get((site, pattern, m, name)) for m in metrics for name in (STUDENT, TEACHERS)]
        visits = next((str(row.n) for row in rows if row), "-")
        given = "what each has" if pattern == ALL else pattern
        table.add_row(site, given, visits, *("-" if row is None or row.mean is None else f"{row.mean:.3f}" for row in rows))
    patients = "GENERATED patients" if results.data == "generated" else "real patients"
    weights = {w.modality: w.value for w in results.weights if w.output is None}
    typer.echo(f"{results.benchmark}, {patients}; test visits alone")
    terminal.console().print(table)
    if withheld := results.environment.get("withheld"):
        counts = ", ".join(f"{site} {number:,}" for site, number in withheld.items())
        why = "fewer visits, events or visits without one than the hospital's limits.min_count"
        typer.echo(f"Withheld combinations of a model and modalities ({why}): {counts}")
    if not told:
        typer.echo("No hospital told a result: each has too few test visits, or none (split.test; role: evaluate).")
    typer.echo(f"Modality weights in the end (their sum is 1): {', '.join(f'{m} {v:.2f}' for m, v in weights.items())}")
    typer.echo(f"Other metrics, every teacher and every output: {run / FILE_NAME}")


def main() -> None:
    """Runs the command."""
    terminal.run(app)
