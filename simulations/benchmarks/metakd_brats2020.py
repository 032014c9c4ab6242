"""Tumour regions from one to four MR modalities: BraTS 2020. Of MetaKD's table nothing could be found."""

from __future__ import annotations

from simulations.benchmarks.base import Published
from simulations.benchmarks.brats import DEMOSEG, NOT_READABLE, dice, of_year

BENCHMARK = of_year(
    2020,
    (
        Published("MetaKD", "dice", None, "not found", NOT_READABLE),
        *dice("DeMoSeg", (0.8323, 0.8703, 0.9179), "second-hand", DEMOSEG, n=100),
        *dice("mmFormer", (0.7992, 0.8461, 0.9064), "second-hand", DEMOSEG, n=100),
    ),
)
