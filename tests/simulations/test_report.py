"""What is kept of a run, and the document that is written from it."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from common.arrays import write_json
from common.errors import ConsiliumError
from common.evaluation.results import Results, load_results
from simulations import cli, report
from simulations.benchmarks.base import Published
from tests.simulations import fakes
from tests.simulations.test_scores import all_cells, build

DOCS = Path(__file__).resolve().parents[2] / "docs"
ABLATED = ("student", *(a.name for a in fakes.ABLATIONS))
ABOUT = {"title": "invented", "runtime": "inproc", "debug": False, "code": "c0de", "missing": {}, "command": "bench it"}


@pytest.fixture(scope="module")
def methods() -> Results:
    return build(all_cells(), run=ABOUT | {"ablations": []})


@pytest.fixture(scope="module")
def ablation() -> Results:
    benchmark = replace(fakes.BENCHMARK, methods=ABLATED, published=())
    told = ABOUT | {"ablations": [asdict(a) for a in fakes.ABLATIONS]}
    return build(all_cells(ABLATED), benchmark=benchmark, run=told, every_pattern=True)


def kept(tmp_path: Path, *found: Results) -> Path:
    """Keeps results as those of finished runs; returns the folder of the documentation."""
    for number, results in enumerate(found):
        (tmp_path / str(number)).mkdir(parents=True)
        write_json(tmp_path / str(number) / "results.json", results.model_dump(mode="json"))
        report.keep(tmp_path / str(number), tmp_path / "docs")
    return tmp_path / "docs"


def with_environment(results: Results, **changed: Any) -> Results:
    return results.model_copy(update={"environment": {**results.environment, **changed}})


def test_the_document_of_the_project_is_what_its_kept_results_say() -> None:
    assert (DOCS / "results.md").read_text(encoding="utf-8") == report.render(DOCS)
    for file in (DOCS / "results").iterdir():
        assert file.stat().st_size < 1_000_000, f"{file.name} is too large for a file of the project"
        load_results(file.with_suffix(".json"))


def test_results_on_the_users_own_data_are_not_kept_in_the_projects_documentation(tmp_path: Path, methods: Results) -> None:
    with pytest.raises(ConsiliumError, match="own data"):
        kept(tmp_path, methods.model_copy(update={"benchmark": "custom"}))


def test_results_of_some_methods_do_not_take_the_place_of_whole_ones(tmp_path: Path, methods: Results) -> None:
    with pytest.raises(ConsiliumError, match="of some methods or seeds of 'heart-disease' only"):
        kept(tmp_path, methods.model_copy(update={"benchmark": "heart-disease"}))


def test_an_ablation_of_a_single_seed_is_not_kept(tmp_path: Path, ablation: Results) -> None:
    with pytest.raises(ConsiliumError, match=r"an ablation of 2 seed\(s\).*3 at least"):
        kept(tmp_path, ablation.model_copy(update={"benchmark": "heart-disease"}))


def test_generated_patients_do_not_take_the_place_of_real_ones(tmp_path: Path, methods: Results) -> None:
    real, generated = (methods.model_copy(update={"data": data}) for data in ("real", "generated"))
    with pytest.raises(ConsiliumError, match=r"generated patients.*fake-mortality\.json"):
        kept(tmp_path, real, generated)
    assert load_results(tmp_path / "docs" / "results" / "fake-mortality.json").data == "real"


def test_of_a_segmentation_every_region_is_told(tmp_path: Path, methods: Results) -> None:
    scored = [r.model_copy(update={"metric": "dice"}) for r in methods.rows if r.metric == "auroc" and r.output is None]
    own = [r for r in scored if (r.pattern, r.site, r.fold, r.published) == ("all", None, None, None)]
    regions = [r.model_copy(update={"output": o, "mean": v, "ci95": None}) for r in own for o, v in (("wt", 0.8), ("et", 0.6))]
    weights = [w.model_copy(update={"output": o}) for w in methods.weights for o in ("wt", "et")]
    found = methods.model_copy(update={"rows": [*scored, *regions], "comparisons": [], "weights": weights})
    text = report.render(kept(tmp_path, found))
    assert "Dice by region:" in text and "| method | wt | et |" in text
    assert re.search(r"\| `student` \| 0\.800[^|]*\| 0\.600", text)
    assert all(f"Its modality weights for `{o}` in the end" in text for o in ("wt", "et"))


def test_the_second_metric_is_told_against_every_method(tmp_path: Path, methods: Results) -> None:
    against = next(c for c in methods.comparisons if (c.b, c.pattern, c.metric, c.output) == ("local", "all", "auprc", None))
    assert (
        f"`local` {against.difference:+.3f} ["
        in report.render(kept(tmp_path, methods)).split("In AUPRC, the student minus each")[1]
    )


def test_only_what_the_document_shows_is_kept(tmp_path: Path, methods: Results, ablation: Results) -> None:
    docs = kept(tmp_path, methods, ablation)
    files = {f.name: load_results(f) for f in (docs / "results").iterdir()}
    assert set(files) == {"fake-mortality.json", "fake-mortality-ablation.json"}
    for results, whole in ((files["fake-mortality.json"], methods), (files["fake-mortality-ablation.json"], ablation)):
        assert {(r.site, r.fold, r.output) for r in results.rows} == {(None, None, None)}
        assert results.comparisons == whole.comparisons
        assert len(results.weights) == 4 * 3 and {w.phase for w in results.weights} == {"refining"}  # 2 seeds x 2 folds
        assert not {"platform", "cpus"} & set(results.environment)
    assert {r.pattern for r in files["fake-mortality-ablation.json"].rows} == {"all"}
    assert len({r.pattern for r in files["fake-mortality.json"].rows}) == 8
    before = report.render(docs)
    kept(tmp_path / "again", *files.values())
    assert report.render(tmp_path / "again" / "docs") == before  # what is left out is not shown


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"debug": True}, "debug run"),
        ({"missing": {"student-0-0": "died"}}, "lacks 1 cell"),
        ({"command": None}, "older version"),
    ],
)
def test_what_proves_nothing_is_not_kept(tmp_path: Path, methods: Results, changed: dict[str, Any], reason: str) -> None:
    results = with_environment(methods, **changed)
    if changed.get("command", "") is None:
        results.environment.pop("command")
    with pytest.raises(ConsiliumError, match=reason):
        kept(tmp_path, results)
    assert not (tmp_path / "docs").exists()


def test_every_line_of_the_table_of_methods_is_a_result(tmp_path: Path, methods: Results) -> None:
    text = report.render(kept(tmp_path, methods))
    row = next(
        r for r in methods.rows if (r.method, r.pattern, r.metric, r.fold, r.site) == ("fedavg", "all", "auroc", None, None)
    )
    against = next(c for c in methods.comparisons if (c.b, c.pattern, c.metric) == ("fedavg", "all", "auroc"))
    assert row.ci95 is not None
    (line,) = (line for line in text.splitlines() if line.startswith("| `fedavg` |"))
    assert f"| {row.mean:.3f} ± {row.sd:.3f} [{row.ci95[0]:.3f}, {row.ci95[1]:.3f}] |" in line
    assert line.endswith(f"| {against.difference:+.3f} [{against.ci95[0]:+.3f}, {against.ci95[1]:+.3f}] better |")
    assert "- In AUROC the student is better than `student-uniform`" in text or "not to be told from `student-uniform`" in text
    assert re.search(r"In AUROC the student is better than .*`fedavg`", text)
    assert re.search(r"given \| `student`, AUROC \| teacher .*\n.*\n\| labs \| [\d. ±]+ \| `teacher:labs` \|", text)
    assert re.search(r"modality weights in the end, mean over cells: labs 0\.\d\d, vitals 0\.\d\d, notes 0\.\d\d\.", text)
    for words in (
        "**Generated, no real patients",
        "invented 1.0, checksum",
        "Seeds: 0, 1; folds: 2",
        "code `c0de`",
        "`bench it`",
    ):
        assert words in text


def test_a_source_that_is_corrected_after_a_run_is_told_as_it_is_now(
    tmp_path: Path, methods: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = kept(tmp_path, methods.model_copy(update={"data": "real"}))
    text = report.render(docs)
    assert "| bedside score | what each has | 1,191 | 0.834 |" in text and "published: a paper, table 2" in text
    assert "| another method | what each has | - | not found |" in text
    mended = replace(fakes.BENCHMARK, published=(Published("bedside score", "auroc", 0.81, "second-hand", "a review", n=7),))
    monkeypatch.setattr(report, "benchmarks", lambda: {mended.name: mended})
    text = report.render(docs)
    assert "| bedside score | what each has | 7 | 0.810 |" in text and "second-hand: a review" in text
    assert "a paper, table 2" not in text and "another method" not in text


def test_figures_of_others_do_not_stand_beside_generated_patients(tmp_path: Path, methods: Results) -> None:
    assert methods.data == "generated" and any(r.method == "bedside score" for r in methods.rows)
    text = report.render(kept(tmp_path, methods))
    assert "bedside score" not in text and "On published figures" not in text


def test_every_section_is_linked_at_the_top(tmp_path: Path, methods: Results, ablation: Results) -> None:
    some = with_environment(ablation, command="bench it --only x")
    text = report.render(kept(tmp_path, methods, some))
    heads = re.findall(r"^## (.*)$", text, flags=re.M)
    links = dict(re.findall(r"^- \[(.*)\]\(#(.*)\)$", text, flags=re.M))
    assert list(links) == heads and text.index("](#") < text.index("## ")
    assert links["`fake-mortality`: methods"] == "fake-mortality-methods"
    assert links["`fake-mortality`: ablation of distillation, modality weights, refine, reference set"] == (
        "fake-mortality-ablation-of-distillation-modality-weights-refine-reference-set"
    )


def test_an_ablation_says_plainly_what_helps_what_hurts_and_what_does_not_help(tmp_path: Path, ablation: Results) -> None:
    text = report.render(kept(tmp_path, ablation))
    parts = re.split(r"^(What .*) \(in AUROC\):$", text, flags=re.M)[1:]
    said = dict(zip(parts[::2], parts[1::2], strict=True))
    assert list(said) == ["What helps", "What hurts", "What does not help, as far as these patients can tell"]
    assert "**distillation**: the main setting is better than *off, labels alone*, +0." in said["What helps"]
    assert "**refine**: the main setting is worse than *off*, -0." in said["What hurts"]
    unresolved = said["What does not help, as far as these patients can tell"]
    assert "**modality weights**: no difference is resolved from *uniform*" in unresolved and "**reference set**" in unresolved
    assert text.count("- **") == len(fakes.ABLATIONS)


def test_two_settings_that_are_rivals_are_compared_on_every_combination(tmp_path: Path, ablation: Results) -> None:
    text = report.render(kept(tmp_path, ablation))
    _, told, after = text.partition("Two other settings, on the same patients:\n")
    lines = [line for line in after.split("\nWhat ")[0].splitlines() if line.startswith("| off |")]
    assert told and len(lines) == 8
    assert all(line.startswith("| off | off, labels alone | ") and line.endswith(" better |") for line in lines)


def test_the_document_begins_with_one_line_per_benchmark(tmp_path: Path, methods: Results, ablation: Results) -> None:
    _, _, after = report.render(kept(tmp_path, methods, ablation)).partition("## In one table\n")
    head, _, *lines = after.strip().split("\n\n")[0].splitlines()
    assert head.startswith("| benchmark | metric | `student` | against `fedavg` | against `central` |")
    (line,) = lines
    against = next(c for c in methods.comparisons if (c.b, c.metric, c.pattern) == ("fedavg", "auroc", "all"))
    assert line.startswith("| `fake-mortality` (generated) | AUROC | ") and f"| {against.difference:+.3f} [" in line


def test_what_the_parts_are_worth_stands_together_where_two_benchmarks_tried_them(tmp_path: Path, ablation: Results) -> None:
    _, _, alone = report.render(kept(tmp_path / "one", ablation)).partition("## What the parts are worth\n")
    rows = alone[: alone.index("\n## ")].strip().split("\n\n")[1].splitlines()[2:]
    assert rows and all(row.endswith(" hurts** |") for row in rows), "one benchmark alone tells what is better left out"
    same, hurting = fakes.ABLATIONS[0], next(a for a in fakes.ABLATIONS if rows[0].startswith(f"| {a.factor}: {a.setting} |"))
    another = replace(hurting, setting="something else under the same name")
    other = with_environment(ablation, ablations=[asdict(same), asdict(another)]).model_copy(update={"benchmark": "z-other"})
    said = report.render(kept(tmp_path / "two", ablation, other))
    said = said[said.index("## What the parts are worth") : said.index("## `fake-mortality`")]
    assert "`fake-mortality` (generated), AUROC | `z-other` (generated), AUROC" in said
    (line,) = [line for line in said.splitlines() if line.startswith(f"| {fakes.ABLATIONS[0].factor}: ")]
    _, setting, *worth, _ = (part.strip() for part in line.split("|"))
    assert setting == f"{fakes.ABLATIONS[0].factor}: {fakes.ABLATIONS[0].setting}"
    assert worth[0] == worth[1] and worth[0].startswith("**") and worth[0].endswith(" helps**")
    told = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:4]] for line in said.splitlines() if "|" in line
    }
    apart = [told[f"{a.factor}: {a.setting}"] for a in (hurting, another)]
    assert [cells.index("-") for cells in apart] == [1, 0], "a name alone joins no settings"


def test_a_run_without_the_student_has_no_line_there(tmp_path: Path, methods: Results) -> None:
    others = methods.model_copy(
        update={
            "rows": [r for r in methods.rows if r.method != "student"],
            "comparisons": [],
            "weights": [],
        }
    )
    text = report.render(kept(tmp_path, others))
    assert "## In one table" not in text and "## `fake-mortality`: methods" in text


def test_the_document_counts_the_cells_that_kept_equal_weights(tmp_path: Path, methods: Results) -> None:
    first = (methods.seeds[0], 0)
    even = [w.model_copy(update={"value": 1 / 3}) if (w.seed, w.fold) == first else w for w in methods.weights]
    text = report.render(kept(tmp_path, methods.model_copy(update={"weights": even})))
    assert "- Learned weights were kept in 3 of 4 cells (a seed and a fold each), equal ones in the others." in text


def test_ablations_of_some_factors_are_kept_beside_each_other(tmp_path: Path, ablation: Results) -> None:
    told = ablation.environment["ablations"]
    some = [with_environment(ablation, ablations=part, command="bench it --only x") for part in (told[:1], told[1:3])]
    docs = kept(tmp_path, *some, ablation)
    endings = ("", "-distillation", "-modality-weights-refine")
    assert {f.name for f in (docs / "results").iterdir()} == {f"fake-mortality-ablation{e}.json" for e in endings}
    heads = re.findall(r"^## `fake-mortality`: (.*)$", report.render(docs), flags=re.M)
    assert heads == ["ablation", "ablation of distillation", "ablation of modality weights, refine"]


def test_real_patients_come_first_and_an_ablation_behind_its_methods(tmp_path: Path, methods: Results, ablation: Results) -> None:
    real = methods.model_copy(update={"data": "real", "benchmark": "zebra"})
    text = report.render(kept(tmp_path, ablation, methods, real))
    assert re.findall(r"^## (.*)$", text, flags=re.M) == [
        "In one table",
        "What the parts are worth",
        "`zebra`: methods",
        "`fake-mortality`: methods",
        "`fake-mortality`: ablation",
    ]


def test_the_figure_of_a_run_is_kept_beside_its_results_and_that_of_an_earlier_run_is_not(
    tmp_path: Path, methods: Results
) -> None:
    run = tmp_path / "run"
    (run / "figures").mkdir(parents=True)
    write_json(run / "results.json", with_environment(methods, seconds=5400).model_dump(mode="json"))
    (run / "figures" / "patterns-auroc.png").write_bytes(b"drawn")
    picture = report.keep(run, tmp_path / "docs").with_suffix(".png")
    assert picture.read_bytes() == b"drawn"
    text = report.render(tmp_path / "docs")
    assert f"](results/{picture.name})" in text and "- Time: 90 minutes, all cells" in text
    (run / "figures" / "patterns-auroc.png").unlink()
    report.keep(run, tmp_path / "docs")
    assert not picture.exists() and picture.name not in report.render(tmp_path / "docs")


def test_the_command_keeps_runs_and_writes_the_document(tmp_path: Path, methods: Results) -> None:
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "results.json", methods.model_dump(mode="json"))
    docs = tmp_path / "docs"
    docs.mkdir()
    said = CliRunner().invoke(cli.app, ["report", "--docs", str(docs)])
    assert said.exit_code == 0 and "No run is kept yet" in (docs / "results.md").read_text()
    said = CliRunner().invoke(cli.app, ["report", "--from", str(tmp_path / "run"), "--docs", str(docs)])
    assert said.exit_code == 0, said.output
    assert (docs / "results.md").read_text(encoding="utf-8") == report.render(docs) and "fake-mortality" in report.render(docs)
    with pytest.raises(ConsiliumError, match="no folder"):
        report.write(tmp_path / "elsewhere")
