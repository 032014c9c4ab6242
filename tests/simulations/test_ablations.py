"""Ablations: what is listed can be run, and what a run of them finds."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from common.config import load_config, to_json
from common.errors import ConsiliumError
from common.evaluation.results import Results, load_results
from simulations import bench, cli
from simulations.ablations import MAIN, STANDARD, of_factors, references, teachers
from simulations.benchmarks import base, demo
from simulations.cells import RUNS
from simulations.consortium import write_tiny
from simulations.findings import findings
from tests.simulations import fakes

NAME = fakes.BENCHMARK.name
FAKE = dataclasses.replace(fakes.BENCHMARK, metrics=("auroc", "auprc"))
FACTORS = ["distillation", "modality weights", "refine", "reference set"]


def run(out: Path, **other: object) -> bench.Outcome:
    console = Console(file=io.StringIO(), width=200)
    return bench.run(NAME, ablate=True, out=out, run_cell=fakes.run_cell, **({"console": console, "workers": 1} | other))


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Makes the fake benchmark the only one, but for the test of the real ones."""
    monkeypatch.setattr(bench, "code_digest", lambda: "code")
    if "benchmark" not in request.fixturenames:
        for module in (base, cli):
            monkeypatch.setattr(module, "benchmarks", lambda: {NAME: FAKE})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> bench.Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "benchmarks", lambda: {NAME: FAKE})
        patch.setattr(bench, "code_digest", lambda: "code")
        return run(tmp_path_factory.mktemp("runs"), workers=2)


@pytest.fixture(scope="module")
def results(finished: bench.Outcome) -> Results:
    return load_results(finished.folder / "results.json")


@pytest.mark.parametrize("benchmark", base.benchmarks().values(), ids=base.benchmarks())
def test_a_standard_ablation_is_taken_from_the_standard_ones_not_written_anew(benchmark: base.Benchmark) -> None:
    known = {a.name: a for a in STANDARD}
    anew = [a.name for a in benchmark.ablations if a is not known.get(a.name, a)]
    assert not anew


@pytest.mark.parametrize("benchmark", base.benchmarks().values(), ids=base.benchmarks())
def test_every_ablation_composes_and_changes_something_of_its_own(benchmark: base.Benchmark) -> None:
    tuned = benchmark.overrides.get(MAIN, ())
    seen = {json.dumps([to_json(load_config(benchmark.experiment, tuned)), None]): MAIN}
    for ablation in benchmark.ablations:
        config = to_json(load_config(benchmark.experiment, [*tuned, *ablation.overrides]))
        key = json.dumps([config, ablation.reference])
        assert key not in seen, f"{ablation.name} is the same as {seen.get(key)}"
        seen[key] = ablation.name
        assert ablation.name.startswith(f"{MAIN}-") and ablation.setting
        assert RUNS.get(ablation.name, ablation.overrides) == ablation.overrides, "a method of that name is something else"
    names, factors = ([getattr(a, what) for a in benchmark.ablations] for what in ("name", "factor"))
    assert len(set(names)) == len(names)
    assert [f for i, f in enumerate(factors) if f != factors[i - 1]] == list(dict.fromkeys(factors)), "a factor in two places"


def test_teachers_and_reference_sets_become_overrides_and_shares() -> None:
    assert teachers("two", "two", image=["small", "base"], text=["linear"]).overrides == (
        "model.teachers.image=[small,base]",
        "model.teachers.text=[linear]",
    )
    assert [(a.name, a.reference) for a in references(0, 0.05)] == [("student-reference-0", 0), ("student-reference-5", 0.05)]


def test_ablations_run_beside_the_student_in_a_folder_of_their_own_on_their_own_sites(finished: bench.Outcome) -> None:
    assert finished.missing == {} and finished.folder.parent.name == f"{NAME}-ablation"
    methods = [MAIN, *(a.name for a in fakes.ABLATIONS)]
    cells = {f"{m}-{s}-{f}" for m in methods for s in (0, 1) for f in (0, 1)}
    assert {f.name for f in (finished.folder / "cells").iterdir()} == cells
    splits = {f.stem for f in (finished.folder / "prepared").iterdir()}
    assert splits == {f"{s}-{f}{end}" for s in (0, 1) for f in (0, 1) for end in ("", "-reference-5")}
    assert {f.name for f in (finished.folder / "figures").iterdir()} == {"ablation-auroc.png", "ablation-auprc.png"}
    with pytest.raises(ConsiliumError, match="no finished run"):
        bench.newest_finished(NAME, finished.folder.parents[1])


