"""What a configuration says must exist and fit together: names of components, shares, what a segmentation cannot do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.errors import ConsiliumError, nearest
from common.models.registry import architectures, fusions
from common.task import COMPLETE

if TYPE_CHECKING:
    from common.config import Config

VOLUME_FUSIONS = ("joint", "weighted", "late")


def check_config(config: Config) -> None:
    """Checks every component name of the configuration against the registries."""
    for fusion in filter(None, (config.model.fusion, config.model.complete)):
        if fusion not in fusions():
            raise ConsiliumError(f"Unknown fusion '{fusion}'{nearest(fusion, fusions())}")
    if config.task.type == "segmentation":
        _check_segmentation(config)
    elif config.model.patch:
        raise ConsiliumError(f"model.patch={list(config.model.patch)}: task '{config.task.name}' reads no volumes. Leave it out.")
    for kind in {m.kind for m in config.task.modalities.values()}:
        if kind not in config.model.teachers or kind not in config.model.student:
            raise ConsiliumError(
                f"model.teachers and model.student need an architecture for modalities of kind '{kind}'. Add it."
            )
        for name in (*config.model.teachers[kind], config.model.student[kind]):
            if name not in architectures(kind):
                raise ConsiliumError(f"Unknown architecture '{name}' for kind '{kind}'{nearest(name, architectures(kind))}")
    named = {f"{n}-{a}" for n, m in config.task.modalities.items() for a in architectures(m.kind)}
    named |= {f"{COMPLETE}-{config.model.complete}"} if config.model.complete else set()
    named |= {"default"} | {a for kind in config.model.teachers for a in architectures(kind)}
    for name in config.teach.training:
        if name not in named:
            raise ConsiliumError(f"Unknown group or architecture '{name}' in teach.training{nearest(name, named)}")
    if "default" not in config.teach.training:
        raise ConsiliumError("teach.training lacks 'default', the optimiser of every group that is not named. Add it.")
    held_back = config.split.meta + config.split.validation + config.split.test
    if held_back >= 1:
        raise ConsiliumError(
            f"split.meta + split.validation + split.test = {held_back:g}: nobody is left to train on. Lower them."
        )


def _check_segmentation(config: Config) -> None:
    """Checks what a segmentation cannot do, or not like this."""
    if config.model.fusion not in VOLUME_FUSIONS or config.model.complete or config.balance.rule == "gradient-modulation":
        raise ConsiliumError(
            f"A segmentation is fused by {', '.join(VOLUME_FUSIONS)}, without a teacher of complete visits, and its one encoder "
            "cannot be slowed for one modality: set model.fusion to one of them, and leave model.complete and "
            "balance=gradient-modulation out."
        )
    grid = next(iter(config.task.modalities.values())).voxels
    if config.model.patch and any(edge > room for edge, room in zip(config.model.patch, grid, strict=True)):
        raise ConsiliumError(
            f"model.patch={list(config.model.patch)} is larger than the task's grid, {list(grid)}. Make it smaller."
        )
