"""Tumour regions from one to four MR modalities: BraTS 2019. Of MetaKD's table nothing could be found."""

from __future__ import annotations

from simulations.benchmarks.base import Published
from simulations.benchmarks.brats import NOT_READABLE, of_year

BENCHMARK = of_year(
    2019,
    (Published("MetaKD", "dice", None, "not found", NOT_READABLE),),
    "MetaKD's figures for this year could not be read: ours stand alone.",
)
