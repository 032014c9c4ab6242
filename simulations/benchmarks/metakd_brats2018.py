"""Tumour regions from one to four MR modalities: BraTS 2018, the year of MetaKD's released code."""

from __future__ import annotations

from simulations.benchmarks.brats import METAKD_TABLE, SHASPEC, dice, of_year

BENCHMARK = of_year(
    2018,
    (
        *dice("ShaSpec", (0.7808, 0.8545, 0.9088), "published", SHASPEC, n=66),
        *dice("ShaSpec", (0.4352, 0.6944, 0.8868), "published", SHASPEC, pattern="flair", n=66),
        *dice("ShaSpec", (0.7329, 0.7865, 0.7382), "published", SHASPEC, pattern="t1ce", n=66),
        *dice("MetaKD", (0.7974, 0.8620, 0.9092), "second-hand", METAKD_TABLE, n=66),
        *dice("MetaKD", (0.4737, 0.7301, 0.8911), "second-hand", METAKD_TABLE, pattern="flair", n=66),
        *dice("MetaKD", (0.7622, 0.8198, 0.7772), "second-hand", METAKD_TABLE, pattern="t1ce", n=66),
    ),
)
