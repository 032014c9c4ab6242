"""What MetaKD and its peers report on BraTS and AV-MNIST: tables as they were printed, in percent, read once.

A line of a table holds modalities or a rate, then a column of cells per output: one cell per method. A dash is nothing reported,
a question mark what could not be read. On BraTS 2018 two protocols are in use whose rows are not comparable: 66 validation cases
that the organisers' server scored (ShaSpec's, MetaKD's), and RFNet's split of the training cases. ``n`` tells them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from common.task import pattern_name
from simulations.benchmarks.base import MEAN_OF_PATTERNS, Mark, Published

SCANS = {"Fl": "flair", "T1": "t1", "T1c": "t1ce", "T2": "t2"}
OWN = "each client's own"
"""Pattern of a mean over clients that are tested on the modalities they hold: no combination that ours are tested on."""
NOT_READABLE = "MetaKD (arXiv 2405.07155): its table could not be read, and nobody was found who tells this figure"
ONLINE = "66 validation cases scored online"
SHASPEC = f"ShaSpec, Table 1, without post-processing: {ONLINE}"
SMOOTHED = "ShaSpec with post-processing"
IMPLIED = (
    "the gain of its abstract (ET +3.51, TC +2.19, WT +1.14), which names no method that it is over, added to ShaSpec's mean "
    "with post-processing; over LCKD's mean, itself inferred, it would be 0.6697, 0.8115, 0.8784"
)
LCKD = (
    "the gain of its abstract (ET +3.61, TC +5.99, WT +3.76) over the state of the art, taken to be mmFormer in ShaSpec's table"
)
RFNET = "a figure in DeMoSeg's repository, RFNet's split: "
RFNET_MEANS = "means alone, as DeMoSeg's repository or RFNet's README tells them, RFNet's split: "
FEDMEPD = (
    "FedMEPD (MedIA 2025), as a third party tells its mDSC [inferred: mean of the regions; over clients, each with its own "
    "modalities, or on the server with all]; its released code validates on the test cases, and trains each client with the "
    "modalities of another"
)


class Who(NamedTuple):
    """Whose figures a place in the cells holds.

    Attributes:
        method: Who reached them.
        mark: How good the evidence is.
        source: Where they stand.
        n: Test rows.
    """

    method: str
    mark: Mark
    source: str
    n: int | None = None


def read(
    rows: str,
    methods: Sequence[Who],
    place: Callable[[str], tuple[str, str | None]],
    outputs: Sequence[str | None] = (None,),
    metric: str = "dice",
) -> tuple[Published, ...]:
    """Returns the figures of a table.

    Args:
        rows: Its lines, as the module describes them.
        methods: Whose cells they are, in order.
        place: First cell of a line -> pattern and variant that its figures belong to.
        outputs: Outputs of the task in the order of the columns.
        metric: Metric of all figures.
    """
    found = []
    for line in rows.strip().splitlines():
        first, *columns = (part.strip() for part in line.split("|"))
        pattern, variant = place(first)
        for output, cells in zip(outputs, columns, strict=True):
            for who, cell in zip(methods, cells.split("/"), strict=True):
                figure = Published(who.method, metric, None, "not found", NOT_READABLE, pattern, output, who.n, variant)
                if cell not in ("-", "?"):
                    figure = replace(figure, value=round(float(cell) / 100, 4), mark=who.mark, source=who.source)
                found += [figure] if cell != "-" else []
    return tuple(found)


def _given(modalities: str) -> tuple[str, None]:
    """Returns the pattern of a line, in the main variant."""
    known = {"all4": "all", "mean": MEAN_OF_PATTERNS, OWN: OWN}
    return known.get(modalities) or pattern_name(SCANS[m] for m in modalities.split("+")), None


def _all(methods: str, mark: Mark, source: str, n: int | None) -> list[Who]:
    return [Who(method, mark, source, n) for method in methods.split("/")]


ET_TC_WT, WT_TC_ET = ("et", "tc", "wt"), ("wt", "tc", "et")
SHASPEC_TABLE_1 = """
Fl        | 11.78/23.80/25.69/39.33/43.52/45.11 | 26.06/57.90/53.57/61.21/69.44/69.57 | 52.48/84.39/85.69/86.10/88.68/88.83
T1        | 10.16/8.60/17.29/32.53/41.00/42.58  | 37.39/33.90/47.90/56.55/63.18/64.53 | 57.62/49.51/70.11/67.52/73.44/74.82
T1c       | 62.02/57.64/67.07/72.60/73.29/75.80 | 65.29/59.59/76.83/75.41/78.65/81.40 | 61.53/53.62/73.31/72.22/73.82/74.95
T2        | 25.63/22.82/28.97/43.05/46.31/46.21 | 57.20/54.67/57.49/64.20/69.03/69.05 | 80.96/79.83/82.24/81.15/83.99/84.90
Fl+T1     | 10.71/27.96/32.13/42.96/44.76/44.81 | 41.12/61.14/60.68/65.91/72.67/72.77 | 64.62/85.71/88.24/87.06/89.76/89.86
Fl+T1c    | 66.10/68.36/70.30/75.07/75.60/77.76 | 71.49/75.07/80.62/77.88/84.50/84.75 | 68.99/85.93/88.51/87.30/90.06/90.12
Fl+T2     | 30.22/32.31/33.84/47.52/47.20/47.22 | 57.68/62.70/61.16/69.75/72.93/72.93 | 82.95/87.58/88.28/87.59/90.02/90.09
T1+T1c    | 66.22/61.11/69.06/74.04/75.76/78.26 | 72.46/67.55/78.72/78.59/82.10/82.64 | 68.47/64.22/77.18/74.42/78.74/78.88
T1+T2     | 32.39/24.29/32.01/44.99/46.84/49.87 | 60.92/56.26/62.19/69.42/71.38/71.39 | 82.41/81.56/84.78/82.20/86.03/86.09
T1c+T2    | 67.83/67.83/69.71/74.51/75.95/78.59 | 76.64/73.92/80.20/78.61/83.82/84.08 | 82.48/81.32/85.19/82.99/85.42/86.43
Fl+T1+T1c | 68.54/68.60/70.78/75.47/76.42/78.51 | 76.01/77.05/81.06/79.80/85.23/85.36 | 72.31/86.72/88.73/87.33/90.29/90.36
Fl+T1+T2  | 31.07/32.34/36.41/47.70/46.55/46.56 | 60.32/63.14/64.38/71.52/73.97/73.99 | 83.43/88.07/88.81/87.75/90.36/90.37
Fl+T1c+T2 | 68.72/68.93/70.88/75.67/75.99/78.15 | 77.53/76.75/80.72/79.55/85.26/85.67 | 83.85/88.09/89.27/88.14/90.78/90.79
T1+T1c+T2 | 69.92/67.75/70.10/74.75/76.37/78.35 | 78.96/75.28/80.33/80.39/84.18/84.27 | 83.94/82.32/86.01/82.71/86.47/86.51
all4      | 70.24/69.03/71.13/77.61/78.08/78.47 | 79.48/77.71/80.86/85.78/85.45/85.75 | 84.74/88.46/89.45/89.64/90.88/90.88
mean      | 46.10/46.76/51.02/59.85/61.58/63.08 | 62.57/64.84/69.78/72.97/77.45/77.88 | 74.05/79.16/84.39/82.94/85.92/86.26
"""
METAKD_TABLE_1 = """
all4      | 79.74 | 86.20 | 90.92
Fl+T1+T1c | 77.66 | 85.36 | 90.70
T1c       | 76.22 | 81.98 | 77.72
Fl        | 47.37 | 73.01 | 89.11
"""
RFNET_2018 = """
T2        | 84.30/85.64/86.40/87.22 | 67.62/68.04/69.43/72.12 | 40.17/40.32/45.76/45.07
T1c       | 74.93/77.11/78.47/81.99 | 80.99/80.68/82.32/84.81 | 69.43/76.02/77.10/78.98
T1        | 74.68/77.01/78.79/80.57 | 64.42/64.61/67.47/70.49 | 34.43/32.74/42.37/45.63
Fl        | 86.46/87.17/87.65/89.53 | 64.89/64.53/68.60/71.99 | 33.92/35.62/42.88/42.81
T1c+T2    | 86.39/86.87/87.94/88.14 | 83.27/82.06/84.35/84.92 | 73.01/75.82/79.39/77.77
T1+T1c    | 78.59/80.52/81.90/83.51 | 82.22/82.03/83.71/85.00 | 70.73/75.63/77.90/80.48
Fl+T1     | 88.78/88.85/89.56/90.29 | 71.59/70.77/73.81/75.68 | 39.68/39.36/47.34/51.08
T1+T2     | 86.15/86.92/87.48/87.87 | 70.89/70.42/73.24/75.28 | 41.42/42.45/48.98/49.72
Fl+T2     | 89.12/89.48/89.93/90.50 | 70.82/70.44/73.38/74.80 | 43.77/43.46/48.59/51.08
Fl+T1c    | 89.17/89.51/89.90/90.11 | 82.94/81.98/83.71/85.00 | 72.84/76.33/77.84/78.79
Fl+T1+T1c | 89.71/89.66/90.25/90.19 | 83.77/82.79/84.73/85.27 | 73.17/76.69/78.42/80.08
Fl+T1+T2  | 89.68/89.76/90.23/90.25 | 73.09/72.01/75.37/76.21 | 44.79/44.00/50.17/53.12
Fl+T1c+T2 | 90.06/90.11/90.73/90.48 | 83.54/82.05/84.42/84.93 | 73.13/75.84/78.69/79.38
T1+T1c+T2 | 86.78/87.07/88.04/88.30 | 83.97/82.45/84.56/85.10 | 72.56/76.18/78.51/79.47
all4      | 90.26/90.14/90.74/90.49 | 84.02/82.36/84.61/85.29 | 73.21/76.43/78.33/80.01
mean      | 85.67/86.38/87.20/87.96 | 76.53/75.82/78.25/79.79 | 57.12/59.12/63.49/64.90
"""
RFNET_2020 = """
T2        | 86.05/86.14/87.62/88.31 | 71.02/70.86/72.26/73.83 | 46.29/46.34/51.28/53.84
T1c       | 76.77/78.47/80.14/82.10 | 81.51/83.99/83.38/85.70 | 74.85/80.08/78.62/81.42
T1        | 77.16/77.97/79.79/81.16 | 66.02/65.92/66.39/71.67 | 37.30/38.03/39.74/45.17
Fl        | 87.32/87.40/88.07/89.83 | 69.19/68.79/72.45/75.01 | 38.15/42.37/42.29/47.75
T1c+T2    | 87.84/87.81/88.70/89.37 | 83.45/84.75/84.55/87.06 | 75.93/79.39/80.49/83.46
T1+T1c    | 81.12/81.75/83.09/84.05 | 83.40/83.56/83.18/86.56 | 78.01/80.07/80.82/82.24
Fl+T1     | 89.73/89.79/90.10/91.12 | 73.07/73.84/73.72/77.51 | 40.98/45.92/49.50/56.62
T1+T2     | 87.73/87.81/88.72/89.11 | 73.13/73.41/73.43/75.58 | 45.65/46.76/53.05/57.48
Fl+T2     | 89.87/89.85/90.38/91.09 | 74.14/74.61/75.66/77.05 | 49.32/48.64/54.36/58.18
Fl+T1c    | 89.89/89.34/90.64/91.34 | 84.65/84.78/85.96/87.19 | 76.67/81.89/80.99/83.95
Fl+T1+T1c | 90.69/90.11/91.08/91.58 | 85.07/85.22/85.75/87.16 | 76.81/82.09/82.27/84.08
Fl+T1+T2  | 90.60/90.57/91.05/91.30 | 75.19/75.58/75.69/77.80 | 49.92/50.29/53.87/59.88
Fl+T1c+T2 | 90.68/90.38/91.33/91.68 | 84.97/85.32/86.04/87.18 | 77.12/78.73/81.14/84.11
T1+T1c+T2 | 88.25/88.16/89.01/89.72 | 83.47/84.17/84.34/87.30 | 76.99/79.29/81.24/84.24
all4      | 91.11/90.64/91.60/91.79 | 85.21/84.61/85.75/87.03 | 78.00/79.92/83.00/83.23
mean      | 86.98/87.08/88.09/88.90 | 78.23/78.69/79.24/81.58 | 61.47/64.08/66.42/69.71
"""
RFNET_MEANS_2018 = "mean | 86.60/78.60/80.10/84.37 | 76.00/59.70/64.00/69.78 | 60.01/48.10/50.00/51.02"
RFNET_MEANS_2020 = "mean | 87.58/75.10/81.24/84.17 | 79.67/65.45/67.19/73.45 | 64.87/47.73/48.55/55.49"
FEDMEPD_2018 = f"""
{OWN} | 75.70/66.95/59.04/71.23/69.18
all4 | 84.98/82.56/80.10/79.93/84.89
"""
FEDMEPD_2020 = f"""
{OWN} | 75.90/71.38/61.91/73.80/-
all4 | 89.39/88.07/87.61/86.88/-
"""
SHASPEC_TABLE_3 = """
5  | 92.35/98.22/89.78/89.11/90.00/92.89/93.33/?
10 | 92.35/98.22/89.33/89.78/91.11/93.11/93.56/94.22
15 | 92.35/98.22/89.78/88.67/92.23/93.33/93.78/94.89
20 | 92.35/98.22/88.89/89.56/92.67/94.44/94.67/?
"""


def _of_rfnets_split(rows: str, means: str, cases: str, n: int) -> tuple[Published, ...]:
    """Returns the figures of a year on RFNet's split."""
    four, others = "RFNet/mmFormer/GSS/DeMoSeg", "MAVP/HeMIS/U-HVED/RobustSeg"
    return (
        *read(rows, _all(four, "second-hand", RFNET + cases, n), _given, WT_TC_ET),
        *read(means, _all(others, "second-hand", RFNET_MEANS + cases, n), _given, WT_TC_ET),
    )


