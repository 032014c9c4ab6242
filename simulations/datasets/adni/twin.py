"""A generated twin of ADNI in Flex-MoE's layout, for tests and for people without access. No patient in it is real.

Truth: a subject has five causes of N(0, 1): atrophy, amyloid, genes, vessels, frailty. Its stage is their sum over sqrt(5) plus
noise of ``NOISE``; the lowest ``SHARES[0]`` of stages are CN, then MCI, the highest AD. Regions of the brain show atrophy and
vessels; cerebrospinal fluid shows amyloid and atrophy, APOE genes; a block of variants shows genes; blood pressure, weight,
neurological signs and medical history show vessels and frailty. So each modality tells something, and all together more
than the best. Whoever knew the causes would be right of three in four (the three kinds) and tell AD from CN with an AUROC of
.99; from the causes of one modality .76 (variants), .86 (regions, clinical) or .93 (fluids and APOE).

What the readers must leave out is there too: subjects whose diagnosis changes or is empty, older records with other values,
codes for "not known", two kinds of units, limits of detection, columns that tell the diagnosis (PTCOGBEG, PTADDX, drugs), rows
of strangers, variants that do not vary. A table of fluids names subjects by RID alone. Medical history is asked in ADNI1,
ADNIGO and ADNI2 only, and scanners of a phase add an offset of their own.

Another file is another ``VERSION``. The seed ``FINAL_SEED`` is kept for the table that the benchmark prints; tests and
development use others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from common.errors import ConsiliumError
from simulations.datasets.adni.genotypes import FILE, MAGIC
from simulations.datasets.adni.tables import MEDHIST, NEUROEXM, REGIONS
from simulations.datasets.files import new_twin

VERSION = 1
FINAL_SEED = 2026
SUBJECTS = 900
NOISE, SHARES = 0.5, (0.4, 0.4, 0.2)
CAUSES = ("atrophy", "amyloid", "genes", "vessels", "frailty")
PHASES = {"ADNI1": 0.35, "ADNIGO": 0.1, "ADNI2": 0.3, "ADNI3": 0.25}
HELD = {"image": 0.7, "genomic": 0.65, "fluid": 0.6, "apoe": 0.85, "clinical": 0.95}
"""Part of the layout -> share of subjects who are in it."""
VARIANTS, TELLING = 1200, 300
DATE = "09May2024"
SHRINKING = {
    "ST29SV",
    "ST88SV",
    "ST12SV",
    "ST71SV",
    "ST24CV",
    "ST83CV",
    "ST24TA",
    "ST83TA",
    "ST40CV",
    "ST99CV",
    "ST32TA",
    "ST91TA",
}
GROWING = {"ST37SV", "ST96SV", "ST30SV", "ST89SV"}
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """What the files are drawn from.

    Attributes:
        subjects: One row per subject: PTID, RID, PHASE, DIAGNOSIS (1, 2, 3), fate (steady, changes, empty).
        causes: Name -> cause of each subject (n,).
    """

    subjects: pd.DataFrame
    causes: Mapping[str, Array]


def write_twin(root: Path, *, seed: int, subjects: int = SUBJECTS) -> Truth:
    """Writes the twin; equal arguments give equal files.

    Args:
        root: New folder, the ``adni`` of the layout.
        seed: Seed of everything random; ``FINAL_SEED`` is the table's.
        subjects: Number of subjects.

    Returns:
        What the files were drawn from.

    Raises:
        ConsiliumError: If the folder exists, or there are too few subjects for three parts with every diagnosis.
    """
    if subjects < 100:
        raise ConsiliumError(f"A twin of {subjects} subjects has too few of them in a phase to learn from. Ask for at least 100.")
    rng = np.random.default_rng([VERSION, seed])
    truth = draw_truth(subjects, rng)
    with new_twin(root, version=VERSION, seed=seed, subjects=subjects) as partial:
        for folder in ("diagnosis", "clinical", "biospecimen", "image", "genomic/liftovered"):
            (partial / folder).mkdir(parents=True)
        _write_diagnoses(partial / "diagnosis", truth, rng)
        _write_clinical(partial / "clinical", truth, rng)
        _write_biospecimen(partial / "biospecimen", truth, rng)
        _write_image(partial / "image", truth, rng)
        _write_genotypes(partial, truth, rng)
    return truth


def draw_truth(subjects: int, rng: np.random.Generator) -> Truth:
    """Draws what ails whom, and where it was enrolled."""
    causes = {name: rng.standard_normal(subjects) for name in CAUSES}
    stage = np.sum(list(causes.values()), axis=0) / np.sqrt(len(CAUSES)) + NOISE * rng.standard_normal(subjects)
    limits = np.sqrt(1 + NOISE**2) * norm.ppf(np.cumsum(SHARES)[:2])
    rid = 1 + rng.permutation(max(9000, subjects))[:subjects]
    found = {
        "PTID": [f"{site:03d}_S_{number:04d}" for site, number in zip(rng.integers(2, 130, subjects), rid, strict=True)],
        "RID": rid,
        "PHASE": rng.choice(list(PHASES), subjects, p=list(PHASES.values())),
        "DIAGNOSIS": 1 + np.searchsorted(limits, stage),
        "fate": rng.choice(["steady", "changes", "empty"], subjects, p=[0.9, 0.07, 0.03]),
    }
    return Truth(pd.DataFrame(found), causes)


def _held(truth: Truth, part: str, rng: np.random.Generator) -> NDArray[np.int64]:
    """Returns the rows of the subjects who are in a part of the layout."""
    return np.flatnonzero(rng.random(len(truth.subjects)) < HELD[part])


def _stamped(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Adds an older record of noise before every third row, and a stranger at the end."""
    moment = pd.Timestamp("2015-01-01") + pd.to_timedelta(rng.integers(0, 3000, len(frame)), "D")
    frame = frame.assign(update_stamp=moment.strftime("%Y-%m-%d %H:%M:%S.0"))
    older = frame.iloc[::3].assign(update_stamp="2005-09-01 00:00:00.0")
    values = [str(c) for c in frame if c not in ("PTID", "RID", "PHASE", "update_stamp")]
    older[values] = older[values].sample(frac=1, random_state=int(rng.integers(2**31))).to_numpy()
    stranger = frame.head(1).assign(PTID="999_S_9999", RID=9999)
    return pd.concat([frame, older, stranger], ignore_index=True)


