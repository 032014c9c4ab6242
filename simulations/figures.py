"""The figures of a benchmark run: what each method makes of each pattern, modality weights over time, learning curves.

Every figure says by itself what it shows, on which data and how many; colours are safe for colour-blind readers.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from common.evaluation.metrics import LOWER_IS_BETTER
from common.evaluation.results import Results, Weight
from simulations.benchmarks.base import CUSTOM, MEAN_OF_PATTERNS
from simulations.findings import AblationFinding, findings
from simulations.finished import Cell
from simulations.region_figures import COLOURS, CUT_SHORT, DOTS_PER_INCH, LETTERS_PER_INCH, MARKERS, draw_boxes
from simulations.scores import ALL, OURS, TEACHERS
from simulations.tables import EQUAL, NAMES, difference, main_metrics

LINES = ("-", "--", "-.", ":")
CELL, MOMENT = ["seed", "fold"], ["phase", "round", "step"]
PHASES = ("teaching", "distilling", "refining")
BY_EPOCH = ("distilling", "train")  # the other phases go by rounds
LOSSES = {"train": "train\n(all terms\nof the loss)", "validation": "validation\n(task loss)"}
STYLE: Any = {"font.size": 9, "axes.titlesize": 9, "figure.titlesize": 11, "axes.spines.top": False, "axes.spines.right": False}
EFFECT_STYLES = {"helps": (COLOURS[0], "o"), "hurts": (COLOURS[1], "s"), "not resolved": ("#777777", "D")}
EFFECT_WORDS = {
    "helps": "the main setting is better",
    "hurts": "the main setting is worse",
    "not resolved": "not resolved",
}
LEAST_WIDTH = 6.5
MOST_PANELS = 20
MOST_OUTPUTS = 6
HEADROOM = 1.12  # for the names of the phases, above the curves
LEAST_SPAN = 0.2  # of the axis of a loss, as a share of its upper end


def draw_figures(results: Results, cells: Sequence[Cell], folder: Path) -> list[Path]:
    """Draws all figures that the run has data for.

    Args:
        results: What the run found.
        cells: Its finished cells, for the learning curves.
        folder: Where the PNG files go: ``patterns-METRIC.png``, ``dice.png`` of a segmentation, ``weights.png``,
            ``curves-METHOD.png``.

    Returns:
        The files.
    """
    figures: dict[str, Figure] = {}
    with mpl.rc_context(STYLE):
        pooled = [r for r in results.rows if r.site is None and r.fold is None and r.output is None and r.published is None]
        for metric in dict.fromkeys(r.metric for r in pooled):
            figures[f"patterns-{metric}"] = _heat_map(
                results, pd.DataFrame([dict(r) for r in pooled if r.metric == metric]), metric
            )
        boxes = draw_boxes(results, cells)
        if boxes is not None:
            _title(boxes, results, f"Dice of every test scan by modality pattern, {_seeds(results)}")
            figures["dice"] = boxes
        weights = _learned(results)
        if len(weights):
            figures["weights"] = _weights(results, weights)
        for method in dict.fromkeys(c.method for c in cells):
            curves = _moving(c for c in cells if c.method == method)
            if len(curves):
                figures[f"curves-{method}"] = _curves(results, method, curves)
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", dpi=DOTS_PER_INCH)
    return [folder / f"{name}.png" for name in figures]


def draw_ablation(results: Results, folder: Path) -> list[Path]:
    """Draws what every ablated factor is worth, one PNG file ``ablation-METRIC.png`` for each of the first two metrics.

    Args:
        results: What the ablation found.
        folder: Where the files go.

    Returns:
        The files; none of a metric in which nothing could be compared.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with mpl.rc_context(STYLE):
        for metric in main_metrics(results):
            found = [f for f in findings(results, metric) if f.difference is not None]
            if found:
                _forest(results, found, metric).savefig(folder / f"ablation-{metric}.png", dpi=DOTS_PER_INCH)
                files.append(folder / f"ablation-{metric}.png")
    return files


