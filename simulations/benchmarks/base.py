"""What a benchmark is, and how the ones in this folder are found.

A benchmark is one module beside this one that holds ``BENCHMARK = Benchmark(...)``; nothing else has to know of it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import simulations.benchmarks
from common.errors import ConsiliumError, nearest
from common.task import TaskType
from simulations.ablations import Ablation

CUSTOM = "custom"
"""Name of the benchmark that is made of the user's own task and sites (``simulations.custom``); no module here has it."""

MEAN_OF_PATTERNS = "mean of all patterns"
"""Pattern of a published figure that is the plain mean over every combination of modalities."""

METHODS = ("student", "teachers", "student-uniform", "student-no-kd", "fedavg", "local", "central", "central-full")
"""Methods that most benchmarks compare, in the order of their tables."""
AT_ONE_PLACE_TOO = (*METHODS, "central-kd")
"""And the protocol of papers that are not federated."""

Mark = Literal["published", "second-hand", "not found", "measured", "inferred"]


@dataclass(frozen=True)
class Split:
    """Which sites are written; cells of one split open the same ones.

    Attributes:
        seed: Seed of the split.
        fold: Test fold.
        variant: Protocol of the benchmark; None is the main one.
        masked: Whether the hospitals lack the modalities that the protocol takes from them.
        reference: Share of the training patients in the reference set, as near as whole sites or visits allow; with 0 there is
            none. None is the protocol's own.
    """

    seed: int
    fold: int
    variant: str | None = None
    masked: bool = True
    reference: float | None = None

    @property
    def name(self) -> str:
        """Name of its folder; all splits of a run are of one variant."""
        reference = "" if self.reference is None else f"-reference-{self.reference * 100:g}"
        return f"{self.seed}-{self.fold}{'' if self.masked else '-full'}{reference}"


def refuse_reference(name: str, split: Split) -> None:
    """Refuses a reference set where the protocol of a benchmark has none.

    Raises:
        ConsiliumError: If the split asks for one.
    """
    if split.reference:
        raise ConsiliumError(f"{name} has no reference set: its students learn in refine alone.")


Prepare = Callable[[Path, Split], dict[str, Any]]
"""``prepare(folder, split)`` writes the sites of a split as sub-folders of ``folder``. Returns a JSON-able mapping:

* ``n``: role (``train``, ``reference``, ``test``; ``hospitals`` if they train and test) -> what (stays, patients, deaths, sites
  ...) -> how many in this fold;
* ``exclusions``: reason -> how many it removed from the data set, the same for every seed and fold;
* ``data_checksum``: hex digest of what was read and how it was split;
* ``warnings``, if there are any: what people should know of the data, one sentence each;
* ``units``, if there are any: output of a regression -> UCUM unit in which it is counted;
* ``data`` and ``data_version``, where they are not the benchmark's own: ``generated`` if a twin took the place of data that are
  not there.

It raises ``ConsiliumError`` if the data are not there, and holds no state: it runs in a process of its own.
"""


@dataclass(frozen=True)
class Published:
    """One figure that others reported, to stand beside ours.

    Attributes:
        method: Who reached it.
        metric: Name of the metric.
        value: The figure in [0, 1] or in the task's units; None if it could not be found.
        mark: How good the evidence is; ``measured``: by us, beforehand, with a model that is no part of this project;
            ``inferred``: our conclusion from what is published.
        source: Where it stands.
        pattern: Modality pattern that it was tested on, or ``MEAN_OF_PATTERNS``.
        output: Output of the task; None is all of them.
        n: Test rows; None if not told. A figure of as many rows as a site of ``Benchmark.apart`` stands beside ours on that site.
        variant: Protocol of the benchmark that it belongs to.
    """

    method: str
    metric: str
    value: float | None
    mark: Mark
    source: str
    pattern: str = "all"
    output: str | None = None
    n: int | None = None
    variant: str | None = None


@dataclass(frozen=True)
class Benchmark:
    """A task on a data set with a protocol, the methods that are compared on it, and the figures of others.

    Attributes:
        name: Name on the command line.
        title: What is predicted from what, on which patients, in one line.
        experiment: Hydra experiment that configures the method.
        data: Whether the patients are real, unless ``prepare`` says otherwise.
        data_version: The data set and its version.
        task_type: What the outputs mean together.
        modalities: Names of the modalities; every non-empty subset of them is a pattern.
        prepare: Writes the sites of a cell.
        methods: Methods that are compared, in the order of the table.
        folds: Number of test folds; their test rows together are the cohort.
        seeds: Number of seeds unless the user says otherwise: 0, 1, ...
        variants: Protocols under other assumptions; None is the main one.
        protocols: Variant -> Hydra overrides of the experiment that make it, for every method.
        overrides: Method -> Hydra overrides of the experiment, so that a baseline is trained as well as the student is.
        metrics: Metrics in the order of the table, the main one first.
        published: Figures of others.
        comparable: Whether, and with what reserve, ours may stand beside them: one plain sentence.
        apart: Test sites that are told apart too, with intervals.
        ablations: Other settings of single factors of the student, in the order of their table.
        source: Digest of what the user defined it by, so that runs of two such benchmarks are told apart.
        needs: Folder below ``CONSILIUM_DATA`` without which it cannot run, and how to get it; ``prepare`` opens it.
    """

    name: str
    title: str
    experiment: str
    data: Literal["real", "generated"]
    data_version: str
    task_type: TaskType
    modalities: tuple[str, ...]
    prepare: Prepare
    methods: tuple[str, ...]
    folds: int = 1
    seeds: int = 3
    variants: tuple[str | None, ...] = (None,)
    protocols: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    overrides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    metrics: tuple[str, ...] = ("auroc", "auprc", "accuracy", "f1")
    published: tuple[Published, ...] = ()
    comparable: str = ""
    apart: tuple[str, ...] = ()
    ablations: tuple[Ablation, ...] = ()
    source: str = ""
    needs: tuple[str, str] | None = None

    def ablation(self, method: str) -> Ablation | None:
        """Returns the ablation of that name; None if it is no ablation."""
        return next((a for a in self.ablations if a.name == method), None)


def benchmarks() -> dict[str, Benchmark]:
    """Returns every benchmark of this folder by name, sorted."""
    package = simulations.benchmarks
    modules = [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    found = [m.BENCHMARK for m in modules if hasattr(m, "BENCHMARK")]
    return {b.name: b for b in sorted(found, key=lambda b: str(b.name))}


def get(name: str) -> Benchmark:
    """Returns the benchmark of that name.

    Raises:
        ConsiliumError: If there is none, naming the nearest.
    """
    known = benchmarks()
    if name == CUSTOM:
        raise ConsiliumError(f"'{CUSTOM}' stands for your own data: consilium-bench run {CUSTOM} --task TASK.yaml --sites DIR")
    if name not in known:
        raise ConsiliumError(f"There is no benchmark '{name}'{nearest(name, [*known, CUSTOM])}")
    return known[name]
