"""Figures of runs: what is drawn, what it says and whose data they are; curves promise nothing that is not there."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from common.evaluation.results import Results
from simulations.figures import draw_figures
from simulations.region_figures import COLOURS
from tests.simulations import fakes
from tests.simulations.test_scores import all_cells, build, make_cell, row_of


@pytest.fixture(scope="module")
def results() -> Results:
    return build(all_cells())


def test_figures_are_drawn_for_patterns_weights_and_curves(results: Results, tmp_path: Path) -> None:
    files = draw_figures(results, all_cells(), tmp_path / "figures")
    assert [f.name for f in files] == [
        "patterns-auroc.png",
        "patterns-auprc.png",
        "patterns-accuracy.png",
        "weights.png",
        "curves-student.png",
    ]
    for file in files:
        pixels = np.asarray(Image.open(file).convert("RGB"))
        assert min(pixels.shape[:2]) > 300 and pixels.std() > 10


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """Name -> figure of what is drawn in the test."""
    figures: dict[str, Figure] = {}
    original = Figure.savefig

    def savefig(self: Figure, file: Path, **options: Any) -> None:
        figures[file.stem] = self
        original(self, file, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


@pytest.fixture
def bare(results: Results) -> Results:
    """Results without rows and weights: nothing but learning curves is drawn."""
    return results.model_copy(update={"rows": [], "weights": []})


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


def test_no_word_of_a_figure_is_cut_off(results: Results, drawn: dict[str, Figure], tmp_path: Path) -> None:
    named = results.model_copy(update={"environment": results.environment | {"data_version": "a long name of data " * 6}})
    single = [{"phase": "train", "round": r, "group": "central", "split": "train", "loss": 0.5} for r in range(3)]
    draw_figures(named, [*all_cells(), make_cell("central", 0, 0, curves=single)], tmp_path)
    for name, figure in drawn.items():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        paper = figure.bbox.padded(1)
        texts = [t for t in figure.findobj(Text) if re.search("[a-z]", t.get_text()) and t.get_visible()]
        boxes = {t.get_text(): t.get_window_extent(canvas.get_renderer()) for t in texts}
        cut = [text for text, box in boxes.items() if not (paper.contains(*box.min) and paper.contains(*box.max))]
        assert len(texts) >= 5 and not cut, name


def test_the_heat_map_marks_what_cannot_be_told_from_our_student(
    results: Results, drawn: dict[str, Figure], tmp_path: Path
) -> None:
    draw_figures(results, [], tmp_path)
    said = words(drawn["patterns-auroc"])
    (close,) = [c for c in results.comparisons if (c.b, c.pattern, c.metric) == ("teachers", "all", "auroc")]
    (far,) = [c for c in results.comparisons if (c.b, c.pattern, c.metric) == ("local", "all", "auroc")]
    assert close.ci95[0] <= 0 <= close.ci95[1] and far.ci95[0] > 0
    assert f"{row_of(results, method='teachers', pattern='all', metric='auroc').mean:.3f} ≈" in said
    assert f"{row_of(results, method='local', pattern='all', metric='auroc').mean:.3f}" in said
    assert any("not resolved" in text.replace("\n", " ") for text in said)


def test_learning_curves_come_in_the_order_of_the_phases_and_each_in_its_own_units(
    bare: Results, drawn: dict[str, Figure], tmp_path: Path
) -> None:
    once = {"phase": "refining", "round": 0, "group": "once", "split": "train", "loss": 1.0}
    draw_figures(bare, [make_cell("student", 0, 0, curves=[*fakes.curves(0, 0), once])], tmp_path)
    panels = [axes for axes in drawn["curves-student"].axes if axes.get_visible()]
    titles = [axes.get_title() for axes in panels]
    assert titles[-2:] == ["distilling: student", "refining: student"] and len(titles) == 8
    assert all(title.startswith("teaching: ") for title in titles[:6])
    assert [axes.get_xlabel() for axes in panels[-2:]] == ["epoch", "round"]
    assert list(panels[-2].get_lines()[0].get_xdata()) == list(range(20))


def test_learning_curves_of_very_many_places_are_one_mean(bare: Results, drawn: dict[str, Figure], tmp_path: Path) -> None:
    places = [
        {"phase": "train", "round": r, "group": f"site-{k}", "split": "train", "loss": k + r} for k in range(31) for r in range(2)
    ]
    draw_figures(bare, [make_cell("local", s, 0, curves=places) for s in range(2)], tmp_path)
    (panel,) = drawn["curves-local"].axes
    assert panel.get_title() == "train: mean over 31 places"
    assert list(panel.get_lines()[0].get_ydata()) == [15, 16]
    assert "2 cells" in " ".join(words(drawn["curves-local"]))


def test_an_error_says_that_less_is_better_and_its_unit(drawn: dict[str, Figure], tmp_path: Path) -> None:
    benchmark = dataclasses.replace(fakes.BENCHMARK, task_type="regression", metrics=("mae", "r2"), published=())
    found = build([c for c in all_cells() if c.method in ("student", "teachers")], benchmark=benchmark)
    draw_figures(found, [], tmp_path)
    assert "MAE (lower is better)" in words(drawn["patterns-mae"])
    assert "R² (higher is better)" in words(drawn["patterns-r2"])
    in_days = found.model_copy(update={"environment": found.environment | {"units": {"los": "d"}}})
    draw_figures(in_days, [], tmp_path)
    assert "MAE in d (lower is better)" in words(drawn["patterns-mae"])
    assert "R² (higher is better)" in words(drawn["patterns-r2"])


def test_weights_of_a_few_outputs_have_a_panel_each(drawn: dict[str, Figure], tmp_path: Path) -> None:
    moved = [{**w, "output": o} for w in fakes.weights("student", 0, 0) for o in ("wt", "et")]
    draw_figures(build([make_cell("student", 0, 0, weights=moved)], seeds=[0], folds=[0]), [], tmp_path)
    assert [axes.get_title() for axes in drawn["weights"].axes] == ["student: wt (1 cell)", "student: et (1 cell)"]


def test_weights_that_never_move_have_no_panel(drawn: dict[str, Figure], tmp_path: Path) -> None:
    methods = ("student", "student-uniform")
    cells = [make_cell(m, s, f, weights=fakes.weights(m, s, f)) for m in methods for s in range(2) for f in range(2)]
    draw_figures(build(cells).model_copy(update={"rows": []}), [], tmp_path)
    assert [axes.get_title() for axes in drawn["weights"].axes] == ["student (4 cells)"]


def test_equal_weights_that_were_kept_in_the_end_are_told_of(drawn: dict[str, Figure], tmp_path: Path) -> None:
    learned = fakes.weights("student", 0, 0)
    even = [{**w, "round": 6, "value": 1 / 3} for w in learned[-3:]]
    for cells, title in (
        ([[*learned, *even]], "student (1 cell)\nin the end equal weights are kept"),
        ([[*learned, *even], learned], "student (2 cells)\nin the end equal weights are kept in 1 of 2 cells"),
    ):
        found = build([make_cell("student", s, 0, weights=w) for s, w in enumerate(cells)], seeds=[0, 1], folds=[0])
        draw_figures(found.model_copy(update={"rows": []}), [], tmp_path)
        assert [axes.get_title() for axes in drawn["weights"].axes] == [title]


def test_of_one_modality_the_heat_map_has_one_column(results: Results, drawn: dict[str, Figure], tmp_path: Path) -> None:
    lone = [r for r in results.rows if r.pattern in ("all", "labs")]
    draw_figures(results.model_copy(update={"rows": lone}), [], tmp_path)
    axes = drawn["patterns-auroc"].axes[0]
    assert [t.get_text().split("\n")[0] for t in axes.get_xticklabels()] == ["all"]
    rows = [t.get_text() for t in axes.get_yticklabels()]
    assert len(rows) == len(set(rows)) and {"student", "teacher:labs"} <= set(rows)
    assert "nan" not in " ".join(words(drawn["patterns-auroc"]))


def test_only_generated_data_and_debug_runs_are_in_the_colour_of_a_warning(
    results: Results, drawn: dict[str, Figure], tmp_path: Path
) -> None:
    for data, debug in (("real", False), ("real", True), ("generated", False)):
        about = results.environment | {"debug": debug}
        draw_figures(results.model_copy(update={"data": data, "environment": about}), [], tmp_path)
        figure = drawn["patterns-auroc"]
        assert (figure._supxlabel.get_color() == COLOURS[1]) == (data == "generated")
        assert (figure._suptitle.get_color() == COLOURS[1]) == ("DEBUG RUN" in figure._suptitle.get_text()) == debug


def test_a_run_without_weights_and_curves_has_heat_maps_only(tmp_path: Path) -> None:
    cells = [make_cell("central", s, f) for s in range(2) for f in range(2)]
    assert [f.name[:8] for f in draw_figures(build(cells), cells, tmp_path)] == ["patterns"] * 3
    assert draw_figures(build([]), [], tmp_path) == []


def losses(phase: str, split: str, *values: float) -> list[dict[str, Any]]:
    return [{"phase": phase, "round": r, "group": "student", "split": split, "loss": v} for r, v in enumerate(values)]


def test_figures_of_own_data_have_the_tasks_name_and_say_whose_data_they_are(drawn: dict[str, Figure], tmp_path: Path) -> None:
    found = build(
        [make_cell("student", s, f) for s in (0, 1) for f in (0, 1)], run={"title": "wards: death from labs", "missing": {}}
    )
    for benchmark, name, whose in (("custom", "wards", "Your data: "), ("heart-disease", "heart-disease", "Real data: ")):
        draw_figures(found.model_copy(update={"benchmark": benchmark, "data": "real"}), [], tmp_path)
        said = [t.get_text() for t in drawn["patterns-auroc"].findobj(Text)]
        assert any(text.startswith(f"{name}\n") for text in said) and any(text.startswith(whose) for text in said)


def test_curves_that_hardly_move_look_so_and_a_panel_with_one_loss_says_which(drawn: dict[str, Figure], tmp_path: Path) -> None:
    curves = [
        *losses("distilling", "train", 0.9, 0.5, 0.3),
        *losses("distilling", "validation", 0.9, 0.6, 0.5),
        *losses("refining", "validation", 0.500, 0.501, 0.499),
    ]
    draw_figures(build([]), [make_cell("student", 0, 0, curves=curves)], tmp_path)
    figure = drawn["curves-student"]
    distilling, refining = figure.axes
    assert (distilling.get_title(), refining.get_title()) == ("distilling: student", "refining: student\n(validation only)")
    low, high = refining.get_ylim()
    assert high - low > 0.09 and low < 0.499 and high > 0.501
    assert any("compare each with itself" in " ".join(t.get_text().split()) for t in figure.findobj(Text))