_FEDERATED = _all("FedMEPD/local (FedMEPD)/FedAvg (FedMEPD)/FedMSplit (FedMEPD)/FedIoT (FedMEPD)", "second-hand", FEDMEPD, None)
BRATS_2018 = (
    *read(
        SHASPEC_TABLE_1,
        [
            *_all("UHeMIS/UHVED/RbSeg/mmFormer", "second-hand", SHASPEC, 66),
            Who("ShaSpec", "published", SHASPEC, 66),
            Who(SMOOTHED, "published", f"ShaSpec, Table 1, the rows with post-processing: {ONLINE}", 66),
        ],
        _given,
        ET_TC_WT,
    ),
    *read("mean | 63.46 | 78.96 | 86.70", [Who("LCKD", "inferred", LCKD, 66)], _given, ET_TC_WT),
    *read("mean | 66.59 | 80.07 | 87.40", [Who("MetaKD", "inferred", IMPLIED, 66)], _given, ET_TC_WT),
    *read(
        METAKD_TABLE_1,
        [Who("MetaKD", "second-hand", "'expected table' in a third party's README, unverified", 66)],
        _given,
        ET_TC_WT,
    ),
    *_of_rfnets_split(RFNET_2018, RFNET_MEANS_2018, "three folds, 57 cases each", 57),
    *read(FEDMEPD_2018, _FEDERATED, _given),
)
BRATS_2019 = (Published("MetaKD", "dice", None, "not found", NOT_READABLE),)
BRATS_2020 = (
    Published("MetaKD", "dice", None, "not found", NOT_READABLE),
    *_of_rfnets_split(RFNET_2020, RFNET_MEANS_2020, "100 cases", 100),
    *read(FEDMEPD_2020, _FEDERATED, _given),
)


def avmnist(variant: Mapping[str, str | None]) -> tuple[Published, ...]:
    """Returns what is reported where sound is missing in training.

    Args:
        variant: Rate in percent -> variant of the benchmark.
    """
    table = "ShaSpec, Table 3"
    alone = f"{table}: probably all 10,000 images [inferred: the others are multiples of 1/450, this one is not]"
    told = "MetaKD (arXiv 2405.07155), as a third party tells its Table 3a: 450 images [inferred: a multiple of 1/450]"
    methods = [
        Who("LowerB, image network alone", "published", alone, 10_000),
        Who("UpperB, sound at test too", "published", f"{table}: 450 images, with their sound [inferred]", 450),
        *_all("AE/GAN/Full2miss/SMIL", "second-hand", f"{table}: 450 images", 450),
        Who("ShaSpec", "published", f"{table}: 450 images", 450),
        Who("MetaKD", "second-hand", told, 450),
    ]
    return read(SHASPEC_TABLE_3, methods, lambda rate: ("all", variant[rate]), metric="accuracy")
