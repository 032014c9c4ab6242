"""What the command lines share: how they are made, how they end, and how wide they print."""

from __future__ import annotations

import os

import typer
from rich.console import Console

from common.errors import ConsiliumError

PLAIN_WIDTH = 180  # of a file or a pipe without COLUMNS: wide enough for every table


def command_line(about: str | None) -> typer.Typer:
    """Returns a command line whose commands are words, also where there is only one."""
    app = typer.Typer(pretty_exceptions_enable=False, no_args_is_help=True, add_completion=False, help=about)
    app.callback()(lambda: None)
    return app


def run(app: typer.Typer) -> None:
    """Runs a command line; a fault that the user can mend is one message and exit code 1."""
    try:
        app()
    except ConsiliumError as error:
        typer.echo(f"Error: {error}", err=True)
        raise SystemExit(1) from None


def console() -> Console:
    """Returns where tables are printed: as wide as the terminal, else as ``COLUMNS`` says, else wide enough for all of them."""
    found = Console(highlight=False)
    asked = found.is_terminal or os.environ.get("COLUMNS", "").isdigit()
    return found if asked else Console(highlight=False, width=PLAIN_WIDTH)
