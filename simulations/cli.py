"""``consilium-bench``: lists, runs and prints the benchmarks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from common import terminal
from common.errors import ConsiliumError
from common.evaluation.results import Comparison, Results, load_results
from simulations import bench, papers, report
from simulations.ablations import MAIN, Ablation
from simulations.benchmarks.base import CUSTOM, Benchmark, benchmarks, get
from simulations.custom import custom_benchmark
from simulations.fetch import fetch, remote_data
from simulations.findings import AblationFinding, findings, is_ablation, method_sentences, rivals
from simulations.predict import predict_command
from simulations.split import split_command
from simulations.tables import (
    NAMES,
    bounds_of,
    count,
    difference,
    figure,
    given,
    is_member,
    main_metrics,
    method_lines,
    sites_apart,
    spread,
    verdict,
)

INTERRUPTED = "Interrupted. Finished cells are kept, those in hand start again. Go on with the same command."
app = terminal.command_line(__doc__)
WARNINGS_SHOWN = 10
WIDE = 110
METHOD_WIDTH = len("metakd-faithful")
ONE_CLASS = "AUROC and AUPRC are not defined here: every test visit has the same label. Check the labels of the test patients."
Name = Annotated[str, typer.Argument(help="Benchmark; see 'list'.")]


@app.command("list")
def list_benchmarks(
    name: Annotated[str | None, typer.Argument(help="Benchmark to tell more of.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Lists the benchmarks, or tells the methods, variants and ablations of one."""
    listed = [get(name)] if name else list(benchmarks().values())
    if as_json:
        fields = ("name", "title", "experiment", "data", "data_version", "modalities", "methods", "folds", "seeds", "metrics")
        told = [
            {f: getattr(b, f) for f in (*fields, "variants")} | {"ablations": [_setting(a) for a in b.ablations]} for b in listed
        ]
        typer.echo(json.dumps(told, indent=1))
        return
    console = terminal.console()
    if name:
        _tell(console, listed[0])
        return
    table = Table("name", "what", "data")
    for b in listed:
        table.add_row(b.name, escape(b.title), escape(_data(b)))
    console.print(table)
    console.print("Methods, variants and ablations of one: consilium-bench list NAME", highlight=False)


def _tell(console: Console, benchmark: Benchmark) -> None:
    """Prints what can be asked of a benchmark, with the options that ask for it."""
    lines = {
        benchmark.name: benchmark.title,
        "Data": _data(benchmark),
        "Cells of a method": f"{benchmark.folds} fold(s) x {benchmark.seeds} seeds",
        "Methods (run --only)": ", ".join(benchmark.methods),
        "Variants (run --variant)": ", ".join(v for v in benchmark.variants if v) or "none",
    }
    for what, said in lines.items():
        console.print(f"{what}: {said}", markup=False, highlight=False, soft_wrap=True)
    if benchmark.ablations:
        settings = Table("factor (ablate --only)", "other setting", "method")
        for ablation in benchmark.ablations:
            settings.add_row(ablation.factor, escape(ablation.setting), ablation.name)
        console.print(settings)


def _data(benchmark: Benchmark) -> str:
    return benchmark.data_version if benchmark.data == "real" else f"GENERATED: {benchmark.data_version}"


def _setting(ablation: Ablation) -> dict[str, str]:
    return {"factor": ablation.factor, "setting": ablation.setting, "method": ablation.name}