def test_a_failed_ablation_is_the_only_one_that_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"seeds": 1, "only": ["refine", "reference set"]}
    monkeypatch.setenv("FAKE_FAIL", "student-no-refine-0-1")
    first = run(tmp_path, **asked)
    assert set(first.missing) == {"student-no-refine-0-1"}
    told = {f.setting: f.difference for f in findings(load_results(first.folder / "results.json"), "auroc")}
    assert told["off"] is None and told["5 %, 31 stays"] is not None
    monkeypatch.delenv("FAKE_FAIL")
    second = run(tmp_path, **asked)
    assert (second.folder, second.missing) == (first.folder, {})
    calls = (second.folder / "calls").read_text().split()
    assert sorted(calls) == sorted([*set(calls), "student-no-refine-0-1"]) and len(set(calls)) == 6
    assert load_results(second.folder / "results.json").environment["command"] == (
        f"consilium-bench ablate {NAME} --seeds 1 --only refine --only 'reference set'"
    )


def test_findings_tell_the_effect_of_the_main_settings_choice(results: Results) -> None:
    main, *found = findings(results, "auroc")
    assert (main.setting, main.difference, main.effect, main.elsewhere) == ("main setting", None, None, "-")
    assert [f.factor for f in found] == FACTORS
    assert [f.effect for f in found] == ["helps", "not resolved", "hurts", "not resolved"]
    assert found[3].setting == "5 %, 31 stays"  # the mean of what the folds have
    by_name = {(c.b, c.metric, c.pattern): c for c in results.comparisons if c.a == "student"}
    for finding, ablation in zip(found, fakes.ABLATIONS, strict=True):
        whole = by_name[ablation.name, "auroc", "all"]
        assert finding.difference is not None and main.mean is not None and finding.mean is not None
        assert finding.difference.estimate == whole.difference == pytest.approx(main.mean - finding.mean, abs=1e-6)
    assert "labs+notes+vitals" in found[0].combinations["helps"] and not found[0].combinations["hurts"]
    assert found[0].elsewhere == f"helps on {len(found[0].combinations['helps'])} of 7"
    few = {"helps": ("labs",), "hurts": ("notes", "labs+notes"), "not resolved": ("vitals",)}
    assert dataclasses.replace(found[0], combinations=few).elsewhere == "helps on labs; hurts on notes, labs+notes"


def test_every_combination_of_modalities_is_compared_in_the_main_metric(results: Results) -> None:
    by_pattern = [(c.b, c.pattern) for c in results.comparisons if (c.a, c.metric) == ("student", "auroc")]
    assert len(by_pattern) == len(set(by_pattern)) == len(fakes.ABLATIONS) * 8
    assert {c.pattern for c in results.comparisons if c.metric == "auprc"} == {"all"}
    assert not [r for r in results.rows if r.published]


def test_the_table_goes_by_factor(finished: bench.Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    said = CliRunner().invoke(cli.app, ["table", NAME, "--run", str(finished.folder)])
    assert said.exit_code == 0, said.output
    lines = [line for line in said.output.splitlines() if any(factor in line for factor in FACTORS)]
    assert [next(f for f in FACTORS if f in line) for line in lines] == FACTORS * 2  # AUROC and AUPRC
    bounds = findings(load_results(finished.folder / "results.json"), "auroc")[1].difference
    assert bounds is not None
    assert f"+{bounds.estimate:.3f} [+{bounds.low:.3f}, +{bounds.high:.3f}]" in lines[0] and "helps" in lines[0]


def test_the_command_asks_for_factors_and_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConsiliumError, match="did you mean 'refine'"):
        run(tmp_path, only=["refin"])
    with pytest.raises(ConsiliumError, match="no ablations"):
        of_factors((), ())
    original = bench.run
    monkeypatch.setenv("CONSILIUM_RUNS", str(tmp_path))
    monkeypatch.setattr(bench, "run", lambda name, **asked: original(name, run_cell=fakes.run_cell, workers=1, **asked))
    said = CliRunner().invoke(cli.app, ["ablate", NAME, "--debug", "--only", "refine"])
    assert said.exit_code == 0, said.output
    assert "cells=2" in said.output and "DEBUG RUN" in said.output and "refine" in said.output
    said = CliRunner().invoke(cli.app, ["ablate", NAME, "--debug", "--only", "refine", "--variant", "no-data"])
    assert "The data are not at /nowhere" in str(said.exception)


def test_the_demonstrations_reference_set_follows_the_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, int] | None] = []

    def write(folder: Path, *, patients: dict[str, int] | None = None) -> None:
        asked.append(patients)
        write_tiny(folder)

    monkeypatch.setattr(demo, "write_demo", write)
    said = {share: demo.prepare(tmp_path / str(share), base.Split(0, 0, reference=share)) for share in (None, 0, 0.05, 0.2)}
    hospitals = 0.75 * 1290  # who do not test
    sizes = [p["reference"] for p in asked if p]
    assert asked[:2] == [None, None]
    assert [n / (n + hospitals) for n in sizes] == pytest.approx([0.05, 0.2], abs=5e-4)
    assert [(tmp_path / str(share) / "reference").is_dir() for share in said] == [True, False, True, True]
    assert ["reference" in told["n"] for told in said.values()] == [True, False, True, True]