def _forest(results: Results, found: Sequence[AblationFinding], metric: str) -> Figure:
    """Draws one line per setting: the paired difference with its interval, settings of one factor beside each other."""
    figure = Figure(figsize=(9.5, 2.0 + 0.3 * len(found)), layout="constrained")
    axes = figure.add_subplot()
    name = NAMES.get(metric, metric)
    axes.axvline(0, color="#777777", linewidth=1, zorder=0)
    for at, finding in enumerate(found):
        bounds, effect = finding.difference, finding.effect
        if bounds is None or effect is None:
            continue
        colour, marker = EFFECT_STYLES[effect]
        axes.plot([bounds.low, bounds.high], [at, at], color=colour, linewidth=1.5)
        axes.plot(bounds.estimate, at, marker, color=colour, markersize=5)
        axes.text(1.01, at, difference(bounds), transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=colour)
    for at in [i for i in range(1, len(found)) if found[i].factor != found[i - 1].factor]:
        axes.axhline(at - 0.5, color="#dddddd", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(found)), [f"{f.factor}: {f.setting}" for f in found])
    axes.set(ylim=(len(found) - 0.5, -0.5), xlabel=f"{name} of the main setting minus {name} of the ablated one")
    axes.tick_params(axis="y", length=0)
    shown = [e for e in EFFECT_STYLES if e in {f.effect for f in found}]
    handles = [Line2D([], [], color=EFFECT_STYLES[e][0], marker=EFFECT_STYLES[e][1], label=EFFECT_WORDS[e]) for e in shown]
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(handles), frameon=False)
    what = f"paired differences in {name} on the same patients, 95 % intervals, {_seeds(results)}"
    _title(figure, results, f"what every part of the main setting is worth: {what}")
    return figure


def _title(figure: Figure, results: Results, what: str) -> None:
    """Writes what the figure shows and on which data; generated data and debug runs are marked in a colour of their own."""
    variant = next((f", variant {r.variant}" for r in results.rows if r.variant), "")
    across = int(figure.get_figwidth() * LETTERS_PER_INCH)
    own = results.benchmark == CUSTOM
    name = str(results.environment.get("title", CUSTOM)).partition(":")[0] if own else results.benchmark
    debug = CUT_SHORT if results.environment.get("debug") else ""
    title = f"{textwrap.fill(f'{name}{variant}{debug}', across)}\n{textwrap.fill(what, across)}"
    figure.suptitle(title, fontweight="bold", color=COLOURS[1] if debug else "black")
    generated = results.data == "generated"
    kind = "GENERATED DATA, no real patients" if generated else "Your data" if own else "Real data"
    figure.supxlabel(
        textwrap.fill(f"{kind}: {results.environment.get('data_version', '')}", int(1.2 * across)),
        fontsize=8,
        color=COLOURS[1] if generated else "#444444",
        fontweight="bold" if generated else "normal",
    )


def _heat_map(results: Results, rows: pd.DataFrame, metric: str) -> Figure:
    """Draws method x pattern: what cannot be told from the student is marked, no answer hatched."""
    rows = rows[~rows["method"].str.contains("/")]
    if len(set(rows["pattern"]) - {ALL}) == 1:  # one modality is what each has: the same column twice
        rows = rows.assign(pattern=ALL).drop_duplicates("method")
    table = rows.pivot(index="method", columns="pattern", values="mean")
    patterns = sorted(table.columns, key=lambda p: (p != ALL, p != MEAN_OF_PATTERNS, p.count("+"), p))
    table = table.loc[list(dict.fromkeys(rows["method"])), patterns]
    n = rows.groupby("pattern")["n"].max()
    against = [c for c in results.comparisons if c.metric == metric and c.output is None]
    unresolved = {(c.b, c.pattern) for c in against if c.ci95[0] <= 0 <= c.ci95[1]}

    width = max(LEAST_WIDTH, 3.2 + 0.95 * len(patterns))
    figure = Figure(figsize=(width, 2.4 + 0.36 * len(table)), layout="constrained")
    axes = figure.add_subplot()
    colours = mpl.colormaps["cividis"].with_extremes(bad=(0, 0, 0, 0))
    axes.patch.set(facecolor="white", edgecolor="#cccccc", hatch="////", linewidth=0)  # the map has a grey of its own
    image = axes.imshow(np.ma.masked_invalid(table.to_numpy()), cmap=colours, aspect="auto")
    lower, middle = metric in LOWER_IS_BETTER, np.nanmean([table.min(axis=None), table.max(axis=None)])
    for (i, j), value in np.ndenumerate(table.to_numpy()):
        if not np.isnan(value):
            colour = "black" if value > middle else "white"
            mark = " ≈" if (str(table.index[i]), patterns[j]) in unresolved else ""
            axes.text(j, i, f"{value:.3f}{mark}", ha="center", va="center", color=colour)
    words = {ALL: "all\n(what each has)", MEAN_OF_PATTERNS: textwrap.fill(MEAN_OF_PATTERNS, 12)}
    labels = [words.get(p, p.replace("+", "\n+ ")) + f"\nn = {n[p]:,}" for p in patterns]
    axes.set_xticks(range(len(patterns)), labels, fontsize=8)
    axes.set_yticks(range(len(table)), table.index)
    signs = ["n: test visits", "hatched: cannot answer"]
    if against:
        tested = "'all', the mean" if MEAN_OF_PATTERNS in patterns else "'all'"
        signs.append(f"≈: difference from {OURS} not resolved (tested under {tested} and for teachers of one modality)")
    legend = f"modalities given to the method; {'; '.join(signs)}"
    axes.set_xlabel(textwrap.fill(legend, int(width * LETTERS_PER_INCH)))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    label = f"{NAMES.get(metric, metric)}{_unit(results, metric)} ({'lower' if lower else 'higher'} is better)"
    figure.colorbar(image, ax=axes, label=label, shrink=0.9)
    _title(figure, results, f"{NAMES.get(metric, metric)} per method and modality pattern, mean over {_seeds(results)}")
    return figure