@app.command("run")
def run_benchmark(
    name: Name,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds; the benchmark's own by default.")] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="METHOD", help="Only this method; may be repeated.")] = None,
    variant: Annotated[str | None, typer.Option(help="Variant of the benchmark instead of its main protocol.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="One seed, one fold, short training: whether it works.")] = False,
    runtime: Annotated[Literal["inproc", "flwr"], typer.Option(help="In this process, or on Flower's own runtime.")] = "inproc",
    task: Annotated[Path | None, typer.Option(metavar="TASK.yaml", help="Of 'custom': what is predicted from what.")] = None,
    sites: Annotated[Path | None, typer.Option(metavar="DIR", help="Of 'custom': folder with a folder per site.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Of 'custom': a setting.")] = None,
) -> None:
    """Runs a benchmark, or resumes its newest unfinished run with the same plan; ends with its table and figures.

    With the name 'custom' it runs on your own data: docs/your-own-data.md.
    """
    console = terminal.console()
    wanted = _wanted(name, task, sites, settings or ())
    _run(console, wanted, seeds=seeds, only=only or (), debug=debug, runtime=runtime, variant=variant)


def _run(console: Console, wanted: str | Benchmark, **asked: Any) -> None:
    """Runs, and shows what was found and where the student of one's own data lies; raises ConsiliumError if cells are missing."""
    try:
        outcome = bench.run(wanted, console=console, **asked)
    except KeyboardInterrupt:
        typer.echo(INTERRUPTED, err=True)
        raise
    results = load_results(outcome.folder / "results.json")
    show(results, outcome.folder, console)
    students = sorted(outcome.folder.glob(f"cells/{MAIN}-[0-9]*/run/student.safetensors"))
    if results.benchmark == CUSTOM and students:
        console.print(f"Student: {students[0]} (how to use it: docs/your-own-data.md)", soft_wrap=True, highlight=False)
    if outcome.missing:
        raise ConsiliumError(
            f"{len(outcome.missing)} cell(s) failed and are missing above. cell.json and cell.log in their folders say why. "
            "The same command tries them again."
        )


@app.command("ablate")
def ablate_benchmark(
    name: Name,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds; the benchmark's own by default.")] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="FACTOR", help="Only this factor; may be repeated.")] = None,
    variant: Annotated[str | None, typer.Option(help="Variant of the benchmark instead of its main protocol.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="One seed, one fold, short training: whether it works.")] = False,
) -> None:
    """Changes one factor of the student at a time; resumes its newest unfinished run; ends with table and figure."""
    console = terminal.console()
    if name == CUSTOM:
        raise ConsiliumError(
            "Your own data have no ablations. Run them with another setting: consilium-bench run custom --set KEY=VALUE"
        )
    if not get(name).ablations:
        some = ", ".join(b.name for b in benchmarks().values() if b.ablations)
        raise ConsiliumError(f"Benchmark '{name}' has no ablations. These have some: {some}")
    _run(console, name, ablate=True, seeds=seeds, only=only or (), variant=variant, debug=debug)


@app.command("report")
def report_results(
    runs: Annotated[
        list[Path] | None, typer.Option("--from", metavar="RUN", help="Finished run directory to keep; may be repeated.")
    ] = None,
    docs: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the documentation.")] = Path("docs"),
) -> None:
    """Keeps the results of finished runs under docs/results/; writes results.md and benchmarks.md in docs from all of them."""
    for run in runs or ():
        typer.echo(f"Kept {report.keep(run, docs)}")
    typer.echo(f"Written {report.write(docs)}")
    typer.echo(f"Written {papers.write(docs)}")


def _wanted(name: str, task: Path | None, sites: Path | None, settings: Sequence[str]) -> str | Benchmark:
    """Returns what 'run' runs: a benchmark's name, or the user's own benchmark."""
    if name != CUSTOM:
        get(name)
        if task or sites or settings:
            raise ConsiliumError(f"--task, --sites and --set are for your own data: consilium-bench run {CUSTOM}")
        return name
    if task is None or sites is None:
        raise ConsiliumError(f"'run {CUSTOM}' needs --task TASK.yaml and --sites DIR. See docs/your-own-data.md")
    for setting in settings:
        if "=" not in setting:
            raise ConsiliumError(f"--set {setting}: say KEY=VALUE, like --set teach.rounds=10. Every key: common/config.py")
        if setting.partition("=")[0].strip("+ ") == "seed":
            raise ConsiliumError(f"--set {setting}: every cell has a seed of its own, from 0 on. Say how many with --seeds.")
    return custom_benchmark(task, sites, settings)


app.command("split")(split_command)
app.command("predict")(predict_command)


@app.command("fetch")
def fetch_data(
    name: Annotated[str | None, typer.Argument(help="Data set, or a benchmark that needs it; without, they are listed.")] = None,
    to: Annotated[Path | None, typer.Option(metavar="DIR", help="Where its folder is made; CONSILIUM_DATA by default.")] = None,
) -> None:
    """Gets an open data set from its official home and checks it, or says where those that cannot be fetched are to be had."""
    if name is None:
        for data in remote_data().values():
            typer.echo(f"{data.folder}: {data.title}. For {', '.join(data.benchmarks)}")
        typer.echo("Data of other benchmarks are got by hand; with a benchmark's name this command says where.")
        return
    fetch(name, to, typer.echo)


@app.command("table")
def table_of_run(
    name: Annotated[str | None, typer.Argument(help="Benchmark; see 'list'.")] = None,
    run: Annotated[Path | None, typer.Option(metavar="DIR", help="Run directory; the newest finished one by default.")] = None,
    paper: Annotated[
        Literal["metakd", "mind", "pb"] | None, typer.Option(help="All tables of a paper, ours beside the published figures.")
    ] = None,
    docs: Annotated[Path, typer.Option(metavar="DIR", help="Of --paper: where results are kept.")] = Path("docs"),
) -> None:
    """Prints the table of a run again, or with --paper the tables of a paper."""
    if paper and not (name or run):
        papers.print_paper(paper, papers.newest(docs), terminal.console())
        return
    if paper or name is None:
        raise ConsiliumError("Name a benchmark (with --run, if you like) or a paper: consilium-bench table --paper metakd")
    folder = run.resolve() if run else bench.newest_finished(name)
    results = bench.results_of(folder)
    if results.benchmark != (name if name == CUSTOM else get(name).name):
        raise ConsiliumError(f"{folder} is a run of '{results.benchmark}', not of '{name}'. Name another with --run.")
    show(results, folder, terminal.console())


def show(results: Results, folder: Path, console: Console) -> None:
    """Prints what a run found: on which data, every method, and our student against the others.

    Of a run that was cut short there are no differences: a verdict on such training would say nothing of the methods.
    """
    _show_head(results, console)
    metrics = main_metrics(results)
    if not metrics:
        console.print(f"No cell finished, so there is nothing to compare. Results: {folder / 'results.json'}", soft_wrap=True)
        return
    columns = [*metrics, *({"r2"} & set(main_metrics(results, len(NAMES))))]
    if is_ablation(results):
        for metric in metrics:
            found = findings(results, metric)
            console.print(_ablation(found, metric))
        if pairs := rivals(results, metrics[0]):
            console.print(_rivals(pairs, metrics[0]))
    else:
        for site in (None, *sites_apart(results)):
            console.print(_methods(results, columns, site, wide=console.width >= WIDE))
        if console.width < WIDE:
            console.print(f"Parameters and bytes per site stand in results.json, and here from {WIDE} letters a line on.")
        if "auroc" not in (told := main_metrics(results, len(NAMES))) and "accuracy" in told:
            console.print(f"[yellow]Warning[/yellow] {ONE_CLASS}", soft_wrap=True)
        compared = [c for c in results.comparisons if not is_member(c.b)]
        for sentence in method_sentences(results.model_copy(update={"comparisons": compared}), metrics[0]):
            console.print(sentence.replace("`", ""), markup=False, soft_wrap=True)
        if compared:
            console.print(_comparisons([c for c in compared if c.metric in metrics]))
    console.print(f"Results: {folder / 'results.json'}\nFigures: {folder / 'figures'}", soft_wrap=True, highlight=False)


def _show_head(results: Results, console: Console) -> None:
    """Prints which data and how many of them stand behind the table, and what it lacks."""
    about = results.environment
    variant = next((f" (variant {r.variant})" for r in results.rows if r.variant), "")
    console.print(f"\n[bold]{results.benchmark}{variant}[/bold]: {escape(str(about.get('title', '')))}")
    if results.data == "generated":
        console.print("[bold red]GENERATED DATA[/bold red]: no real patients; do not compare with published figures")
    console.print(escape(f"Data: {about.get('data_version')}, checksum {results.data_checksum[:12]}"))
    for role, counts in ({"Tested": results.n["test"]} if results.n["test"] else results.n["folds"][0]).items():
        console.print(f"{role.capitalize()}: " + ", ".join(f"{n:,} {what}" for what, n in counts.items()))
    if results.exclusions:
        console.print("Left out: " + "; ".join(f"{n:,} {escape(reason)}" for reason, n in results.exclusions.items()))
    seeds = ", ".join(map(str, results.seeds))
    console.print(f"Seeds: {seeds}; folds: {len(results.n['folds'])}; runtime: {about.get('runtime')}")
    if about.get("debug"):
        said = "training was cut short; these numbers say nothing about the methods, so no differences are shown"
        console.print(f"[bold red]DEBUG RUN[/bold red]: {said}")
    warnings = about.get("warnings", [])
    for warning in warnings[:WARNINGS_SHOWN]:
        console.print(f"[yellow]Warning[/yellow] {escape(warning)}", soft_wrap=True)
    if len(warnings) > WARNINGS_SHOWN:
        console.print(f"... and {len(warnings) - WARNINGS_SHOWN} more warnings under 'environment' in results.json")
    for cell, reason in about.get("missing", {}).items():
        console.print(f"[bold red]MISSING[/bold red] {cell}: {escape(str(reason))}", soft_wrap=True)


def _methods(results: Results, metrics: list[str], site: str | None, *, wide: bool) -> Table:
    """Returns the table of methods on every test visit with what it has; unimodal teachers on the visits that they can read."""
    generated = ", GENERATED DATA" if results.data == "generated" else ""
    where = "" if site is None else f"{site} alone. "
    shown = "Mean ± sd over seeds" if len(results.seeds) > 1 else "One seed"
    table = Table(title=f"{where}{shown} [95 % interval, patients resampled]", title_justify="left")
    table.add_column("method", overflow="fold", min_width=METHOD_WIDTH)
    table.add_column("given", overflow="fold")
    table.add_column("n", justify="right", no_wrap=True)
    for head in (*(NAMES.get(m, m) for m in metrics), *(("parameters", "per site") if wide else ())):
        table.add_column(head, justify="right", overflow="fold")
    lines = method_lines(results, site)
    told = wide or any(line.first.published for line in lines)
    if told:
        table.add_column("evidence", overflow="fold")
    for line in lines:
        first = line.first
        table.add_row(
            line.method,
            given(line.pattern),
            count(first.n),
            *(escape(figure(line.rows.get(m))) for m in metrics),
            *((count(first.parameters), _megabytes(first.bytes_per_site)) if wide else ()),
            *((escape(first.published or f"this run{generated}"),) if told else ()),
        )
    return table


def _megabytes(number: float | None) -> str:
    return "-" if number is None else decimal(round(number))


def _ablation(found: list[AblationFinding], metric: str) -> Table:
    """Returns the table of an ablation: settings by factor, and what the main setting's choice does."""
    name = NAMES.get(metric, metric)
    table = Table(title=f"{name}: main setting minus each other, same patients [95 % interval]", title_justify="left")
    for head in ("factor", "setting"):
        table.add_column(head, overflow="fold")
    for head in (f"{name} ± sd", "difference", "parameters"):
        table.add_column(head, justify="right", overflow="fold")
    for head in ("main setting", "by combination of modalities"):
        table.add_column(head, overflow="fold")
    before = ""
    for f in found:
        if f.factor != before:
            table.add_section()
        table.add_row(
            f.factor if f.factor != before else "",
            escape(f.setting),
            spread(f.mean, f.sd),
            escape(difference(f.difference)),
            count(f.parameters),
            f.effect or "-",
            f.elsewhere,
        )
        before = f.factor
    return table


def _rivals(pairs: list[tuple[str, str, Comparison]], metric: str) -> Table:
    """Returns the table of settings that are compared with each other."""
    table = Table(title=f"{NAMES.get(metric, metric)}: two other settings, same patients [95 % interval]", title_justify="left")
    for head in ("setting", "against", "given"):
        table.add_column(head, overflow="fold")
    table.add_column("difference", justify="right", overflow="fold")
    table.add_column("verdict", overflow="fold")
    for a, b, c in pairs:
        table.add_row(escape(a), escape(b), given(c.pattern), escape(difference(bounds_of(c))), verdict(c))
    return table


def _comparisons(comparisons: list[Comparison]) -> Table:
    table = Table(title="Paired differences on the same patients [95 % interval]", title_justify="left")
    for head in ("method", "against", "given", "metric"):
        table.add_column(head, overflow="fold")
    table.add_column("difference", justify="right", overflow="fold")
    table.add_column("verdict", overflow="fold")
    for c in comparisons:
        table.add_row(c.a, c.b, given(c.pattern), NAMES.get(c.metric, c.metric), escape(difference(bounds_of(c))), verdict(c))
    return table


def main() -> None:
    """Runs the command line."""
    terminal.run(app)


if __name__ == "__main__":
    main()
