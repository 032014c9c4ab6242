"""The figure of Dice shows of every method what the method itself says, each in a style of its own."""

from __future__ import annotations

import pandas as pd
import pytest
from matplotlib.figure import Figure

from common.evaluation.results import Row
from simulations.region_figures import draw_boxes
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
