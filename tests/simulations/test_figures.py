"""Figures of own data say whose they are, and curves neither promise what is not there nor make much of little."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from simulations.figures import draw_figures
from tests.simulations.test_scores import build, make_cell


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """Name -> figure of what is drawn in the test; no file is written."""
    figures: dict[str, Figure] = {}
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **options: figures.update({file.stem: self}))
    return figures


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
