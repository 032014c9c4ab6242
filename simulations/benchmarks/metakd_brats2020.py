"""Tumour regions from one to four MR modalities: BraTS 2020. Of MetaKD's table nothing could be found."""

from __future__ import annotations

from simulations.benchmarks.brats import of_year
from simulations.benchmarks.published_metakd import BRATS_2020

BENCHMARK = of_year(
    2020,
    BRATS_2020,
    "MetaKD's figures for this year could not be read. Those of others are second-hand: of 100 cases of another split, and of "
    "one place with every modality in training; or FedMEPD's, whose clients each test the modalities they hold: not on equal "
    "terms.",
)
