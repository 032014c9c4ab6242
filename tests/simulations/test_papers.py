"""The tables of the papers: ours beside the published figures, with marks, and never generated data without theirs."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from common.arrays import write_json
from common.errors import ConsiliumError
from common.evaluation.results import Results
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


def lines(table: papers.PaperTable, about: str = "") -> dict[tuple[str, str], dict[str, str]]:
    """Method and evidence -> head -> cell, over the tables whose title begins so."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for part in (part for part in table.parts if part.title.startswith(about)):
        for line in part.rows:
            found.setdefault((line[0].strip("`"), line[1]), {}).update(zip(part.head, line, strict=True))
    return found


def test_ours_stand_below_the_published_figures_with_their_evidence(docs: Path) -> None:
    keep(docs, "metakd-fake", results())
    (table,) = papers.tables_of("metakd", papers.newest(docs))
    found = lines(table, "all outputs")
    mean = f"main, {MEAN_OF_PATTERNS}"
    assert found["MetaKD", "second-hand"][mean] == "0.620" and found["Other", "stated"][mean] == "0.580"
    assert found["student", "real data"][mean] == found["central", "real data"][mean] == "0.630", "the mean of .60 to .66"
    assert (found["Other", "stated"]["main, labs"], found["MetaKD", "second-hand"]["main, labs"]) == ("not found", "-")
    assert found["student", "real data"]["main, what each has"] == "0.500"
    assert found["student", "real data"]["n"] == "240"
    assert sum(head.startswith("main, ") for head in found["student", "real data"]) == 2 + 7, (
        "every combination in the main metric"
    )
    assert all(method != "local" for method, _ in found) and "0.990" not in str(table.parts)
    assert max(len(part.head) for part in table.parts) == 3 + papers.COLUMNS
    for part in table.parts:
        ours = [line[1] in ("real data", "not run") for line in part.rows]
        assert ours == sorted(ours), "others first"
    assert "Comparability: Ours has other patients." in table.notes
    assert "Sources: MetaKD: a web page; Other: its Table 1; Other: its Table 2; MetaKD: its abstract." in table.notes
    assert "Ours: invented; `bench it`, commit c0ffeec0ffee." in table.notes


def test_a_variant_has_columns_and_an_output_tables_of_its_own(docs: Path) -> None:
    keep(docs, "metakd-fake-hard", results(variant="hard"))
    (table,) = papers.tables_of("metakd", papers.newest(docs))
    core, every = lines(table, "`core`"), lines(table, "all outputs")
    assert core["MetaKD", "second-hand"]["Accuracy"] == "0.710" and core["student", "real data"]["Accuracy"] == "0.600"
    assert every["MetaKD", "inferred"]["hard, what each has"] == "0.660"
    assert every["student", "real data"]["hard, what each has"] == "0.500"
    assert every["student", "real data"][f"main, {MEAN_OF_PATTERNS}"] == "not run"
    assert "Not run yet: the main protocol (`consilium-bench run metakd-fake`)." in table.notes


def test_where_nothing_was_run_it_says_so_below_the_figures_of_others(docs: Path) -> None:
    (table,) = papers.tables_of("metakd", papers.newest(docs))
    assert table.parts and all(part.rows[-1][:3] == ("ours", "not run", "-") for part in table.parts)
    assert all(set(part.rows[-1][3:]) == {"-"} for part in table.parts)


