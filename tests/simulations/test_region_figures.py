"""The figures of regions: Dice of what every method itself says, each in a style of its own; outlines where the regions lie."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from common.evaluation.results import Row
from simulations.region_figures import COLOURS, _panel, draw_boxes
from tests.simulations.test_scores import build, make_cell

PATTERNS = ("flair", "t1", "all")


def predictions(**dice: float) -> pd.DataFrame:
    """Two scans on which a model (``teacher__flair``: teacher:flair) reaches a Dice in every pattern."""
    rows = [
        {
            "site": "a",
            "row": row,
            "patient": str(row),
            "pattern": p,
            "model": m.replace("__", ":"),
            "output": "wt:dice",
            "score": v,
        }
        for m, v in dice.items()
        for p in PATTERNS
        for row in range(2)
    ]
    return pd.DataFrame(rows).assign(label=1.0)


def drawn(*methods: str) -> Figure:
    """The figure of a student and some methods; a network reaches .8, less .01 for every method before it."""
    cells = [make_cell("student", 0, 0, predictions=predictions(student=0.9))]
    for at, method in enumerate(methods):
        said = {"student": 0.1, "teachers": 0.7, "teacher__flair": 0.5} if method == "teachers" else {"student": 0.8 - 0.01 * at}
        cells.append(make_cell(method, 0, 0, predictions=predictions(**said)))
    kept = dict.fromkeys(("variant", "site", "fold", "output", "sd", "ci95", "parameters", "bytes_per_site", "published"))
    rows = [Row(method=m, pattern="all", split="test", metric="dice", mean=0.5, n=2, **kept) for m in ("student", *methods)]
    figure = draw_boxes(build([]).model_copy(update={"rows": rows}), cells)
    assert figure is not None
    return figure


def test_the_teachers_height_is_the_consiliums_not_that_of_the_student_whom_nobody_taught() -> None:
    figure = drawn("teachers", "fedavg")
    named = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"teachers, mean", "fedavg, mean"} <= named
    heights = [
        list(line.get_ydata()) for line in figure.axes[0].lines if line.get_linestyle() == "None" and len(line.get_xdata()) == 3
    ]
    assert heights == [pytest.approx([0.7] * 3), pytest.approx([0.79] * 3)]


def test_no_two_of_many_methods_look_alike() -> None:
    figure = drawn(*(f"method-{at}" for at in range(17)))
    shown = [(line.get_color(), line.get_marker()) for line in figure.legends[0].get_lines()]
    assert len(shown) == 18 and len(set(shown)) == 18
    assert [c for c, _ in shown].count(shown[0][0]) == 1, "the student's colour is its own"


def test_a_panel_outlines_every_region_where_it_lies_as_it_is_and_as_it_was_found() -> None:
    axes = Figure().subplots()
    true, said = torch.zeros(2, 20, 16, dtype=torch.bool), torch.zeros(2, 20, 16, dtype=torch.bool)
    true[0, 2:9, 3:8] = True
    said[0, 3:9, 3:8] = True
    said[1, 12:18, 10:14] = True  # a region that is not there is found
    _panel(axes, torch.zeros(20, 16), true, said)
    places = [(15 - 7, 15 - 3, 2, 8), (15 - 7, 15 - 3, 3, 8), (15 - 13, 15 - 10, 12, 17)]  # rows and columns of what is shown
    outlines = [c for c in axes.collections if any(len(p.vertices) for p in c.get_paths())]
    assert len(outlines) == 3
    for outline, (top, bottom, left, right), colour in zip(outlines, places, (0, 0, 1), strict=True):
        x, y = np.concatenate([p.vertices for p in outline.get_paths()]).T
        assert (x.min(), x.max(), y.min(), y.max()) == (left - 0.5, right + 0.5, top - 0.5, bottom + 0.5)
        assert tuple(np.ravel(outline.get_edgecolor())[:4]) == to_rgba(COLOURS[colour])
    dashes = [c.get_linestyle()[0][1] for c in outlines]
    assert dashes[0] and dashes[1] is None and dashes[2] is None
