"""One typed configuration, composed by Hydra from ``configs/`` and validated before anything starts.

The server composes it, records it with the run and sends it to the sites in every message, so that both sides agree by
construction.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from common.config_checks import check_config
from common.errors import BARE_YES, ConsiliumError, is_bare_yes, keys_at, nearest, no_file
from common.task import STRICT, Kind, Task, misspelt

Pairwise = Literal["sigmoid", "ratio"]
BalanceRule = Literal["none", "distillation", "gradient-modulation"]
CONFIG_DIR = Path(__file__).resolve().parents[1] / "configs"
TASK_FILE = "task_file="


@dataclass(frozen=True, config=STRICT)
class Training:
    """How one network is trained on one place's patients.

    Attributes:
        optimiser: ``adamw``, or ``sgd``: with a few patients per site a first step of Adam is all sign and no size.
        lr: Learning rate.
        weight_decay: Decoupled (``adamw``) or L2 (``sgd``) weight decay.
        batch_size: Patients per step.
        anneal: Whether the learning rate falls along half a cosine, over all rounds of a phase that has rounds.
    """

    optimiser: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    batch_size: int = Field(default=32, ge=1)
    anneal: bool = False


PatchEdge = Annotated[int, Field(ge=8, multiple_of=4)]


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """Networks.

    Attributes:
        teachers: Modality kind -> architectures of its ensemble.
        student: Modality kind -> architecture of the student's encoder.
        width: Features per modality, d.
        patch: Part of a volume that a step of training sees, and a window of inference; None is all of it (``segmentation``).
        fusion: Name of the student's fusion.
        dropout: Share of features dropped while training.
        complete: Fusion of one more teacher, which reads all modalities of the visits that lack none (its encoders are as the
            student's); None is without.
    """

    teachers: dict[Kind, tuple[str, ...]]
    student: dict[Kind, str]
    width: int = Field(default=16, ge=1)
    patch: tuple[PatchEdge, PatchEdge, PatchEdge] | None = None
    fusion: str = "joint"
    dropout: float = Field(default=0.1, ge=0, lt=1)
    complete: str | None = None


@dataclass(frozen=True, config=STRICT)
class TeachConfig:
    """Phase 2.

    Attributes:
        rounds: Rounds of aggregation per (modality, architecture) group.
        epochs: Local epochs per round.
        reference_share: Share of the rounds, the last ones, in which a labelled reference set takes part like one more site.
            Scale, bias and weights of the consilium are fitted on reference patients with the teachers as they were before.
        training: Optimiser by group (``labs-linear``), else by architecture (``linear``), else ``default``.
    """

    rounds: int = Field(default=10, ge=1)
    epochs: int = Field(default=1, ge=1)
    reference_share: float = Field(default=0.5, ge=0, lt=1)
    training: dict[str, Training] = field(default_factory=lambda: {"default": Training()})

    @property
    def reference_from(self) -> int:
        """First round of the reference set, never the very first one; ``rounds`` if it takes no part."""
        return max(self.rounds - int(self.rounds * self.reference_share), 1)

    def training_of(self, group: str) -> Training:
        """Returns the optimiser of a (modality, architecture) group."""
        return self.training.get(group.replace("/", "-")) or self.training.get(group.split("/")[-1]) or self.training["default"]


@dataclass(frozen=True, config=STRICT)
class DistillConfig:
    """The student's loss, and phase 3.

    Attributes:
        reference: Whether the server's reference set is used.
        epochs: Epochs on the reference set.
        training: Optimiser.
        temperature: T of the logit distillation.
        labels: Weight of the task losses where teachers teach, in refine too: they have used the same labels already.
        alpha: Weight of every unimodal head's task loss.
        beta: Weight of every unimodal head's distillation.
        gamma: Weight of the fused head's distillation from the consilium.
        delta: Weight of the pairwise feature distillation.
        epsilon: Weight of the distillation from the teacher of complete visits, of whom the student sees what a drawn pattern
            leaves (``model.complete``).
        pairwise: Its gate: ``sigmoid`` (ours), or ``ratio`` (MetaKD's released code).
        tau: Temperature of the sigmoid gate.
        dropout: Share of patients whose pattern is cut down to a random non-empty subset.
        dropout_by: Whether the subset is drawn per ``sample``, or one per ``batch`` (MetaKD's released code).
        scale: Whether the consilium's scale and bias are fitted (else 1 and 0).
    """

    reference: bool = True
    epochs: int = Field(default=30, ge=0)
    training: Training = field(default_factory=Training)
    temperature: float = Field(default=2.0, gt=0)
    labels: float = Field(default=0.1, ge=0)
    alpha: float = Field(default=1.0, ge=0)
    beta: float = Field(default=1.0, ge=0)
    gamma: float = Field(default=1.0, ge=0)
    delta: float = Field(default=0.1, ge=0)
    epsilon: float = Field(default=1.0, ge=0)
    pairwise: Pairwise = "sigmoid"
    tau: float = Field(default=0.5, gt=0)
    dropout: float = Field(default=0.5, ge=0, le=1)
    dropout_by: Literal["sample", "batch"] = "sample"
    scale: bool = True


@dataclass(frozen=True, config=STRICT)
class WeightsConfig:
    """Meta-learned modality weights.

    Attributes:
        estimator: ``lookahead`` differentiates through a virtual training step; ``metakd`` (the released code) takes the plain
            gradient of scaling the features by the weights; ``uniform`` keeps the weights equal.
        start: Where omega starts: ``uniform``, equal weights; or with a reference set ``evidence``, what the teachers' evidence
            tells of its overlap without any label. That takes calibrated teachers: who is too sure of itself gets too much. In a
            segmentation it is the best weighted mean of the teachers on voxels of a labelled reference set.
        rho: Learning rate of Adam on omega.
        eta: Learning rate of the virtual step.
        steps: Steps on omega on the reference set; a round of refine takes one.
        per_output: Whether omega has one row per output. ``metakd`` multiplies features, which serve all outputs, by the mean
            row: no row learns of its own output alone.
        cross_fit_below: Below this many events the meta patients are cross-fitted in five folds.
        guard: Whether what was learned on a labelled reference set is kept only if it beats equal weights there by more than a
            standard error; else the weights stay equal for the whole run.
    """

    estimator: Literal["lookahead", "metakd", "uniform"] = "lookahead"
    start: Literal["evidence", "uniform"] = "uniform"
    rho: float = Field(default=0.05, gt=0)
    eta: float = Field(default=0.1, gt=0)
    steps: int = Field(default=60, ge=0)
    per_output: bool = False
    cross_fit_below: int = Field(default=50, ge=0)
    guard: bool = True


@dataclass(frozen=True, config=STRICT)
class BalanceConfig:
    """What keeps one modality from being learned at the cost of another.

    Attributes:
        rule: ``distillation`` raises beta of the modalities whose heads have learned least of their teachers' lesson;
            ``gradient-modulation`` slows the encoders of those that are ahead (``common/learning/modulation.py``).
        strength: How hard ``gradient-modulation`` slows them.
    """

    rule: BalanceRule = "none"
    strength: float = Field(default=3.0, gt=0)


@dataclass(frozen=True, config=STRICT)
class RefineConfig:
    """Phase 4.

    Attributes:
        rounds: Rounds at the sites; 0 leaves the phase out.
        epochs: Local epochs per round.
        momentum: Share of the last round's step that the server carries on in this one (FedAvgM); 0 is FedAvg.
        training: Optimiser.
    """

    rounds: int = Field(default=5, ge=0)
    epochs: int = Field(default=1, ge=1)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    training: Training = field(default_factory=Training)


@dataclass(frozen=True, config=STRICT)
class FederationConfig:
    """Who must answer, and by when.

    Attributes:
        quorum: Share of a group's sites that must answer a round; at least one always must.
        deadline: Seconds to wait for a round's answers, and at the start for ``min_sites`` to connect.
        min_sites: Sites, whatever they hold, that must be enrolled before teaching begins.
        min_patients: Training patients below which a site's update of a group is left out.
        poll: Seconds between two looks at the answers.
    """

    quorum: float = Field(default=0.5, gt=0, le=1)
    deadline: float = Field(default=600.0, gt=0)
    min_sites: int = Field(default=1, ge=1)
    min_patients: int = Field(default=5, ge=1)
    poll: float = Field(default=0.2, gt=0)


@dataclass(frozen=True, config=STRICT)
class SplitConfig:
    """Shares of patients; the rest trains.

    Attributes:
        meta: For the modality weights.
        validation: For early stopping and the choice of rounds.
        test: For phase 5 (none in a reference set).
    """

    meta: float = Field(default=0.1, ge=0, lt=1)
    validation: float = Field(default=0.15, ge=0, lt=1)
    test: float = Field(default=0.25, ge=0, lt=1)


@dataclass(frozen=True, config=STRICT)
class Config:
    """Everything a run is told. See ``configs/``."""

    name: str
    task: Task
    model: ModelConfig
    teach: TeachConfig
    distill: DistillConfig
    weights: WeightsConfig
    balance: BalanceConfig
    refine: RefineConfig
    federation: FederationConfig
    split: SplitConfig
    seed: int = 0

    @property
    def trains_student(self) -> bool:
        """Whether anybody trains the student; if not, the teachers are all there is."""
        return self.distill.epochs > 0 or self.refine.rounds > 0


def parts_not_needed(config: Config, *, evaluated: bool, reference: bool) -> list[str]:
    """Returns the parts of the split for which sites of one's own data need not hold patients back: those train too.

    Args:
        config: Of the run.
        evaluated: Whether there are sites that only evaluate.
        reference: Whether the reference set has labels: if the modality weights stay equal, it needs no help in judging.
    """
    return ["test"] * evaluated + ["meta"] * (reference and config.weights.estimator == "uniform")


def to_json(config: Config) -> dict[str, Any]:
    """Returns the configuration as plain JSON values."""
    dumped: dict[str, Any] = TypeAdapter(Config).dump_python(config, mode="json")
    return dumped


def from_json(raw: dict[str, Any], task_file: str = "") -> Config:
    """Returns the validated configuration.

    Args:
        raw: Plain JSON values.
        task_file: Where its task stands, for errors; empty if in ``configs/``.

    Raises:
        ConsiliumError: Naming every key that does not fit, its value and the nearest valid name.
    """
    try:
        config = TypeAdapter(Config).validate_python(raw)
    except ValidationError as error:
        faults = dict.fromkeys(_explain(e, task_file) for e in error.errors(include_url=False))
        raise ConsiliumError(f"Configuration refused: {'; '.join(faults)}") from None
    check_config(config)
    return config


def load_config(experiment: str, overrides: str | Sequence[str] = ()) -> Config:
    """Composes ``configs/config.yaml`` with an experiment and ordinary Hydra overrides.

    Args:
        experiment: Name of a file in ``configs/experiment``.
        overrides: Hydra overrides, as a list or as one shell-quoted string. One more word is known: with
            ``task_file=/path/TASK.yaml`` the task is that file's (format of ``configs/task``). Its place is not in the result.

    Raises:
        ConsiliumError: If the experiment, a key or a value is unknown or invalid.
    """
    known = [p.stem for p in (CONFIG_DIR / "experiment").glob("*.yaml")]
    if experiment not in known:
        raise ConsiliumError(f"Unknown experiment '{experiment}'{nearest(experiment, known)}")
    try:
        words = shlex.split(overrides) if isinstance(overrides, str) else list(overrides)
    except ValueError as error:
        raise ConsiliumError(f"The overrides cannot be split into words: {error}. Check their quotes.") from None
    file = next((w.removeprefix(TASK_FILE) for w in reversed(words) if w.startswith(TASK_FILE)), "")
    words = _with_task_of_file(words)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
            composed = compose("config", overrides=[f"+experiment={experiment}", *words])
        raw = OmegaConf.to_container(composed, resolve=True)
    except (ConfigCompositionException, MissingConfigException, HydraException, OmegaConfBaseException) as error:
        raise ConsiliumError(f"Configuration refused: {_explain_hydra(error, words)}") from None
    if isinstance(raw, dict) and "task" not in raw:
        raise ConsiliumError(
            f"Experiment '{experiment}' has no task of its own. Name yours among the overrides: {TASK_FILE}/absolute/TASK.yaml "
            "(format: docs/your-own-data.md)."
        )
    return from_json(json.loads(json.dumps(raw)), file)


def _with_task_of_file(words: Sequence[str]) -> list[str]:
    """Returns the overrides with the task of a ``task_file=...`` among them in the place of the experiment's own."""
    files = [w.removeprefix(TASK_FILE) for w in words if w.startswith(TASK_FILE)]
    if not files:
        return list(words)
    path = Path(files[-1]).expanduser()
    try:
        task = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConsiliumError(f"The task file {no_file(path)}") from None
    except OSError as error:
        raise ConsiliumError(f"The task file {path} cannot be read ({type(error).__name__}). Write its absolute path.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = f", line {mark.line + 1}" if (mark := getattr(error, "problem_mark", None)) else ""
        raise ConsiliumError(f"The task file {path} is not valid YAML{line}. Check its indentation and quotes.") from None
    if not isinstance(task, dict):
        raise ConsiliumError(f"The task file {path} holds no task: it needs {', '.join(_keys_at(['task']))}.")
    ConfigStore.instance().store(name="file", node=task, group="task")
    return ["task=file", *(w for w in words if not w.startswith(TASK_FILE))]


def _explain(error: Any, task_file: str) -> str:
    """Returns one line on a pydantic error, with its file if that is a task's, and the nearest valid key for an unknown one."""
    path = [str(p) for p in error["loc"]]
    where = ".".join(path)
    file = f"{task_file}: " if task_file and path[:1] == ["task"] else ""
    if file and is_bare_yes(error):
        what = f"codes of '{path[-3]}'" if "codes" in path else ".".join(p for p in path[1:] if not p.isdigit())
        return f"{file}{what}: {BARE_YES}"
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{file}unknown key '{where}'{nearest(path[-1], _keys_at(path[:-1]))}"
    if error["type"] in ("missing", "missing_argument"):
        return f"{file}'{where}' is missing"
    if error["type"] == "value_error":  # of several keys together: the input is all of them
        at = ".".join(path[1:]) if file else where
        return f"{file}{at}{': ' if at else ''}{error['msg'].removeprefix('Value error, ')}"
    if found := misspelt(error):
        return f"{file}{where}={error['input']!r}{found}"
    shown = "" if isinstance(error.get("input"), dict | list) else f"={error.get('input')!r}"
    return f"{file}{where}{shown}: {error['msg']}"


def _explain_hydra(error: Exception, words: Sequence[str]) -> str:
    """Returns one line on a Hydra error, naming the nearest valid key for an unknown override."""
    text = " ".join(" ".join(str(error).split("\n")[:2]).split())
    for word in words:
        key = word.split("=", 1)[0].lstrip("+~")
        parts = key.split(".")
        for at, part in enumerate(parts):
            known = _keys_at(parts[:at])
            if key in text and known and part not in known:
                return f"unknown key '{'.'.join(parts[: at + 1])}' in override '{word}'{nearest(part, known)}"
        options = [p.stem for p in (CONFIG_DIR / key).glob("*.yaml")]
        if f"'{key}/" in text and options:
            return f"unknown name in override '{word}'{nearest(word.split('=', 1)[1], options)}"
    return text


def _keys_at(path: Sequence[str]) -> list[str]:
    """Returns the valid keys below a path of the configuration."""
    return keys_at(TypeAdapter(Config).json_schema(), path)
