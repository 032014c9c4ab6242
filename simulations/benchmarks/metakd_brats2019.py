"""Tumour regions from one to four MR modalities: BraTS 2019. Of MetaKD's table nothing could be found."""

from __future__ import annotations

from simulations.benchmarks.brats import of_year
from simulations.benchmarks.published_metakd import BRATS_2019

BENCHMARK = of_year(2019, BRATS_2019, "MetaKD's figures for this year could not be read: ours stand alone.")
