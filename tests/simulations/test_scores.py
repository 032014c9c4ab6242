"""``results.json`` says what the predictions say."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from sklearn.metrics import accuracy_score, average_precision_score, mean_absolute_error, roc_auc_score

from common.errors import ConsiliumError
from common.evaluation.intervals import Sample, interval
from common.evaluation.results import Results, Row, load_results
from common.task import pattern_name, patterns
from simulations.benchmarks.base import MEAN_OF_PATTERNS
from simulations.findings import method_sentences
from simulations.finished import COLUMNS, Cell, load_cell
from simulations.scores import AT_SITES, build_results
from simulations.tables import method_lines
from tests.simulations import fakes

PREPARED = {"n": {"test": {"stays": 240, "deaths": 60}}, "exclusions": {"no label": 3}, "data_checksum": "ab"}


def make_cell(method: str, seed: int, fold: int, **other: Any) -> Cell:
    predictions = other.pop("predictions", None)
    frame = fakes.predictions(method, seed, fold) if predictions is None else predictions
    said = {"parameters": 7, "bytes_per_site": {"x": 10, "y": 30}, "weights": [], "curves": []} | other
    return Cell(method, seed, fold, predictions=frame, **said)


def all_cells(methods: Sequence[str] = fakes.METHODS) -> list[Cell]:
    return [
        make_cell(m, s, f, **({"weights": fakes.weights(m, s, f), "curves": fakes.curves(s, f)} if m == "student" else {}))
        for m in methods
        for s in range(2)
        for f in range(2)
    ]


def build(cells: list[Cell], **other: Any) -> Results:
    wanted = {"seeds": [0, 1], "folds": [0, 1], "variant": None, "prepared": [PREPARED, PREPARED], "run": {"missing": {}}}
    return build_results(other.pop("benchmark", fakes.BENCHMARK), cells, **(wanted | other))


@pytest.fixture(scope="module")
def results() -> Results:
    return build(all_cells())


def rows_of(results: Results, **wanted: Any) -> list[Row]:
    pooled = {"site": None, "fold": None, "output": None} | wanted
    return [r for r in results.rows if all(getattr(r, k) == v for k, v in pooled.items())]


def row_of(results: Results, **wanted: Any) -> Row:
    (row,) = rows_of(results, **wanted)
    return row


def by_hand(method: str, pattern: str, seed: int, model: str = "student") -> pd.DataFrame:
    frame = pd.concat([fakes.predictions(method, seed, fold).assign(fold=fold) for fold in range(2)])
    return frame[(frame["model"] == model) & (frame["pattern"] == pattern)].sort_values(["fold", "site", "row"])


@pytest.mark.parametrize("method", ["student", "fedavg"])
@pytest.mark.parametrize("pattern", ["all", "notes", "labs+vitals"])
def test_pooled_rows_equal_scikit_learn_on_the_rows_of_all_folds(results: Results, method: str, pattern: str) -> None:
    frames = [by_hand(method, pattern, seed) for seed in range(2)]
    hand = {
        "auroc": [roc_auc_score(f["label"], f["score"]) for f in frames],
        "auprc": [average_precision_score(f["label"], f["score"]) for f in frames],
        "accuracy": [accuracy_score(f["label"], f["score"] > 0.5) for f in frames],
    }
    for metric, values in hand.items():
        row = row_of(results, method=method, pattern=pattern, metric=metric)
        assert row.mean == pytest.approx(np.mean(values), abs=1e-6)
        assert row.sd == pytest.approx(np.std(values, ddof=1), abs=1e-6)
        assert row.n == len(frames[0]) == (400 if "notes" in pattern else 480)
        assert row.ci95 is not None and row.ci95[0] < row.mean < row.ci95[1]
        assert (row.split, row.parameters, row.bytes_per_site, row.published) == ("test", 7, 20.0, None)
    assert not rows_of(results, method=method, pattern=pattern, metric="f1")


def test_intervals_resample_patients_not_visits(results: Results) -> None:
    frames = [by_hand("student", "all", seed) for seed in range(2)]

    def bounds(group: str) -> tuple[float, float]:
        one_each = [f.assign(visit=range(len(f))) for f in frames]
        samples = [Sample(*(f[[c]].to_numpy() for c in ("score", "label")), f[group].to_numpy()) for f in one_each]
        found = interval(samples, "auroc", "binary")
        assert found is not None
        return found.low, found.high

    told = row_of(results, method="student", pattern="all", metric="auroc").ci95
    assert told == pytest.approx(bounds("patient")) != pytest.approx(bounds("visit"))


def test_the_fake_reaches_the_auroc_that_it_was_made_for(results: Results) -> None:
    truth = 0.8244  # normal scores 1.3191 apart
    assert row_of(results, method="student", pattern="all", metric="auroc").mean == pytest.approx(truth, abs=0.05)


def test_rows_per_fold_and_per_site_have_no_interval(results: Results) -> None:
    fold = row_of(results, method="central", pattern="notes", metric="auroc", fold=1)
    frames = [by_hand("central", "notes", seed).query("fold == 1") for seed in range(2)]
    assert fold.mean == pytest.approx(np.mean([roc_auc_score(f["label"], f["score"]) for f in frames]))
    assert fold.ci95 is None and fold.n == 200
    sites = [r for r in results.rows if r.site and r.method == "central" and r.metric == "auroc"]
    assert [(r.site, r.pattern, r.n) for r in sites] == [(f"test-{s}", "all", 120) for s in ("0a", "0b", "1a", "1b")]
    assert all(r.ci95 is None and r.fold is None for r in sites)


def test_the_consilium_and_every_unimodal_teacher_have_rows_of_their_own(results: Results) -> None:
    frames = [by_hand("teachers", "notes", seed, "teacher:notes") for seed in range(2)]
    row = row_of(results, method="teacher:notes", metric="auroc")
    assert row.mean == pytest.approx(np.mean([roc_auc_score(f["label"], f["score"]) for f in frames]))
    assert (row.pattern, row.parameters) == ("notes", None)
    every = {"all", *map(pattern_name, patterns(fakes.SIGNAL))}
    assert {r.pattern for r in rows_of(results, method="teachers", metric="auroc")} == every


def test_our_student_is_compared_with_every_method_and_with_the_best_teacher_of_every_pattern(results: Results) -> None:
    found = {(c.pattern, c.b): c for c in results.comparisons if c.metric == "auroc"}
    teachers = {f"teacher:{m}{a}" for m in fakes.SIGNAL for a in ("", "/linear")}
    assert {b for pattern, b in found if pattern == "all"} == (set(fakes.METHODS) - {"student"}) | teachers
    assert {p: b for p, b in found if p != "all"} == {
        "labs": "teacher:labs",
        "notes": "teacher:notes",
        "vitals": "teacher:vitals",
        "labs+notes": "teacher:labs",
        "labs+vitals": "teacher:labs",
        "notes+vitals": "teacher:vitals",
        "labs+notes+vitals": "teacher:labs",
    }
    hand = [
        roc_auc_score(a["label"], a["score"]) - roc_auc_score(b["label"], b["score"])
        for a, b in ((by_hand("student", "all", s), by_hand("fedavg", "all", s)) for s in range(2))
    ]
    against = found["all", "fedavg"]
    assert against.difference == pytest.approx(np.mean(hand))
    assert against.ci95[0] < against.difference < against.ci95[1]


def test_where_lower_is_better_the_best_teacher_is_the_lowest() -> None:
    benchmark = dataclasses.replace(fakes.BENCHMARK, task_type="regression", metrics=("mae", "r2"), published=())
    found = build([c for c in all_cells() if c.method in ("student", "teachers")], benchmark=benchmark)
    errors = {m: row_of(found, method=f"teacher:{m}", metric="mae").mean for m in fakes.SIGNAL}
    frame = by_hand("student", "all", 0)
    first = mean_absolute_error(frame["label"], frame["score"])
    assert row_of(found, method="student", pattern="all", metric="mae").mean == pytest.approx(first, rel=0.1)
    best = {c.pattern: c.b for c in found.comparisons if c.pattern != "all"}
    assert best["labs+vitals"] == f"teacher:{min(('labs', 'vitals'), key=lambda m: errors[m])}"


def test_a_teacher_of_fewer_patients_is_compared_on_its_patients(results: Results) -> None:
    (found,) = [c for c in results.comparisons if (c.pattern, c.b, c.metric) == ("all", "teacher:notes", "auroc")]
    differences = []
    for seed in range(2):
        theirs = by_hand("teachers", "notes", seed, "teacher:notes")
        ours = by_hand("student", "all", seed).merge(theirs[["fold", "site", "row"]], on=["fold", "site", "row"])
        assert len(ours) == 400
        differences.append(roc_auc_score(ours["label"], ours["score"]) - roc_auc_score(theirs["label"], theirs["score"]))
    assert found.difference == pytest.approx(np.mean(differences))


def test_a_seed_that_lacks_a_fold_is_no_part_of_pooled_rows() -> None:
    cells = [c for c in all_cells() if c.method in ("student", "local") and (c.method, c.seed, c.fold) != ("student", 1, 0)]
    results = build(cells)
    row = row_of(results, method="student", pattern="all", metric="auroc")
    frame = by_hand("student", "all", 0)
    assert (row.mean, row.sd) == (pytest.approx(roc_auc_score(frame["label"], frame["score"])), None)
    (against,) = [c for c in results.comparisons if (c.b, c.metric) == ("local", "auroc")]
    other = by_hand("local", "all", 0)
    assert against.difference == pytest.approx(row.mean - roc_auc_score(other["label"], other["score"]))
    assert row_of(results, method="student", pattern="all", metric="auroc", fold=1).sd is not None


def test_order_of_lines_and_cells_does_not_matter() -> None:
    cells = all_cells(["student", "fedavg"])
    shuffled = [dataclasses.replace(c, predictions=c.predictions.sample(frac=1, random_state=3)) for c in cells[::-1]]
    assert (build(shuffled).rows, build(shuffled).comparisons) == (build(cells).rows, build(cells).comparisons)


def test_multiclass_rows_have_one_row_per_class_beside_the_whole() -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(3, size=90)
    logits = rng.normal(size=(90, 3)) + 1.5 * np.eye(3)[classes]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    frame = pd.DataFrame(
        {
            "site": "a",
            "row": np.repeat(np.arange(90), 3),
            "patient": np.repeat(np.arange(90), 3).astype(str),
            "pattern": "all",
            "model": "student",
            "output": np.tile(["one", "three", "two"], 90),
            "score": scores.ravel(),
            "label": np.eye(3)[classes].ravel(),
        }
    )
    task = dataclasses.replace(fakes.BENCHMARK, task_type="multiclass", folds=1, metrics=("accuracy", "auroc"))
    results = build([make_cell("student", 0, 0, predictions=frame)], benchmark=task, seeds=[0], folds=[0], prepared=[PREPARED])
    whole = row_of(results, method="student", metric="accuracy")
    assert whole.mean == pytest.approx(accuracy_score(classes, scores.argmax(axis=1)))
    per_class = {r.output: r for r in results.rows if r.output and r.method == "student"}
    assert set(per_class) == {"one", "two", "three"}
    assert per_class["three"].mean == pytest.approx(roc_auc_score(classes == 1, scores[:, 1]))
    short = [make_cell("student", 0, 0, predictions=frame.iloc[1:])]
    with pytest.raises(ConsiliumError, match=r"'student' does not predict every output \(one, three, two\)"):
        build(short, benchmark=task, seeds=[0], folds=[0], prepared=[PREPARED])


def scanned(method: str, seed: int, patterns: Sequence[str] = ("all", "t1", "t2", "t1+t2")) -> Cell:
    """Predictions of ten scans: what is measured of two regions, with every pattern."""
    rng = np.random.default_rng([seed, len(method)])
    columns = [f"{region}:{metric}" for region in ("core", "whole") for metric in ("dice", "hd95", "nsd")]
    rows = [
        ("x", row, f"p{row}", p, "student", c, rng.uniform(0, 1) + (c.endswith("hd95") * 5), 1.0)
        for p in patterns
        for row in range(10)
        for c in columns
    ]
    return make_cell(method, seed, 0, predictions=pd.DataFrame(rows, columns=list(COLUMNS)))


def test_of_scans_the_mean_of_all_patterns_is_told_and_compared_scan_by_scan() -> None:
    regions = dataclasses.replace(
        fakes.BENCHMARK,
        task_type="segmentation",
        modalities=("t1", "t2"),
        methods=("student", "central"),
        metrics=("dice", "hd95", "nsd"),
        published=(),
    )
    cells = [scanned(m, s) for m in regions.methods for s in (0, 1)]
    found = build(cells, benchmark=regions, folds=[0])
    frame = pd.concat([c.predictions.assign(method=c.method, seed=c.seed) for c in cells])
    dice = frame[frame["output"].str.endswith(":dice") & (frame["pattern"] != "all")]
    means = dice.groupby(["method", "seed"])["score"].mean()
    for method in regions.methods:
        row = row_of(found, method=method, pattern=MEAN_OF_PATTERNS, metric="dice")
        assert row.mean == pytest.approx(means[method].mean()) and row.n == 10
        assert row.ci95 is not None and row.ci95[0] < row.mean < row.ci95[1]
    (compared,) = [c for c in found.comparisons if (c.pattern, c.metric) == (MEAN_OF_PATTERNS, "dice")]
    assert compared.b == "central" and compared.difference == pytest.approx((means["student"] - means["central"]).mean())
    assert any(s.startswith(f"In Dice, {MEAN_OF_PATTERNS}, the student is ") for s in method_sentences(found, "dice"))
    assert [(line.method, line.pattern) for line in method_lines(found)] == [
        (m, p) for m in regions.methods for p in ("all", MEAN_OF_PATTERNS)
    ]
    some = build([*cells[:3], scanned("central", 1, ("all", "t1", "t2"))], benchmark=regions, folds=[0])
    assert len(rows_of(some, method="central", pattern=MEAN_OF_PATTERNS)) == 3, "of the seed that has every pattern"
    assert not rows_of(build(all_cells()), pattern=MEAN_OF_PATTERNS), "probabilities are not averaged"


def test_published_figures_are_rows_with_their_evidence_mark(results: Results) -> None:
    row = row_of(results, method="bedside score")
    assert (row.mean, row.n, row.ci95, row.published) == (0.834, 1191, None, "published: a paper, table 2")
    assert row_of(results, method="another method").mean is None
    assert not [r for r in build([], variant="no-data").rows if r.published]


def test_what_sites_left_out_when_they_opened_their_files_is_counted() -> None:
    cells = [
        make_cell(m, s, f, excluded=5 if m == "student" else 2) for m in ("student", "local") for s in (0, 1) for f in (0, 1)
    ]
    assert build(cells).exclusions == {"no label": 3, AT_SITES: 5}


def test_results_tell_data_counts_weights_and_environment(results: Results) -> None:
    assert (results.data, results.data_checksum, results.exclusions) == ("generated", "ab", {"no label": 3})
    assert results.n["test"] == {"stays": 480, "deaths": 120}
    assert len(results.n["folds"]) == 2
    assert results.environment["packages"]["torch"]
    assert {(w.method, w.seed, w.fold) for w in results.weights} == {("student", s, f) for s in range(2) for f in range(2)}
    other = build([], prepared=[PREPARED, PREPARED | {"data_checksum": "cd"}])
    assert len(other.data_checksum) == 64


def test_results_survive_the_file_and_nothing_else_fits_the_schema(results: Results, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(results.model_dump_json())
    assert load_results(file) == results
    raw = json.loads(file.read_text())
    assert " ".join(raw) == "schema_version benchmark data data_checksum n exclusions seeds rows comparisons weights environment"
    row = "method variant pattern split site fold output metric mean sd ci95 n parameters bytes_per_site published"
    assert " ".join(raw["rows"][0]) == row
    assert " ".join(raw["comparisons"][0]) == "a b variant pattern split output metric difference ci95"
    file.write_text(json.dumps(raw | {"surprise": 1}))
    with pytest.raises(ConsiliumError, match="surprise"):
        load_results(file)
    with pytest.raises(ConsiliumError, match="Run the benchmark first, or name another run directory"):
        load_results(tmp_path / "none.json")
    with pytest.raises(ValidationError):
        Row.model_validate(raw["rows"][0] | {"mean": float("nan")})


def test_a_cell_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    fakes.write_cell(tmp_path, "student", 1, 0)
    cell = load_cell(tmp_path, "binary")
    assert (cell.method, cell.seed, cell.fold, cell.parameters) == ("student", 1, 0, 1000)
    pd.testing.assert_frame_equal(cell.predictions, fakes.predictions("student", 1, 0), check_dtype=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="patient"), "no column patient"),
        (lambda f: f.assign(score=f["score"].where(f["row"] > 0)), "no probability"),
        (lambda f: f.assign(label=2.0), "neither 0 nor 1"),
        (lambda f: pd.concat([f, f.iloc[:1]]), "predicted twice"),
        (lambda f: f.iloc[:0], "no rows"),
    ],
)
def test_predictions_that_are_none_make_the_cell_unusable(tmp_path: Path, change: Any, message: str) -> None:
    fakes.write_cell(tmp_path, "student", 0, 0)
    change(pd.read_parquet(tmp_path / "predictions.parquet")).to_parquet(tmp_path / "predictions.parquet")
    with pytest.raises(ConsiliumError, match=message):
        load_cell(tmp_path, "binary")


def test_a_cell_without_its_files_or_with_a_failure_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(ConsiliumError, match="resumes"):
        load_cell(tmp_path, "binary")
    (tmp_path / "cell.json").write_text(json.dumps({"status": "failed", "reason": "out of coffee"}))
    with pytest.raises(ConsiliumError, match="out of coffee"):
        load_cell(tmp_path, "binary")
    (tmp_path / "cell.json").write_text(json.dumps({"status": "finished"}))
    with pytest.raises(ConsiliumError, match="cannot be used"):
        load_cell(tmp_path, "binary")
