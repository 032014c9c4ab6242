"""A data set becomes sites: which hospitals belong together, who is held out, who holds which modality.

Everything here is a pure function of its arguments: the order of the input does not matter, and the same seed gives the same
answer on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from common.errors import ConsiliumError

HOLDERS = 2  # a modality that only one site holds cannot be averaged over sites
Seed = int | Sequence[int]


def linked_groups(sites: ArrayLike, patients: ArrayLike) -> NDArray[np.int64]:
    """Joins sites that share a patient, directly or through other sites.

    Args:
        sites: [N] site of every visit.
        patients: [N] patient of every visit.

    Returns:
        [N] number of the group of every visit; no patient is in two groups.
    """
    names, site = np.unique(np.asarray(sites), return_inverse=True)
    people, patient = np.unique(np.asarray(patients), return_inverse=True)
    nodes = len(names) + len(people)
    graph = coo_array((np.ones(len(site)), (site, len(names) + patient)), shape=(nodes, nodes))
    _, group = connected_components(graph, directed=False)
    return np.asarray(group, dtype=np.int64)[site]


def grouped_folds(groups: ArrayLike, strata: ArrayLike, *, folds: int, seed: int) -> NDArray[np.int64]:
    """Deals whole groups into folds of about equal size and composition.

    Args:
        groups: [N] group of every visit.
        strata: [N] what should be balanced, such as the outcome.
        folds: Number of folds.
        seed: Seed of the deal.

    Returns:
        [N] fold of every visit, 0 to ``folds - 1``.

    Raises:
        ConsiliumError: If there are fewer groups than folds.
    """
    group, stratum = np.asarray(groups), np.asarray(strata)
    if len(np.unique(group)) < folds:
        raise ConsiliumError(f"{len(np.unique(group))} groups of hospitals cannot make {folds} folds. Ask for fewer folds.")
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    fold = np.empty(len(group), dtype=np.int64)
    for number, (_, test) in enumerate(splitter.split(np.zeros(len(group)), stratum, group)):
        fold[test] = number
    return fold


def draw_sites(groups: Mapping[str, int], *, share: float, seed: Seed) -> tuple[str, ...]:
    """Draws a share of the sites; a group is drawn as a whole or not at all.

    Args:
        groups: Site -> its group.
        share: Share of the sites, rounded to a whole number. Fewer are drawn where only larger groups remain.
        seed: Seed of the draw.

    Returns:
        The drawn sites, sorted.
    """
    members: dict[int, list[str]] = {}
    for site in sorted(groups):
        members.setdefault(groups[site], []).append(site)
    # Ordered by their first site: the numbers of the groups carry no meaning.
    blocks = list(members.values())
    drawn: list[str] = []
    for index in np.random.default_rng(seed).permutation(len(blocks)):
        if len(drawn) + len(blocks[index]) <= round(share * len(groups)):
            drawn += blocks[index]
    return tuple(sorted(drawn))


def assign_modalities(
    sites: Iterable[str], modalities: Iterable[str], *, full_share: float, seed: Seed
) -> dict[str, tuple[str, ...]]:
    """Decides which site holds which modalities.

    A share of the sites, rounded up, holds all of them, each other site one or two (but never all). The others are dealt like
    cards from one shuffled deck, so that the holdings are balanced and at least two sites hold each modality wherever the
    number of sites allows it.

    Args:
        sites: Names of the sites.
        modalities: Names of the modalities.
        full_share: Share of the sites that hold every modality.
        seed: Seed of the deal.

    Returns:
        Site -> its modalities, both sorted.
    """
    names, deck = sorted(set(sites)), sorted(set(modalities))
    rng = np.random.default_rng(seed)
    order = [names[i] for i in rng.permutation(len(names))]
    deck = [deck[i] for i in rng.permutation(len(deck))]
    most = max(1, min(2, len(deck) - 1))
    full = math.ceil(full_share * len(names))
    sizes = rng.integers(1, most, size=len(names) - full, endpoint=True)
    wanted = max(0, HOLDERS - full) * len(deck)
    for index in range(len(sizes)):
        if sizes.sum() < wanted:
            sizes[index] = most
    held = {site: tuple(sorted(deck)) for site in order[:full]}
    dealt = 0
    for site, size in zip(order[full:], sizes.tolist(), strict=True):
        held[site] = tuple(sorted(deck[(dealt + card) % len(deck)] for card in range(size)))
        dealt += size
    return {site: held[site] for site in names}
