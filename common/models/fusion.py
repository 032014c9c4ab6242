"""Fusions: from the unimodal features and logits of the modalities present to the fused logits.

Every fusion is called as ``fusion(features, logits, present, weights, prior)`` with :class:`Features`, logits [B, M, C], present
bool [B, M], weights [C or 1, M] (rows sum to one) and prior [C], and returns fused logits [B, C]. Entries of absent modalities
are zero and must not matter. Logits and prior of exclusive classes come centred (:func:`centred`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.models.attention import HEADS, AttentionBlock, Positions
from common.models.registry import Encoder, Fusion, fusion
from common.task import TaskType

LAYERS = 2
BOTTLENECKS = 4
TOKENS = "tokens"  # what a fusion holds under this name belongs to the modality, not to all


@dataclass(frozen=True)
class Features:
    """What the encoders make of a batch; zero where a modality is absent.

    Attributes:
        pooled: f_m, [B, M, d].
        tokens: Of every modality, [B, n_m, t_m]; empty if the fusion reads none.
        seen: Of every modality, bool [B, n_m].
    """

    pooled: Tensor
    tokens: tuple[Tensor, ...] = ()
    seen: tuple[Tensor, ...] = ()

    def scaled(self, weights: Tensor) -> Features:
        """Returns them multiplied by weights [M]."""
        tokens = tuple(t * w for t, w in zip(self.tokens, weights, strict=bool(self.tokens)))
        return replace(self, pooled=self.pooled * weights[:, None], tokens=tokens)


def renormalised(weights: Tensor, present: Tensor) -> Tensor:
    """Returns weights [B, M] of a sample's present modalities that sum to one.

    Args:
        weights: [M], positive.
        present: bool [B, M].
    """
    held = weights * present
    return held / held.sum(1, keepdim=True).clamp(min=1e-12)


def mean_of_present(features: Tensor, present: Tensor, weights: Tensor) -> Tensor:
    """Returns the weighted mean [B, ...] of the present modalities' features [B, M, ...]; args as for :func:`renormalised`."""
    share = renormalised(weights, present)
    return (share.reshape(*share.shape, *(1,) * (features.ndim - 2)) * features).sum(1)


def filled(features: Tensor, present: Tensor, weights: Tensor) -> Tensor:
    """Returns features [B, M, ...] with that mean in the place of absent ones."""
    held = present.reshape(*present.shape, *(1,) * (features.ndim - 2))
    return torch.where(held, features, mean_of_present(features, present, weights)[:, None])


@fusion("joint")
class Joint(Fusion):
    """Concatenation and a multi-layer perceptron (MIND's joint fusion).

    The slot of a missing modality holds the weighted mean of the present features (MetaKD: the plain mean).
    """

    def __init__(self, encoders: Mapping[str, Encoder], width: int, outputs: int, dropout: float) -> None:
        """Args: encoders by modality; numbers of features per modality and of outputs; share of features dropped."""
        super().__init__()
        self.head = nn.Sequential(
            nn.Linear(len(encoders) * width, 2 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * width, outputs)
        )

    def forward(self, features: Features, logits: Tensor, present: Tensor, weights: Tensor, prior: Tensor) -> Tensor:
        """Returns fused logits; shapes in the module's docstring."""
        fused: Tensor = self.head(filled(features.pooled, present, weights.mean(0)).flatten(1))
        return fused


@fusion("weighted")
class Weighted(Fusion):
    """A head on the weighted sum of the present features."""

    def __init__(self, encoders: Mapping[str, Encoder], width: int, outputs: int, dropout: float) -> None:
        """Args as for :class:`Joint`."""
        super().__init__()
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, outputs))

    def forward(self, features: Features, logits: Tensor, present: Tensor, weights: Tensor, prior: Tensor) -> Tensor:
        """Returns fused logits; shapes in the module's docstring."""
        fused: Tensor = self.head(mean_of_present(features.pooled, present, weights.mean(0)))
        return fused


@fusion("late")
class Late(Fusion):
    """b + s sum_m w_m (h_m - prior) over the present modalities: evidence adds up; only s and b are added."""

    def __init__(self, encoders: Mapping[str, Encoder], width: int, outputs: int, dropout: float) -> None:
        """Args as for :class:`Joint`; the scale starts at M, where equal weights add the logits up."""
        super().__init__()
        self.scale_and_bias = nn.Embedding(2, outputs)  # read once per patient, for DP-SGD
        self.start_at(torch.full((outputs,), float(len(encoders))), torch.zeros(outputs))

    @torch.no_grad()
    def start_at(self, scale: Tensor, bias: Tensor) -> None:
        """Starts from the consilium's s and b."""
        self.scale_and_bias.weight.copy_(torch.stack([scale, bias]))

    def forward(self, features: Features, logits: Tensor, present: Tensor, weights: Tensor, prior: Tensor) -> Tensor:
        """Returns fused logits; shapes in the module's docstring."""
        rows = torch.arange(2, device=present.device).expand(len(present), -1)
        scale, bias = self.scale_and_bias(rows).unbind(1)
        return stated(weighted_evidence(logits, present, weights, prior), scale, bias, prior)


