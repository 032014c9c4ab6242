"""``consilium-server``: what an administrator does at the coordinating centre."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from common import terminal
from common.data.manifest import hospital_folders
from common.errors import ConsiliumError
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


def main() -> None:
    """Runs the command."""
    terminal.run(app)
