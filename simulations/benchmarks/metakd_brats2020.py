"""Tumour regions from one to four MR modalities: BraTS 2020. Of MetaKD's table nothing could be found."""

from __future__ import annotations

from simulations.benchmarks.base import MEAN_OF_PATTERNS, Published
from simulations.benchmarks.brats import DEMOSEG, NOT_READABLE, dice, of_year

BENCHMARK = of_year(
    2020,
    (
        Published("MetaKD", "dice", None, "not found", NOT_READABLE),
        *dice("DeMoSeg", (0.8323, 0.8703, 0.9179), "second-hand", DEMOSEG, n=100),
        *dice("mmFormer", (0.7992, 0.8461, 0.9064), "second-hand", DEMOSEG, n=100),
        *dice("DeMoSeg", (0.6971, 0.8158, 0.8890), "second-hand", DEMOSEG, pattern=MEAN_OF_PATTERNS, n=100),
        *dice("mmFormer", (0.6408, 0.7869, 0.8708), "second-hand", DEMOSEG, pattern=MEAN_OF_PATTERNS, n=100),
    ),
    "MetaKD's figures for this year could not be read. Those of others are second-hand, of 100 cases of another split, and of "
    "one place with every modality in training: not on equal terms.",
)