@fusion("bottleneck")
class Bottleneck(Fusion):
    """Pooled bottleneck attention: modalities exchange information through a few learned tokens alone.

    In every layer the tokens of each modality and the bottleneck attend to each other; then the bottleneck is the weighted mean
    of what it has become with every modality present (Nagrani et al., 2021, take the plain mean of all). No slot waits for an
    absent modality: any pattern is legal. What it has become in the end corrects late fusion, from where it starts: a mean over
    modalities does not add their evidence up. "Pooled bottleneck" is the name of Wang et al. (2025), whose definition we could
    not read; this reading, with layers that the modalities share, is ours.
    """

    reads_tokens = True

    def __init__(self, encoders: Mapping[str, Encoder], width: int, outputs: int, dropout: float) -> None:
        """Args as for :class:`Joint`."""
        super().__init__()
        inner = -(-width // HEADS) * HEADS
        self.tokens = nn.ModuleDict({n: nn.Linear(e.token_width or e.features, inner) for n, e in encoders.items()})
        self.bottleneck = Positions(BOTTLENECKS, inner)
        self.blocks = nn.ModuleList(AttentionBlock(inner, dropout) for _ in range(LAYERS))
        self.evidence = Late(encoders, width, outputs, dropout)
        correction = nn.Linear(inner, outputs, bias=False)
        nn.init.zeros_(correction.weight)
        self.head = nn.Sequential(nn.LayerNorm(inner), nn.Dropout(dropout), correction)
        self.inner = inner

    def start_at(self, scale: Tensor, bias: Tensor) -> None:
        """Starts from the consilium's s and b."""
        self.evidence.start_at(scale, bias)

    def forward(self, features: Features, logits: Tensor, present: Tensor, weights: Tensor, prior: Tensor) -> Tensor:
        """Returns fused logits; shapes in the module's docstring."""
        bottleneck = self.bottleneck(features.pooled.new_zeros(len(present), BOTTLENECKS, self.inner))
        share = renormalised(weights.mean(0), present)[:, :, None, None]
        streams = [layer(tokens) for layer, tokens in zip(self.tokens.values(), features.tokens, strict=True)]
        alike: dict[int, list[int]] = {}  # modalities with as many tokens go through a block at once: [B, modalities, tokens, d]
        for at, stream in enumerate(streams):
            alike.setdefault(stream.shape[1], []).append(at)
        together = [torch.stack([streams[at] for at in places], 1) for places in alike.values()]
        seen = [
            torch.stack([functional.pad(features.seen[at], (0, BOTTLENECKS), value=True) for at in places], 1)
            for places in alike.values()
        ]
        for block in self.blocks:
            pooled = torch.zeros_like(bottleneck)
            for number, places in enumerate(alike.values()):
                before = bottleneck[:, None].expand(-1, len(places), -1, -1)
                after = block(torch.cat([together[number], before], 2), seen[number])
                together[number] = after[:, :, :-BOTTLENECKS]
                pooled = pooled + (after[:, :, -BOTTLENECKS:] * share[:, places]).sum(1)
            bottleneck = pooled
        fused: Tensor = self.evidence(features, logits, present, weights, prior) + self.head(bottleneck.mean(1))
        return fused


def weighted_evidence(logits: Tensor, present: Tensor, weights: Tensor, prior: Tensor) -> Tensor:
    """Returns sum_m w_m (z_m - prior) over the present modalities, [B, C].

    The weights are not renormalised: with a scale fitted for all modalities a lone one would be scaled up. Those of voxels are,
    [B, C, ...]: modalities that show the same region repeat each other, so what they say is averaged, and does not add up.

    Args:
        logits: [B, M, C], or of voxels [B, M, C, D, H, W] or [B, M, C, V].
        present: bool [B, M].
        weights: [C or 1, M].
        prior: [C].
    """
    space = (1,) * (logits.ndim - 3)
    evidence = torch.where(present[:, :, None].reshape(*present.shape, 1, *space), logits - prior.reshape(-1, *space), 0.0)
    weights = weights.expand(logits.shape[2], -1)
    if not space:
        return torch.einsum("bmc,cm->bc", evidence, weights)
    shares = torch.stack([renormalised(row, present) for row in weights], 1)
    return torch.einsum("bmc...,bcm->bc...", evidence, shares)


def stated(evidence: Tensor, scale: Tensor, bias: Tensor, prior: Tensor) -> Tensor:
    """Returns prior + b + s evidence, logits [B, C] or [B, C, D, H, W]; prior is [C], s and b are [C] or [B, C]."""
    scale, bias, prior = (x.reshape(*x.shape, *(1,) * (evidence.ndim - 2)) for x in (scale, bias, prior))
    return prior + bias + scale * evidence


def probabilities(kind: TaskType, logits: Tensor) -> Tensor:
    """Returns the probabilities of logits [..., C]: of exclusive classes, or of every output by itself (no regression)."""
    return logits.softmax(-1) if kind == "multiclass" else logits.sigmoid()


def centred(kind: TaskType, logits: Tensor) -> Tensor:
    """Returns logits [..., C] whose mean over exclusive classes is zero; those of other tasks as they are.

    Softmax logits are defined up to a constant only: with a weight, scale or bias per class that constant would matter.
    """
    return logits - logits.mean(-1, keepdim=True) if kind == "multiclass" else logits