def _write(folder: Path, name: str, frame: pd.DataFrame) -> None:
    frame.to_csv(folder / f"{name}_{DATE}.csv", index=False)


def _write_diagnoses(folder: Path, truth: Truth, rng: np.random.Generator) -> None:
    """Writes one to four visits of every subject; subjects of ADNI1 go on into ADNI2."""
    visits = truth.subjects.loc[np.repeat(np.arange(len(truth.subjects)), rng.integers(2, 5, len(truth.subjects)))]
    number = visits.groupby("PTID").cumcount()
    last = number == visits.groupby("PTID")["PTID"].transform("size") - 1
    code = visits["DIAGNOSIS"].where(~(last & (visits["fate"] == "changes")), 1 + visits["DIAGNOSIS"] % 3)
    code = code.astype(float).mask(last & (visits["fate"] == "empty"))
    phase = visits["PHASE"].mask(last & (visits["PHASE"] == "ADNI1"), "ADNI2")
    listed = visits.assign(DIAGNOSIS=code, PHASE=phase, VISCODE2=number.map({0: "bl", 1: "m12", 2: "m24", 3: "m36"}))
    listed[["PHASE", "PTID", "RID", "VISCODE2", "DIAGNOSIS"]].to_csv(folder / "DXSUM_PDXCONV_22Apr2024.csv", index=False)


