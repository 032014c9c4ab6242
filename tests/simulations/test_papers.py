"""The tables of the papers: ours beside the published figures, with marks, and never generated data without theirs."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from common.arrays import write_json
from common.errors import ConsiliumError
from common.task import pattern_name, patterns
from simulations import cli, papers, report
from simulations.benchmarks.base import MEAN_OF_PATTERNS, Benchmark, Published, benchmarks
from tests.simulations import fakes

DOCS = Path(__file__).resolve().parents[2] / "docs"
PUBLISHED = (
    Published("MetaKD", "accuracy", 0.62, "second-hand", "a web page", pattern=MEAN_OF_PATTERNS),
    Published("Other", "accuracy", 0.58, "published", "its Table 1", pattern=MEAN_OF_PATTERNS),
    Published("Other", "accuracy", None, "not found", "its Table 2", pattern="labs"),
    Published("MetaKD", "accuracy", 0.66, "inferred", "its abstract", variant="hard"),
    Published("MetaKD", "accuracy", 0.71, "second-hand", "a web page", output="core", variant="hard"),
)
BENCHMARK = replace(
    fakes.BENCHMARK,
    name="metakd-fake",
    data="real",
    methods=("student", "central", "local"),
    variants=(None, "hard"),
    metrics=("accuracy", "auroc"),
    published=PUBLISHED,
    comparable="Ours has other patients.",
)


def results(data: str = "real", variant: str | None = None, shift: float = 0.0, **about: Any) -> dict[str, Any]:
    """Returns results of two methods: .5 on everything, .6, .61, ... on the combinations of modalities."""
    rows = []
    names = ["all", *map(pattern_name, patterns(fakes.SIGNAL))]
    for method in ("student", "central", "local"):
        for k, pattern in enumerate(names):
            for output in (None, "core"):
                mean = shift + (0.59 + 0.01 * k if k else 0.5) + 0.1 * (output is not None)
                rows.append(row(method, pattern, mean, variant, output=output))
        rows.append(row(method, "all", 0.9, variant, metric="auroc"))
        rows.append(row(method, "all", 0.1, variant, site="north"))
    rows.append(row("MetaKD", "all", 0.99, variant) | {"published": "second-hand: an older figure"})
    environment = {"title": "t", "data_version": "invented", "command": "bench it", "git_commit": "c0ffee" * 7, "debug": False}
    head = {"schema_version": 1, "benchmark": "metakd-fake", "data": data, "data_checksum": "ab", "n": {}, "exclusions": {}}
    return head | {"seeds": [0, 1], "rows": rows, "comparisons": [], "weights": [], "environment": environment | about}


def row(method: str, pattern: str, mean: float, variant: str | None, **other: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("site", "fold", "output", "sd", "ci95", "n", "parameters", "bytes_per_site", "published"))
    said = {"method": method, "pattern": pattern, "mean": mean, "variant": variant, "metric": "accuracy", "split": "test"}
    return empty | said | {"n": 240} | other


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of documentation whose project has one benchmark of a paper, with no results yet."""
    found: dict[str, Benchmark] = {b.name: b for b in (BENCHMARK, fakes.BENCHMARK)}
    monkeypatch.setattr(papers, "benchmarks", lambda: found)
    monkeypatch.setenv("CONSILIUM_RUNS", str(tmp_path / "runs"))
    (tmp_path / "docs" / "results").mkdir(parents=True)
    return tmp_path / "docs"


def keep(docs: Path, name: str, said: dict[str, Any]) -> None:
    write_json(docs / "results" / f"{name}.json", said)


def run(docs: Path, name: str, said: dict[str, Any]) -> None:
    folder = docs.parent / "runs" / "metakd-fake" / name
    folder.mkdir(parents=True)
    write_json(folder / "bench.json", {"plan": {}})
    write_json(folder / "results.json", said)


def lines(table: papers.PaperTable) -> list[dict[str, str]]:
    return [dict(zip(table.head, line, strict=True)) for line in table.rows]


def test_ours_stand_beside_the_published_figures_with_their_marks(docs: Path) -> None:
    keep(docs, "metakd-fake", results())
    (table,) = papers.tables_of("metakd", papers.newest(docs))
    main = {line["given"]: line for line in lines(table) if line["variant"] == "main"}
    mean = main[MEAN_OF_PATTERNS]
    assert (mean["MetaKD"], mean["Other"]) == ("0.620 (second-hand)", "0.580 (stated)")
    assert mean["student"] == mean["central"] == "0.630", "the mean of .60 to .66"
    assert mean["ours on"] == "measured on real data"
    assert main["labs"]["Other"] == "not found" and main["labs"]["MetaKD"] == "-"
    assert main["what each has"]["student"] == "0.500" and main["what each has"]["n"] == "240"
    assert len(main) == 2 + 7, "every combination in the main metric"
    assert "local" not in table.head and not any("0.990" in line for row in table.rows for line in row)
    assert "Comparability: Ours has other patients." in table.notes
    assert "Sources: MetaKD: a web page; Other: its Table 1; Other: its Table 2; MetaKD: its abstract." in table.notes
    assert "Ours: invented; `bench it`, commit c0ffeec0ffee." in table.notes


