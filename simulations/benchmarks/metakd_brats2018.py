"""Tumour regions from one to four MR modalities: BraTS 2018, the year of MetaKD's released code."""

from __future__ import annotations

from simulations.benchmarks.brats import of_year
from simulations.benchmarks.published_metakd import BRATS_2018

BENCHMARK = of_year(
    2018,
    BRATS_2018,
    "Not on equal terms even on BraTS itself. Figures of 66 cases are of validation cases that only the organisers' server "
    "could score, those of 57 of training cases held out by another split: never to be compared with each other. Both are of one "
    "place with every modality in training; ours are learned at institutions that lack modalities, by a network two orders of "
    "magnitude smaller. FedMEPD's institutions are our sites, but each tests the modalities it holds, and its server, which "
    "tests all, is our reference set.",
)