def _write_clinical(folder: Path, truth: Truth, rng: np.random.Generator) -> None:
    rows = _held(truth, "clinical", rng)
    who, vessels, frailty = truth.subjects.iloc[rows], truth.causes["vessels"][rows], truth.causes["frailty"][rows]
    head, n = who[["PHASE", "PTID", "RID"]].reset_index(drop=True), len(rows)

    def noisy(cause: Array, share: float = 1.0) -> Array:
        return np.asarray(cause + share * rng.standard_normal(n))

    ill = who["DIAGNOSIS"].to_numpy() == 3
    demography = head.assign(
        PTGENDER=rng.integers(1, 3, n),
        PTDOBYY=(1942 - 4 * noisy(frailty, 1.5)).round().clip(1905, 1975),
        PTHAND=rng.choice([1, 1, 1, 1, 2], n),
        PTMARRY=rng.choice([1, 1, 1, 2, 3, 4, 5, 6], n),
        PTEDUCAT=(16 - noisy(frailty, 1.5)).round().clip(4, 20),
        PTNOTRT=rng.integers(0, 2, n),
        PTCOGBEG=np.where(ill, 2010, -4),
        PTADDX=np.where(ill, 2012, -4),
    )
    _write(folder, "PTDEMOG", _stamped(demography, rng))
    sick = head.assign(**{c: (noisy(frailty if k % 2 else vessels, 2) > 0.8).astype(int) for k, c in enumerate(MEDHIST)})
    _write(folder, "MEDHIST", _stamped(sick[sick["PHASE"] != "ADNI3"], rng))
    signs = head.assign(**{c: 1 + (noisy(frailty, 2) > 1.5).astype(int) for c in NEUROEXM})
    _write(folder, "NEUROEXM", _stamped(signs, rng))
    pounds, fahrenheit, inches = rng.random(n) < 0.6, rng.random(n) < 0.6, rng.random(n) < 0.6
    weight, height, warmth = 75 - 4 * noisy(frailty), 168 + 9 * rng.standard_normal(n), 36.5 + 0.3 * rng.standard_normal(n)
    vitals = head.assign(
        VSWEIGHT=np.where(pounds, weight / 0.45359237, weight).round(1),
        VSWTUNIT=np.where(pounds, 1, 2),
        VSHEIGHT=np.where(rng.random(n) < 0.1, -4, np.where(inches, height / 2.54, height).round(1)),
        VSHTUNIT=np.where(inches, 1, 2),
        VSBPSYS=(135 + 8 * noisy(vessels)).round(),
        VSBPDIA=(75 + 5 * noisy(vessels)).round(),
        VSPULSE=(66 + 8 * rng.standard_normal(n)).round(),
        VSRESP=(16 + 2 * rng.standard_normal(n)).round(),
        VSTEMP=np.where(fahrenheit, 32 + 1.8 * warmth, warmth).round(1),
        VSTMPUNT=np.where(fahrenheit, 1, 2),
    )
    vitals.loc[0, "VSPULSE"] = 900
    _write(folder, "VITALS", _stamped(vitals, rng))
    drugs = head.assign(CMMED=np.where(ill, "Aricept", "Vitamin D"), CMREASON=np.where(ill, "Alzheimer's disease", "-"))
    _write(folder, "RECCMEDS", _stamped(drugs, rng))


