"""Ablations: one factor of a benchmark's main setting at a time is taken away or put another way, and what that changes.

An ablation is a run of the five phases under other overrides, on the same seeds, folds and test patients as the student.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import ConsiliumError, nearest

MAIN = "student"
NO_KD = (
    "distill.beta=0", "distill.gamma=0", "distill.delta=0", "distill.epsilon=0", "distill.labels=1", "weights.start=uniform",
)  # fmt: skip
"""Without teachers the labels must do all the work, at the sites too."""
UNIFORM = ("weights=uniform",)
METAKD = ("weights=metakd",)
UNGUARDED = ("weights.guard=false",)
"""Learned weights prevail although the reference set does not resolve that they are better."""


@dataclass(frozen=True)
class Ablation:
    """One other setting of one factor.

    Attributes:
        name: Name of the method; begins with ``student-``.
        factor: What is varied.
        setting: How it is set here, in words.
        overrides: Hydra overrides of the main setting.
        reference: Share of the training patients in the reference set; None is the protocol's own.
        against: Name of another ablation that it is compared with too.
    """

    name: str
    factor: str
    setting: str
    overrides: tuple[str, ...] = ()
    reference: float | None = None
    against: str | None = None


def teachers(name: str, setting: str, **architectures: Sequence[str]) -> Ablation:
    """Returns an ablation of the teachers' number and size.

    Args:
        name: Ending of its name.
        setting: The setting in words.
        **architectures: Kind of modality -> architectures of its ensemble.
    """
    overrides = tuple(f"model.teachers.{kind}=[{','.join(names)}]" for kind, names in architectures.items())
    return Ablation(f"student-teachers-{name}", "teachers", setting, overrides)


def references(*shares: float) -> tuple[Ablation, ...]:
    """Returns ablations of the reference set's size; 0 is none: the student then learns in refine alone."""
    said = {share: f"{share * 100:g} %" if share else "none" for share in shares}
    return tuple(Ablation(f"student-reference-{s * 100:g}", "reference set", said[s], reference=s) for s in shares)


STANDARD = (
    Ablation("student-no-kd", "distillation", "off, labels alone", NO_KD),
    Ablation("student-no-pairwise", "pairwise distillation", "off", ("distill.delta=0",)),
    Ablation("student-ratio", "pairwise distillation", "ratio of the weights, as released", ("distill.pairwise=ratio",)),
    Ablation("student-uniform", "modality weights", "uniform", UNIFORM),
    Ablation("student-metakd", "modality weights", "by MetaKD's released estimator", METAKD),
    Ablation("student-unguarded", "modality weights", "learned, kept in any case", UNGUARDED),
    Ablation("student-metakd-unguarded", "modality weights", "by MetaKD's estimator, kept in any case", (*METAKD, *UNGUARDED)),
    Ablation("student-balance", "balance", "by distillation", ("balance=distillation",)),
    Ablation("student-dropout-batch", "modality dropout", "drawn per batch", ("distill.dropout_by=batch",)),
    Ablation("student-no-dropout", "modality dropout", "none", ("distill.dropout=0",)),
    Ablation("student-no-scale", "consilium's scale and bias", "off, 1 and 0", ("distill.scale=false",)),
    Ablation("student-no-refine", "refine", "off", ("refine.rounds=0",)),
)
"""What every benchmark with several modalities and a reference set can try."""


def standard(*names: str) -> tuple[Ablation, ...]:
    """Returns those of :data:`STANDARD` that are named, in the order of the names."""
    known = {a.name: a for a in STANDARD}
    return tuple(known[name] for name in names)


NEEDS_REFERENCE = (
    "student-uniform", "student-metakd", "student-unguarded", "student-metakd-unguarded", "student-no-refine",
)  # fmt: skip
NO_REFERENCE = tuple(a for a in STANDARD if a.name not in NEEDS_REFERENCE)
"""What one without a reference set and without meta patients can try: its weights stay equal, and refine does all the work."""

JOINT = Ablation("student-joint", "fusion", "joint", ("model.fusion=joint",))
MODULATED = ("balance=gradient-modulation",)
ONE_LOSS = ("model.fusion=late", *NO_KD, *UNIFORM, "distill.alpha=0", "distill.dropout=0")
"""One loss on the sum of what the modalities of a visit say: what gradient modulation was made for."""
MODULATION = (
    Ablation("student-gradient-modulation", "gradient modulation", "on", MODULATED),
    Ablation("student-one-loss", "one loss, no teachers", "without gradient modulation", ONE_LOSS),
    Ablation(
        "student-one-loss-modulated",
        "one loss, no teachers",
        "with gradient modulation",
        (*ONE_LOSS, *MODULATED),
        against="student-one-loss",
    ),
)
"""In the main setting, whose heads have losses and teachers of their own; and where a modality can leave the others behind."""
POOLED = (
    Ablation("student-bottleneck", "fusion", "pooled bottleneck", ("model.fusion=bottleneck",), against=JOINT.name),
    Ablation("student-complete", "teacher of complete visits", "one more, pooled bottleneck", ("model.complete=bottleneck",)),
    *MODULATION,
)
"""The parts of the pooled-bottleneck method, each by itself, where the main setting is without them."""


_PARTS = ("model.student.series=conv", "model.student.table=attention", "model.student.text=attention")
OF_PARTS = (
    Ablation(
        "student-joint-parts",
        "student reads steps, columns and words",
        "joint",
        ("model.fusion=joint", *_PARTS),
        against=JOINT.name,
    ),
    Ablation(
        "student-bottleneck-parts",
        "student reads steps, columns and words",
        "pooled bottleneck, a token each",
        ("model.fusion=bottleneck", *_PARTS),
        against="student-joint-parts",
    ),
)
"""Where the main setting's encoders summarise, a modality is one token: only so does the bottleneck see what it was made for."""

PLAIN_SERIES = Ablation(
    "student-plain-series",
    "series",
    "summaries without trend and counts",
    ("model.teachers.series=[linear]", "model.student.series=compact"),
)
"""Where the main setting has ``trend``: does it matter how a value changes, and that somebody measured it?"""


def of_factors(ablations: Sequence[Ablation], factors: Sequence[str]) -> tuple[Ablation, ...]:
    """Returns the ablations of some factors, of all by default.

    Raises:
        ConsiliumError: If there are none, or none of a factor, naming the nearest.
    """
    known = list(dict.fromkeys(a.factor for a in ablations))
    if not known:
        raise ConsiliumError("This benchmark has no ablations. Give it some: Benchmark.ablations.")
    for factor in factors:
        if factor not in known:
            raise ConsiliumError(f"There is no factor '{factor}' to ablate{nearest(factor, known)}")
    return tuple(a for a in ablations if not factors or a.factor in factors)