def _unit(results: Results, metric: str) -> str:
    """Returns the unit of an error of a regression, if all outputs share one."""
    units = set(results.environment.get("units", {}).values())
    return f" in {units.pop()}" if metric in ("mae", "rmse") and len(units) == 1 else ""


def _learned(results: Results) -> pd.DataFrame:
    """Returns the modality weights of the methods that move them, apart for a few outputs, of more the mean over them."""
    frame = pd.DataFrame([dict(w) for w in results.weights], columns=list(Weight.model_fields))
    if 1 < frame["output"].nunique() <= MOST_OUTPUTS:
        frame["method"] += (": " + frame["output"]).fillna("")
    frame["phase"] = pd.Categorical(frame["phase"], [*PHASES, *sorted(set(frame["phase"]) - set(PHASES))], ordered=True)
    keys = ["method", "modality", *MOMENT, *CELL]
    frame = frame.groupby(keys, observed=True, sort=False)["value"].mean().reset_index()
    moves = frame.groupby(["method", "modality", *CELL])["value"].transform("nunique") > 1
    return frame[moves.groupby(frame["method"]).transform("any")]


def _weights(results: Results, frame: pd.DataFrame) -> Figure:
    """Draws the modality weights of each method over the updates of its run."""
    methods, modalities = list(dict.fromkeys(frame["method"])), sorted(frame["modality"].unique())
    across = min(4, len(methods))
    down = math.ceil(len(methods) / across)
    figure = Figure(figsize=(max(LEAST_WIDTH, 2.2 + 3.2 * across), 1.2 + 2.9 * down), layout="constrained")
    grid = figure.subplots(down, across, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for axes in panels[len(methods) :]:
        axes.set_axis_off()
    for axes, method in zip(panels, methods, strict=False):
        part = frame[frame["method"] == method]
        part = part.assign(at=part.groupby(MOMENT, observed=True).ngroup())
        phases = part.drop_duplicates("at").sort_values("at")["phase"].tolist()
        # A cell that ends early keeps its last weights; without them the mean would jump to that of the longer cells.
        part = part.pivot(index="at", columns=["modality", *CELL], values="value").ffill()
        for k, modality in enumerate(modalities):
            _band(axes, part[modality].stack(CELL, future_stack=True).rename("value").reset_index(), "at", "value", k, modality)
        axes.axhline(1 / len(modalities), color="#777777", linestyle=":", linewidth=1, label="uniform")
        for start in [i for i in range(len(phases)) if i == 0 or phases[i] != phases[i - 1]]:
            axes.axvline(start, color="#bbbbbb", linewidth=0.8, zorder=0)
            axes.text(start, 1.0, f" {phases[start]}", transform=axes.get_xaxis_transform(), va="top")
        last = part.iloc[-1].groupby(level=CELL)
        n, equal = last.ngroups, int((last.max() - last.min() <= EQUAL).sum())
        cells = "" if n == 1 else f" in {equal} of {n} cells"
        kept = f"\nin the end equal weights are kept{cells}" if equal else ""
        axes.set(title=f"{method} ({_count(n)}){kept}", xlabel="updates of the weights since the start")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_ylim(0, HEADROOM * panels[0].get_ylim()[1])  # all panels share it
    for axes in grid[:, 0]:
        axes.set(ylabel="modality weight (they sum to 1)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    _title(figure, results, "modality weights over time, mean over cells (seeds x folds), band: ± 1 SD")
    return figure


def _moving(cells: Iterable[Cell]) -> pd.DataFrame:
    """Returns the losses of cells, ``at`` an epoch or a round, without those that were taken only once."""
    curves = [{**v, "at": v.get("step", v["round"]), "cell": (c.seed, c.fold)} for c in cells for v in c.curves]
    frame = pd.DataFrame(curves, columns=["phase", "group", "split", "at", "loss", "cell"])
    return frame[frame.groupby(["phase", "group"])["at"].transform("nunique") > 1].copy()


def _curves(results: Results, method: str, curves: pd.DataFrame) -> Figure:
    """Draws one panel per phase and group: the loss on each split, as far as half of the cells went."""
    n, places = curves["cell"].nunique(), curves.groupby("phase")["group"].transform("nunique")
    many = places > MOST_PANELS
    curves.loc[many, "cell"] = pd.Series(list(zip(curves["cell"], curves["group"], strict=True)), curves.index)
    curves["group"] = curves["group"].mask(many, "mean over " + places.astype(str) + " places")
    panels = sorted(
        {(str(p), str(g)) for p, g in zip(curves["phase"], curves["group"], strict=True)},
        key=lambda panel: (PHASES.index(panel[0]) if panel[0] in PHASES else len(PHASES), panel),
    )
    across = min(4, len(panels))
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(max(LEAST_WIDTH, 1.6 + 2.5 * across), 1.3 + 2.1 * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    for axes, (phase, group) in zip(grid.flat, panels, strict=False):
        part = curves[(curves["phase"] == phase) & (curves["group"] == group)]
        for k, (split, label) in enumerate(LOSSES.items()):
            line = part[part["split"] == split]
            counts = line.groupby("at")["cell"].transform("nunique")
            _band(axes, line[2 * counts >= line["cell"].nunique()], "at", "loss", k, label)
        told = [split for split in LOSSES if (part["split"] == split).any()]
        only = f"\n({told[0]} only)" if len(told) == 1 and curves["split"].nunique() > 1 else ""
        low, high = axes.get_ylim()
        spare = max(LEAST_SPAN * abs(high) - (high - low), 0) / 2
        axes.set_ylim(low - spare, high + spare)  # what hardly moves is not to look as if it did
        axes.set(title=f"{phase}: {group}{only}", xlabel="epoch" if phase in BY_EPOCH else "round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("loss")
    handles: dict[str, Any] = {}
    for axes in grid.flat:
        handles |= {str(line.get_label()): line for line in axes.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False)
    means = f"mean over {n} cells (seeds x folds) while half of them train, band: ± 1 SD"
    what = f"learning curves of {method}, {means if n > 1 else _count(n)}"
    both = "; train and validation are different losses: compare each with itself" if curves["split"].nunique() > 1 else ""
    only = (
        "" if method == TEACHERS or set(curves["phase"]) != {PHASES[0]} else "; its teachers alone: it told no losses of its own"
    )
    _title(figure, results, what + both + only)
    return figure


def _band(axes: Axes, part: pd.DataFrame, x: str, y: str, k: int, label: str) -> None:
    """Draws the mean over cells with a band of one standard deviation, which ends at 0; few points get markers."""
    if part.empty:
        return
    grouped = part.groupby(x)[y]
    mean, sd = grouped.mean(), grouped.std().fillna(0)
    colour = COLOURS[k % len(COLOURS)]
    marker = MARKERS[k % len(MARKERS)] if len(mean) <= 15 else None
    line = LINES[k % len(LINES)]
    axes.plot(mean.index, mean, line, color=colour, marker=marker, markersize=3.5, linewidth=1.5, label=label)
    axes.fill_between(mean.index, np.maximum(mean - sd, 0), mean + sd, color=colour, alpha=0.18, linewidth=0)


def _count(cells: int) -> str:
    return f"{cells} cell{'s' if cells != 1 else ''}"


def _seeds(results: Results) -> str:
    return f"{len(results.seeds)} seed{'s' if len(results.seeds) != 1 else ''}"