def _write_biospecimen(folder: Path, truth: Truth, rng: np.random.Generator) -> None:
    rows = _held(truth, "apoe", rng)
    risk = np.searchsorted([0.4, 1.6], truth.causes["genes"][rows] + rng.standard_normal(len(rows)))
    genotype = np.where(rng.random(len(rows)) < 0.1, "2/3", np.array(["3/3", "3/4", "4/4"])[risk])
    apoe = truth.subjects.iloc[rows][["PHASE", "PTID", "RID"]].reset_index(drop=True)
    _write(folder, "APOERES", _stamped(apoe.assign(GENOTYPE=genotype), rng))
    rows = _held(truth, "fluid", rng)
    n, amyloid, atrophy = len(rows), truth.causes["amyloid"][rows], truth.causes["atrophy"][rows]
    beta = 900 * np.exp(-0.35 * amyloid + 0.25 * rng.standard_normal(n))
    tau = 250 * np.exp(0.25 * atrophy + 0.3 * rng.standard_normal(n))
    fluid = truth.subjects.iloc[rows][["PHASE", "PTID", "RID"]].reset_index(drop=True)
    fluid = fluid.assign(
        ABETA40=np.where(rng.random(n) < 0.5, (15000 + 3000 * rng.standard_normal(n)).round(), np.nan),
        ABETA42=[">1700" if b > 1700 else f"{b:.1f}" for b in beta],
        TAU=tau.round(1),
        PTAU=["<8" if t < 8 else f"{t:.2f}" for t in 0.09 * tau * np.exp(0.1 * amyloid)],
    )
    _write(folder, "UPENNBIOMK_ROCHE_ELECSYS", _stamped(fluid, rng).drop(columns="PTID"))


def _write_image(folder: Path, truth: Truth, rng: np.random.Generator) -> None:
    rows = _held(truth, "image", rng)
    who, n = truth.subjects.iloc[rows][["PHASE", "PTID", "RID"]].reset_index(drop=True), len(rows)
    size, scanner = rng.standard_normal(n), who["PHASE"].map({p: 0.3 * k for k, p in enumerate(PHASES)}).to_numpy()
    regions: dict[str, Array] = {}
    for region in REGIONS:
        told = -truth.causes["atrophy"][rows] * (region in SHRINKING) + truth.causes["atrophy"][rows] * (region in GROWING)
        told = told + truth.causes["vessels"][rows] * (region == "ST128SV")
        z = 0.8 * told + 0.5 * size * (not region.endswith("TA")) + scanner + rng.standard_normal(n)
        regions[region] = (2.5 + 0.2 * z).round(3) if region.endswith("TA") else (4000 + 500 * z).round(1)
    scans = pd.concat([who.assign(OVERALLQC="Pass", ST13TS=0.5), pd.DataFrame(regions)], axis=1)
    scans.loc[rng.random(n) < 0.1, "ST29SV"] = np.nan
    _write(folder, "UCSFFSX7", _stamped(scans, rng))


def _write_genotypes(root: Path, truth: Truth, rng: np.random.Generator) -> None:
    """Writes variants of which the first ``TELLING`` are commoner the more genes a subject has against it."""
    rows = _held(truth, "genomic", rng)
    frequency = rng.uniform(0.1, 0.5, VARIANTS)[:, None]
    pull = np.zeros((VARIANTS, 1))
    pull[:TELLING] = 0.5
    share = 1 / (1 + np.exp(-(np.log(frequency / (1 - frequency)) + pull * truth.causes["genes"][rows])))
    copies = rng.binomial(2, share)
    copies[-20:] = 0  # variants that do not vary
    bits = np.array([3, 2, 0], dtype=np.uint8)[copies]  # none, one, two copies of the first allele
    bits[rng.random(bits.shape) < 0.02] = 1  # not known
    padded = np.zeros((VARIANTS, -(-len(rows) // 4) * 4), dtype=np.uint8)
    padded[:, : len(rows)] = bits
    packed = (padded.reshape(VARIANTS, -1, 4) << np.array([0, 2, 4, 6], dtype=np.uint8)).sum(2).astype(np.uint8)
    (root / f"{FILE}.bed").write_bytes(MAGIC + packed.tobytes())
    names = truth.subjects["PTID"].iloc[rows]
    (root / f"{FILE}.fam").write_text("".join(f"{k} {name} 0 0 0 -9\n" for k, name in enumerate(names, 1)), encoding="utf-8")
    lines = (f"{1 + k % 22}\trs{k}\t0\t{1000 * k}\tA\tG\n" for k in range(VARIANTS))
    (root / f"{FILE}.bim").write_text("".join(lines), encoding="utf-8")
