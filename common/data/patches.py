"""Parts of volumes: where a whole scan does not fit into a step of training or an inference."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from common.data.cohort import Batch

Edges = tuple[int, int, int]
FOREGROUND = 0.5
OVERLAP = 1 / 3
WINDOWS = 4  # at a time: on a CPU PyTorch takes four times as long over one by itself


def random_patches(batch: Batch, edges: Edges, generator: torch.Generator) -> Batch:
    """Returns a patch of every scan, half of them around a voxel of a random region: most voxels lie in none.

    Args:
        batch: Volumes [B, 1, D, H, W] and regions [B, C, D, H, W].
        edges: Of the patch; along an edge on which the volume is smaller, all of it.
        generator: Source of randomness.
    """
    size = batch.labels.shape[2:]
    rooms = [max(whole - edge, 0) for whole, edge in zip(size, edges, strict=True)]
    starts = []
    for regions in batch.labels:
        anywhere = [int(torch.randint(room + 1, (1,), generator=generator)) for room in rooms]
        around = torch.rand(1, generator=generator).item() < FOREGROUND
        region = regions[int(torch.randint(len(regions), (1,), generator=generator))]
        voxels = region.nonzero() if around else region.new_zeros(0, 3)
        if len(voxels):
            centre = voxels[int(torch.randint(len(voxels), (1,), generator=generator))].tolist()
            anywhere = [min(max(c - e // 2, 0), room) for c, e, room in zip(centre, edges, rooms, strict=True)]
        starts.append(anywhere)

    def cut(whole: Tensor) -> Tensor:
        parts = [x[:, a : a + edges[0], b : b + edges[1], c : c + edges[2]] for x, (a, b, c) in zip(whole, starts, strict=True)]
        return torch.stack(parts) if parts else whole

    return Batch({m: cut(x) for m, x in batch.inputs.items()}, batch.present, cut(batch.labels))


def windowed(logits: Callable[[Batch], Tensor], batch: Batch, edges: Edges | None) -> Tensor:
    """Returns logits of a batch; with edges [B, C, D, H, W] from overlapping windows, averaged by Gaussian weights.

    Args:
        logits: Of a batch, whose volumes have the window's size.
        batch: Whole scans.
        edges: Of the window; None reads the batch as it is.
    """
    if edges is None:
        return logits(batch)
    from monai.inferers.inferer import SlidingWindowInferer  # here: it takes seconds

    inferer = SlidingWindowInferer(edges, sw_batch_size=WINDOWS, overlap=OVERLAP, mode="gaussian")
    names = list(batch.inputs)
    found = []
    for at in range(len(batch)):
        one = batch.taken(torch.tensor([at]))

        def said(window: Tensor, one: Batch = one) -> Tensor:
            present, labels = (x.expand(len(window), *x.shape[1:]) for x in (one.present, one.labels))
            return logits(Batch({n: window[:, i : i + 1] for i, n in enumerate(names)}, present, labels))

        found.append(inferer(torch.cat([one.inputs[n] for n in names], 1), said))
    return torch.cat(found)  # type: ignore[arg-type]
