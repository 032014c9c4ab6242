"""Figures of segmentations: Dice of every test scan by pattern, and one scan with what was found in it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from torch import Tensor

from common.arrays import read_arrays, standardisation_of, tensors
from common.config import Config
from common.data.cohort import Cohort
from common.data.folder import open_cohort
from common.data.manifest import Manifest, hospital_folders, load_manifest
from common.evaluation.predictions import ALL, student_speaker
from common.evaluation.results import Results
from common.models.student import build_student
from server import checkpoint
from simulations.ablations import MAIN
from simulations.finished import Cell
from simulations.scores import spoken

# Okabe and Ito's palette without yellow and black: told apart with any common colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = "osD^vP"
STYLES = tuple((COLOURS[1 + k % 5], MARKERS[k % 6]) for k in range(30))
"""Colour and marker of the methods beside the student: as many pairs as two cycles without a common divisor have."""
DICE = ":dice"
OVERLAY_FILE = "overlay.png"
OVERLAY_WIDTH = 5.0
THIN = 1.0
CUT_SHORT = ", DEBUG RUN: training cut short"
LETTERS_PER_INCH = 10
DOTS_PER_INCH = 150


def draw_boxes(results: Results, cells: Sequence[Cell]) -> Figure | None:
    """Draws the student's Dice of every test scan by pattern, one panel per region, and what other methods reach on average.

    Args:
        results: For the order of the methods.
        cells: Finished cells.

    Returns:
        The figure; None if no student of a segmentation is among the cells.
    """
    frames = [spoken(c.method, c.predictions).assign(method=c.method) for c in cells]
    found = pd.concat(frames) if frames else pd.DataFrame(columns=["output", "method", "model"])
    found = found[found["model"] == found["method"]]  # of the teachers the consilium, not every single one
    found = found[found["output"].str.endswith(DICE)] if len(found) else found
    if not (found["method"] == MAIN).any():
        return None
    order = dict.fromkeys(r.method for r in results.rows)
    others = [m for m in order if m != MAIN and m in set(found["method"])]
    regions = [o.removesuffix(DICE) for o in dict.fromkeys(found["output"])]
    patterns = sorted(found["pattern"].unique(), key=lambda p: (p == ALL, p.count("+"), p))
    figure = Figure(figsize=(3.2 + 0.75 * len(patterns), 1.6 + 2.1 * len(regions)), layout="constrained")
    panels = figure.subplots(len(regions), 1, sharex=True, squeeze=False)[:, 0]
    for axes, region in zip(panels, regions, strict=True):
        part = found[found["output"] == region + DICE]
        mine = part[part["method"] == MAIN].groupby("pattern")["score"].apply(list)
        axes.boxplot(
            [mine[p] for p in patterns],
            positions=range(len(patterns)),
            widths=0.55,
            medianprops={"color": COLOURS[0], "linewidth": 1.8},
            flierprops={"markersize": 3, "markeredgecolor": "#777777"},
        )
        means = part.groupby(["method", "pattern"])["score"].mean()
        for (colour, marker), method in zip(cycle(STYLES), others, strict=False):
            heights = [means.get((method, p), np.nan) for p in patterns]
            axes.plot(range(len(patterns)), heights, marker, color=colour, markersize=4)
        axes.set(ylabel=f"Dice, {region}", ylim=(-0.03, 1.03))
    labels = [("what each\nhas" if p == ALL else p.replace("+", "\n+ ")) for p in patterns]
    panels[-1].set_xticks(range(len(patterns)), labels, fontsize=8)
    panels[-1].set_xlabel("modalities given")
    handles = [Line2D([], [], color=COLOURS[0], label="student (box: scans of all seeds)")]
    handles += [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=f"{method}, mean")
        for (colour, marker), method in zip(cycle(STYLES), others, strict=False)
    ]
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    return figure


@torch.no_grad()
def draw_overlay(config: Config, sites: Path, run: Path, file: Path, *, debug: bool = False) -> None:
    """Draws one test scan with its regions, as they are and as the student finds them in every modality alone and in all.

    The scan is the first tested one whose regions are all there, if there is any; the slice is the one with most of them.

    Args:
        config: Of the run, a segmentation.
        sites: Sites folder, of a simulation: real hospitals' scans stay there.
        run: Finished run directory.
        file: PNG file to write.
        debug: Whether training was cut short, which the figure then says.
    """
    scaling = standardisation_of(checkpoint.load(run).standardisation())
    shown = _scan(config, sites)
    if shown is None:
        return
    manifest, scan = shown
    batch = scan.standardised(scaling).batch()
    student = build_student(config.task, config.model, per_output=config.weights.per_output)
    student.load_state_dict(tensors(read_arrays(run / "student.safetensors")))
    speaker = student_speaker(student.eval())
    names = list(config.task.modalities)
    true = batch.labels[0] > 0
    at = int(true.any(0).sum((0, 1)).argmax())
    held = [n for n, p in zip(names, batch.present[0].tolist(), strict=True) if p]
    columns: list[tuple[str, tuple[str, ...]]] = [(n, (n,)) for n in held]
    if len(held) > 1:
        columns.append(("all", tuple(held)))
    with mpl.rc_context({"font.size": 9}):
        width = max(OVERLAY_WIDTH, 2.4 * len(columns))
        figure = Figure(figsize=(width, 3.3), layout="constrained")
        panels = figure.subplots(1, len(columns), squeeze=False)[0]
        for axes, (name, given) in zip(panels, columns, strict=True):
            kept = torch.tensor([n in given for n in names])
            said = speaker.logits(batch.masked(kept))[0] > 0
            _panel(axes, batch.inputs[given[0]][0, 0, :, :, at], true[..., at], said[..., at])
            axes.set_title(f"given {name}" if name == "all" else f"given {name} alone")
        lines = [Line2D([], [], color=COLOURS[k], label=o) for k, o in enumerate(config.task.outputs)]
        lines += [
            Line2D([], [], color="#777777", linestyle=":", label="reference"),
            Line2D([], [], color="#777777", label="found"),
        ]
        kind = "GENERATED, no real patient" if manifest.data == "generated" else "real patient"
        title = (
            f"{config.name}{CUT_SHORT if debug else ''}: a test scan of {manifest.site} ({kind}), regions found by the student"
        )
        colour = COLOURS[1] if debug else "black"
        figure.suptitle(textwrap.fill(title, int(width * LETTERS_PER_INCH)), fontweight="bold", color=colour)
        figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False)
        figure.savefig(file, dpi=DOTS_PER_INCH)


def _scan(config: Config, sites: Path) -> tuple[Manifest, Cohort] | None:
    """Returns a cohort of one test scan, and its site's manifest."""
    first: tuple[Manifest, Cohort] | None = None
    for folder in hospital_folders(sites):
        manifest = load_manifest(folder)
        cohort = open_cohort(folder, manifest, config.task, config.split, config.seed).part("test")
        for row in range(len(cohort)):
            one = cohort.select(np.array([row]))
            if bool((one.labels > 0).flatten(2).any(2).all()):
                return manifest, one
            first = first or (manifest, one)
    return first


def _panel(axes: Axes, scan: Tensor, true: Tensor, said: Tensor) -> None:
    """Draws a slice [D, H] with the outlines of regions [C, D, H]."""

    def turned(values: Tensor) -> NDArray[np.float32]:
        return values.float().numpy().T[::-1]  # the patient's front is up

    axes.imshow(turned(scan), cmap="gray")
    for k in range(len(true)):
        for regions, style in ((true, ":"), (said, "-")):
            if regions[k].any():
                wide = THIN + 0.8 * (len(true) - 1 - k)  # where two outlines are one, both show
                axes.contour(turned(regions[k]), levels=[0.5], colors=[COLOURS[k]], linestyles=style, linewidths=wide)
    axes.set_axis_off()