def test_a_variant_and_its_outputs_have_lines_of_their_own(docs: Path) -> None:
    keep(docs, "metakd-fake-hard", results(variant="hard"))
    (table,) = papers.tables_of("metakd", papers.newest(docs))
    hard = {(line["given"], line["output"]): line for line in lines(table) if line["variant"] == "hard"}
    assert hard["what each has", "core"]["MetaKD"] == "0.710 (second-hand)"
    assert hard["what each has", "core"]["student"] == "0.600"
    assert hard["what each has", "all"]["MetaKD"] == "0.660 (inferred)"
    absent = [line for line in lines(table) if line["variant"] == "main"]
    assert absent and all(line["ours on"] == "not run" and line["student"] == "-" for line in absent)
    assert "Not run yet: the main protocol (`consilium-bench run metakd-fake`)." in table.notes


def test_a_variant_of_which_nothing_is_published_is_told_apart_too(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = replace(BENCHMARK, published=PUBLISHED[:1])
    monkeypatch.setattr(papers, "benchmarks", lambda: {plain.name: plain})
    assert "variant" not in papers.tables_of("metakd", papers.newest(docs))[0].head
    keep(docs, "metakd-fake-hard", results(variant="hard"))
    (table,) = papers.tables_of("metakd", papers.newest(docs))
    assert [line["student"] for line in lines(table) if (line["variant"], line["given"]) == ("hard", "what each has")] == [
        "0.500"
    ]


def test_a_figure_on_a_site_that_is_told_apart_stands_beside_ours_on_that_site_alone(
    docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [Published("ShaSpec", "accuracy", 0.95, "published", "its Table 3", n=45, variant=v) for v in (None, "hard")]
    wide = Published("image network", "accuracy", 0.92, "published", "its Table 3", n=240)
    apart = replace(BENCHMARK, apart=("north",), published=(*few, wide, replace(wide, method="untold", n=None)))
    monkeypatch.setattr(papers, "benchmarks", lambda: {apart.name: apart})
    assert "tested on" not in papers.tables_of("metakd", papers.newest(docs))[0].head, "nothing was measured there yet"
    said = results()
    said["rows"] = [r | ({"n": 45} if r["site"] == "north" else {}) for r in said["rows"]]
    said["rows"].append(row("student", "all", 0.3, None, site="south"))
    keep(docs, "metakd-fake", said)
    (table,) = papers.tables_of("metakd", papers.newest(docs))
    found = {(line["variant"], line["tested on"]): line for line in lines(table) if line["given"] == "what each has"}
    assert set(found) == {("main", "all"), ("main", "north"), ("hard", "north")}
    whole, north, hard = found["main", "all"], found["main", "north"], found["hard", "north"]
    assert (whole["n"], whole["student"], whole["ShaSpec"]) == ("240", "0.500", "-")
    assert whole["image network"] == whole["untold"] == "0.920 (stated)"
    assert (north["n"], north["student"], north["ShaSpec"], north["image network"]) == ("45", "0.100", "0.950 (stated)", "-")
    assert (hard["ours on"], hard["student"], hard["ShaSpec"]) == ("not run", "-", "0.950 (stated)")


def test_a_mean_over_combinations_needs_all_of_them(docs: Path) -> None:
    said = results()
    said["rows"] = [r for r in said["rows"] if r["pattern"] != "labs+notes"]
    keep(docs, "metakd-fake", said)
    (table,) = papers.tables_of("metakd", papers.newest(docs))
    (mean,) = (line for line in lines(table) if line["given"] == MEAN_OF_PATTERNS)
    assert mean["student"] == "-" and mean["MetaKD"] == "0.620 (second-hand)"


def test_generated_data_are_marked_on_every_line_and_in_words(docs: Path) -> None:
    keep(docs, "metakd-fake", results("generated"))
    keep(docs, "metakd-fake-hard", results("real", "hard"))
    (table,) = papers.tables_of("metakd", papers.newest(docs))
    for line in lines(table):
        assert line["ours on"] == ("measured on GENERATED data" if line["variant"] == "main" else "measured on real data")
    assert table.notes[0] == papers.SAID
    section = papers.render(docs).split("### `metakd-fake`")[1].split("\n## ")[0]
    shown = [line for line in section.splitlines() if line.startswith("| main")]
    assert shown and all("GENERATED" in line for line in shown) and papers.SAID in section


def test_the_newest_finished_run_goes_before_what_is_kept_and_debug_runs_never_count(docs: Path) -> None:
    keep(docs, "metakd-fake", results())

    def student() -> str:
        (table,) = papers.tables_of("metakd", papers.newest(docs))
        return next(line["student"] for line in lines(table) if line["given"] == "what each has")

    assert student() == "0.500"
    run(docs, "20260101-000000", results(shift=0.1))
    run(docs, "20260102-000000", results(shift=0.2))
    run(docs, "20260103-000000", results(shift=0.3, debug=True))
    run(docs, "20260104-000000", results(shift=0.3, missing={"student-0-0": "died"}))
    run(docs, "20260105-000000", results(variant="hard"))
    run(docs, "20260106-000000", results(shift=0.3, ablations=[{"name": "x"}]))
    assert student() == "0.700"
    of_one_method, of_one_seed = results(shift=0.3), results(shift=0.3)
    of_one_method["rows"] = [r for r in of_one_method["rows"] if r["method"] != "local"]
    run(docs, "20260107-000000", of_one_method)
    run(docs, "20260108-000000", of_one_seed | {"seeds": [0]})
    assert student() == "0.700", "runs that asked for less than the benchmark"
    assert "| 0.500 |" in papers.render(docs) and "| 0.700 |" not in papers.render(docs), "the document is of what is kept"


def test_the_commands_print_and_write_the_same_table(docs: Path) -> None:
    keep(docs, "metakd-fake", results("generated"))
    (docs / "results" / "metakd-fake.json").write_text(json.dumps(results("generated")))
    said = CliRunner().invoke(cli.app, ["table", "--paper", "metakd", "--docs", str(docs)], env={"COLUMNS": "250"})
    assert said.exit_code == 0, said.output
    assert re.search(r"mean of all patterns .*0\.620 \(second-hand\).*measured on GENERATED data.*0\.630", said.output)
    assert papers.SAID in said.output and "Ours has other patients." in said.output
    console = Console(file=io.StringIO(), width=250)
    papers.print_paper("mind", papers.newest(docs), console)
    assert "MIND (arXiv 2502.01158)" in console.file.getvalue() and "metakd" not in console.file.getvalue()  # type: ignore[attr-defined]
    for wrong in ([], ["metakd-fake", "--paper", "mind"], ["--paper", "mind", "--run", "there"]):
        refused = CliRunner().invoke(cli.app, ["table", *wrong])
        assert isinstance(refused.exception, ConsiliumError) and "Name a benchmark" in str(refused.exception)
    with pytest.raises(ConsiliumError, match=r"no paper 'x'\. Known: metakd, mind, pb"):
        papers.tables_of("x", papers.kept_in(docs))


def test_report_writes_the_benchmarks_document_beside_the_results(docs: Path) -> None:
    said = CliRunner().invoke(cli.app, ["report", "--docs", str(docs)])
    assert said.exit_code == 0, said.output
    assert (docs / "benchmarks.md").read_text(encoding="utf-8") == papers.render(docs)
    assert "0.620 (second-hand)" in papers.render(docs)


def test_what_stands_beside_a_published_figure_is_kept_with_a_run(docs: Path, tmp_path: Path) -> None:
    told = results(variant="hard", missing={})
    told["rows"] += [row("MetaKD", "all", 0.7, "hard", output="core") | {"published": "second-hand: a web page"}]
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "results.json", told)
    report.keep(tmp_path / "run", docs)
    (table,) = papers.tables_of("metakd", papers.kept_in(docs))
    hard = {(line["given"], line["output"]): line["student"] for line in lines(table) if line["variant"] == "hard"}
    assert hard["what each has", "core"] == "0.600"


def test_the_document_of_the_project_is_what_its_kept_results_say() -> None:
    assert (DOCS / "benchmarks.md").read_text(encoding="utf-8") == papers.render(DOCS)


def test_every_benchmark_of_a_paper_says_how_comparable_it_is() -> None:
    begins = tuple(start for _, starts in papers.PAPERS.values() for start in starts)
    silent = [b.name for b in benchmarks().values() if b.name.startswith(begins) and not b.comparable]
    assert not silent, f"give them Benchmark.comparable: {silent}"


def test_a_source_states_the_figures_of_its_own_method_alone() -> None:
    begins = tuple(start for _, starts in papers.PAPERS.values() for start in starts)
    stated: dict[str, set[str]] = {}
    for benchmark in benchmarks().values():
        for figure in benchmark.published if benchmark.name.startswith(begins) else ():
            if figure.mark == "published":
                stated.setdefault(figure.source, set()).add(figure.method)
    several = {source: methods for source, methods in stated.items() if len(methods) > 1}
    assert not several, f"what one paper tells of another's method is second-hand: {several}"


def test_an_inferred_figure_stands_beside_what_it_was_inferred_from() -> None:
    figures = benchmarks()["metakd-brats2018"].published
    mean = {(p.method, p.output): p for p in figures if p.pattern == MEAN_OF_PATTERNS}
    for output, gain in (("et", 0.0351), ("tc", 0.0219), ("wt", 0.0114)):
        found, base = mean["MetaKD", output], mean["ShaSpec with post-processing", output]
        assert found.mark == "inferred" and found.value and base.value
        assert found.value - base.value == pytest.approx(gain, abs=1e-9)
        assert "ShaSpec's mean with post-processing" in found.source and "LCKD" in found.source