def test_a_variant_of_which_nothing_is_published_is_told_apart_too(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = replace(BENCHMARK, published=PUBLISHED[:1])
    monkeypatch.setattr(papers, "benchmarks", lambda: {plain.name: plain})
    assert "variant" not in str(papers.tables_of("metakd", papers.newest(docs))[0].parts)
    keep(docs, "metakd-fake-hard", results(variant="hard"))
    (table,) = papers.tables_of("metakd", papers.newest(docs))
    assert lines(table)["student", "real data"]["hard, what each has"] == "0.500"


def test_figures_of_a_method_on_two_test_sets_stand_in_tables_of_their_own(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [Published("Other", "accuracy", v, "second-hand", "a review", n=n) for v, n in ((0.4, 66), (0.45, 57))]
    alone = Published("Third", "accuracy", 0.47, "second-hand", "a review", n=57)
    monkeypatch.setattr(papers, "benchmarks", lambda: {"metakd-fake": replace(BENCHMARK, published=(*told, alone))})
    keep(docs, "metakd-fake", results())
    (table,) = papers.tables_of("metakd", papers.newest(docs))
    first, second = lines(table, "figures of others are of 66 test rows"), lines(table, "figures of others are of 57 test rows")
    assert first["Other", "second-hand"]["what each has"] == "0.400" and ("Third", "second-hand") not in first
    assert second["Other", "second-hand"]["Accuracy"] == "0.450" and second["Third", "second-hand"]["n"] == "57"
    assert first["student", "real data"]["what each has"] == second["student", "real data"]["Accuracy"] == "0.500"
    assert len({part.title for part in table.parts}) == 2


def test_a_published_figure_has_the_decimals_of_its_source(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [("a", 0.889, "two decimals of a percent"), ("b", 0.7808, "two decimals of a percent"), ("c", 0.88, "another")]
    figures = tuple(Published(m, "accuracy", value, "second-hand", source) for m, value, source in told)
    monkeypatch.setattr(papers, "benchmarks", lambda: {"metakd-fake": replace(BENCHMARK, published=figures)})
    (table,) = papers.tables_of("metakd", papers.newest(docs))
    assert [row[-1] for row in table.parts[0].rows] == ["0.8890", "0.7808", "0.880", "-"]


def test_a_figure_on_a_site_that_is_told_apart_stands_beside_ours_on_that_site_alone(
    docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [Published("ShaSpec", "accuracy", 0.95, "published", "its Table 3", n=45, variant=v) for v in (None, "hard")]
    wide = Published("image network", "accuracy", 0.92, "published", "its Table 3", n=240)
    apart = replace(BENCHMARK, apart=("north",), published=(*few, wide, replace(wide, method="untold", n=None)))
    monkeypatch.setattr(papers, "benchmarks", lambda: {apart.name: apart})
    assert "tested on" not in str(papers.tables_of("metakd", papers.newest(docs))[0].parts), "nothing was measured there yet"
    said = results()
    said["rows"] = [r | ({"n": 45} if r["site"] == "north" else {}) for r in said["rows"]]
    said["rows"].append(row("student", "all", 0.3, None, site="south"))
    keep(docs, "metakd-fake", said)
    (table,) = papers.tables_of("metakd", papers.newest(docs))
    whole, north = lines(table, "tested on all"), lines(table, "tested on north")
    assert (whole["student", "real data"]["n"], whole["student", "real data"]["what each has"]) == ("240", "0.500")
    assert whole["image network", "stated"]["what each has"] == whole["untold", "stated"]["what each has"] == "0.920"
    assert ("ShaSpec", "stated") not in whole and set(north) == {(m, "real data") for m in ("student", "central")} | {
        ("ShaSpec", "stated")
    }
    ours, shaspec = north["student", "real data"], north["ShaSpec", "stated"]
    assert (ours["n"], ours["main"], ours["hard"]) == ("45", "0.100", "not run")
    assert (shaspec["n"], shaspec["main"], shaspec["hard"]) == ("45", "0.950", "0.950")


def test_a_mean_over_combinations_needs_all_of_them(docs: Path) -> None:
    said = results()
    said["rows"] = [r for r in said["rows"] if r["pattern"] != "labs+notes"]
    keep(docs, "metakd-fake", said)
    (table,) = papers.tables_of("metakd", papers.newest(docs))
    found = lines(table, "all outputs")
    assert found["student", "real data"][f"main, {MEAN_OF_PATTERNS}"] == "-"
    assert found["MetaKD", "second-hand"][f"main, {MEAN_OF_PATTERNS}"] == "0.620"


def test_generated_data_are_marked_on_every_line_and_in_words(docs: Path) -> None:
    keep(docs, "metakd-fake", results("generated"))
    keep(docs, "metakd-fake-hard", results("real", "hard"))
    (table,) = papers.tables_of("metakd", papers.newest(docs))
    found = lines(table, "all outputs")
    generated, real = found["student", "GENERATED"], found["student", "real data"]
    assert generated["main, what each has"] == real["hard, what each has"] == "0.500"
    assert {cell for head, cell in generated.items() if head.startswith("hard")} == {"-"}
    assert {cell for head, cell in real.items() if head.startswith("main")} <= {"-"}
    assert table.notes[0] == papers.SAID
    section = papers.render(docs).split("### `metakd-fake`")[1].split("\n## ")[0]
    assert "| `student` | GENERATED | 240 | 0.500 |" in section and papers.SAID in section


def test_the_newest_finished_run_goes_before_what_is_kept_and_debug_runs_never_count(docs: Path) -> None:
    keep(docs, "metakd-fake", results())

    def student() -> str:
        (table,) = papers.tables_of("metakd", papers.newest(docs))
        return lines(table, "all outputs")["student", "real data"]["main, what each has"]

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
    kept, newest = ("| `student` | real data | 240 | 0.500 |", "| `student` | real data | 240 | 0.700 |")
    assert kept in papers.render(docs) and newest not in papers.render(docs), "the document is of what is kept"


def test_the_commands_print_and_write_the_same_table(docs: Path) -> None:
    keep(docs, "metakd-fake", results("generated"))
    (docs / "results" / "metakd-fake.json").write_text(json.dumps(results("generated")))
    said = CliRunner().invoke(cli.app, ["table", "--paper", "metakd", "--docs", str(docs)], env={"COLUMNS": "250"})
    assert said.exit_code == 0, said.output
    assert re.search(r"MetaKD +second-hand +- +- +0\.620 .*\n(.*\n)+student +GENERATED +240 +0\.500 +0\.630 ", said.output)
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
    assert "| MetaKD | second-hand | - | 0.620 |" in papers.render(docs)


def test_what_stands_beside_a_published_figure_is_kept_with_a_run(docs: Path, tmp_path: Path) -> None:
    told = results(variant="hard", missing={})
    told["rows"] += [row("MetaKD", "all", 0.7, "hard", output="core") | {"published": "second-hand: a web page"}]
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "results.json", told)
    report.keep(tmp_path / "run", docs)
    (table,) = papers.tables_of("metakd", papers.kept_in(docs))
    assert lines(table, "`core`")["student", "real data"]["Accuracy"] == "0.600"


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


@pytest.mark.parametrize(("width", "columns"), [(130, 6), (120, 5), (80, 2)])
def test_tables_with_all_of_ours_have_as_many_columns_as_fit(width: int, columns: int, tmp_path: Path) -> None:
    benchmark = benchmarks()["metakd-brats2018"]
    names = ["all", *map(pattern_name, patterns(benchmark.modalities))]
    rows = [
        row(m, p, 0.5, None, output=o, metric="dice", sd=0.003)
        for m in papers.OURS
        for p in names
        for o in (None, "et", "tc", "wt")
    ]
    ours = Results.model_validate(results() | {"benchmark": benchmark.name, "rows": rows})
    console = Console(file=io.StringIO(), width=width)
    papers.print_paper("metakd", lambda asked, _: ours if asked.name == benchmark.name else None, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert re.findall("±$|^ +0\\.003", said, re.MULTILINE) == [], "no cell is broken"
    parts = papers.table_of(benchmark, {None: ours}, columns).parts
    assert max(len(part.head) for part in parts) == 3 + columns
    whole = re.findall(r"^metakd-faithful +real data +240 +0\.500 ± 0\.003.*$", said, re.MULTILINE)
    assert len(whole) == len(parts) and max(line.count("0.500 ± 0.003") for line in whole) == columns


def published(name: str) -> dict[tuple[str, str, str | None, int | None], Published]:
    return {(p.method, p.pattern, p.output, p.n): p for p in benchmarks()[name].published if p.mark != "inferred"}


def test_the_published_tables_of_brats_are_whole() -> None:
    first, last = published("metakd-brats2018"), published("metakd-brats2020")
    online, split = (Counter(m for m, *_, n in first if n == of) for of in (66, 57))
    for methods in (online, split, Counter(m for m, *_, n in last if n == 100)):
        assert set(methods.values()) <= {48, 12, 3}, "15 combinations and their mean of three regions; MetaKD's rows; means alone"
    assert [online[m] for m in ("UHeMIS", "UHVED", "RbSeg", "mmFormer", "ShaSpec", "MetaKD")] == [48] * 5 + [12]
    assert sorted(split.values()) == [3] * 4 + [48] * 4
    assert (len(benchmarks()["metakd-brats2018"].published), len(last)) == (520, 213)


@pytest.mark.parametrize(
    ("name", "figure", "value", "mark"),
    [
        ("metakd-brats2018", ("UHVED", "t1", "et", 66), 0.0860, "second-hand"),
        ("metakd-brats2018", ("ShaSpec with post-processing", "t1+t1ce+t2", "wt", 66), 0.8651, "published"),
        ("metakd-brats2018", ("MetaKD", "flair+t1+t1ce", "tc", 66), 0.8536, "second-hand"),
        ("metakd-brats2018", ("GSS", "t1+t2", "et", 57), 0.4898, "second-hand"),
        ("metakd-brats2018", ("RobustSeg", MEAN_OF_PATTERNS, "wt", 57), 0.8437, "second-hand"),
        ("metakd-brats2018", ("FedIoT (FedMEPD)", "all", None, None), 0.8489, "second-hand"),
        ("metakd-brats2018", ("FedMEPD", "each client's own", None, None), 0.7570, "second-hand"),
        ("metakd-brats2020", ("mmFormer", "flair+t1ce", "et", 100), 0.8189, "second-hand"),
        ("metakd-brats2020", ("MAVP", MEAN_OF_PATTERNS, "tc", 100), 0.7967, "second-hand"),
        ("metakd-brats2020", ("FedMSplit (FedMEPD)", "all", None, None), 0.8688, "second-hand"),
        ("mind-cremad", ("G2D's unimodal teachers", "image", None, 744), 0.7648, "published"),
        ("mind-cremad", ("MMPareto (BalanceBenchmark)", "all", None, None), 0.7997, "second-hand"),
    ],
)
def test_published_figures_are_those_of_their_tables(
    name: str, figure: tuple[str, str, str | None, int | None], value: float, mark: str
) -> None:
    found = published(name)[figure]
    assert (found.value, found.mark) == (value, mark)
