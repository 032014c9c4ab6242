"""Phase 1: who holds what; the common standardisation and the prior; who takes part in what, and at which cost."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from common.arrays import Arrays, module_arrays, moments_arrays, moments_of
from common.config import Config
from common.data.cohort import SPLITS
from common.data.ingest.frames import LARGEST
from common.data.manifest import SITE_NAME
from common.data.standardise import pool, table_columns
from common.errors import nearest
from common.learning.lessons import log_odds
from common.learning.loop import derive_seed
from common.messages import EnrolReply, EnrolRequest
from common.models.ensemble import build_teacher, read_by, taught
from common.models.ensemble import groups as all_groups
from common.task import COMPLETE, LABELS, Modality, Task
from server.checkpoint import Enrolled
from server.prior import estimated_counts
from server.rounds import NODE, RunFailed
from server.run import Run
from server.update_gate import fault


def roll_call(run: Run) -> dict[str, EnrolReply]:
    """Asks every node what it holds, and learns which node is which site.

    Raises:
        RunFailed: If no site is there, none could enrol, or a simulation has fewer nodes than hospitals.
    """
    nodes = run.council.connected()
    if not nodes:
        raise RunFailed(
            f"no site connected within {run.config.federation.deadline:g} s (federation.deadline). Start the SuperNodes, then "
            "resume the run."
        )
    run.council.nodes = {}
    run.state.nodes = len(nodes)
    replies = _introduce(run, nodes)
    _check_number(len(nodes), replies.values())
    if not replies:
        raise RunFailed(f"no site could enrol. Reasons: {_reasons(run)}")
    return replies


def take_back(run: Run) -> None:
    """Asks the nodes that were never asked who they are, if a site is offline: it may be back as another node."""
    nodes, online = run.council.nodes, set(run.council.grid.get_node_ids())
    unknown = online - set(nodes.values())
    if unknown and any(nodes.get(site) not in online for site in run.state.sites):
        for site in _introduce(run, sorted(unknown)):
            run.record.event("returned", site=site)


def _introduce(run: Run, nodes: Iterable[int]) -> dict[str, EnrolReply]:
    """Asks nodes what they hold; returns site -> reply of those that may speak for the site that they name."""
    council = run.council
    online = set(council.grid.get_node_ids())
    seated = {site for site, node in council.nodes.items() if node in online}
    asked = {f"{NODE}{n}": n for n in nodes}
    council.nodes |= asked
    requests = {name: EnrolRequest(**run.request("enrol", 0, name)) for name in asked}
    answers = council.ask("query.enrol", requests, EnrolReply, gate=lambda _, reply: _gate(run.config, reply))
    for name in asked.keys() & council.busy():
        del council.nodes[name]  # too late with its answer: it is asked again
    named: dict[str, EnrolReply] = {}
    for node, reply in sorted(answers.items(), key=lambda item: (item[1].site, item[0])):
        site = reply.site
        reason = "two nodes enrolled under this name; the second is left out" if site in seated else _changed(run, reply)
        if site in seated:
            del council.nodes[node]  # asked again: the first may be an old connection of the same site that has not expired yet
        if reason:
            run.record.event("left-out", site=site, reason=reason)
            if site not in council.nodes:
                council.refused[site] = reason
            continue
        named[site] = reply
        seated.add(site)
        council.seat(site, asked[node])
        _rename_traffic(run, node, site)
    return named


def _changed(run: Run, reply: EnrolReply) -> str | None:
    """Returns why a site cannot go on with a run that has left enrolment, or None: it must be the one that enrolled."""
    if run.state.phase == "enrolling":
        return None
    before = run.state.sites.get(reply.site)
    if before is None:
        return "it did not enrol when the run started. It can take part in a new run"
    if (reply.checksum, reply.splits, reply.patterns) == (before.checksum, before.visits, before.patterns):
        return None
    return (
        "its files are not those that it enrolled with. Restore them, with their times and .consilium, and resume the run, or "
        "start a new one"
    )


def enrol(run: Run, replies: dict[str, EnrolReply]) -> None:
    """Checks what the sites hold against the task, and prepares the teachers."""
    config, state = run.config, run.state
    for name, reply in replies.items():
        unknown = [g for g in reply.architectures if g not in all_groups(config.task, config.model)]
        if unknown:
            where = nearest(unknown[0], all_groups(config.task, config.model))
            run.record.event("left-out", site=name, reason=f"it enrolled with the unknown group '{unknown[0]}'{where}")
            continue
        groups = _groups(run, reply)
        state.sites[name] = Enrolled(reply.role, groups, reply.splits, reply.patterns, reply.excluded, reply.data, reply.checksum)
        run.record.event(
            "enrolled", site=name, role=reply.role, modalities=reply.modalities, labels=reply.labels, splits=reply.splits,
            excluded=reply.excluded, versions=reply.versions,
        )  # fmt: skip
    if len(state.sites) < config.federation.min_sites:
        raise RunFailed(
            f"{len(state.sites)} site(s) enrolled, federation.min_sites = {config.federation.min_sites}. Start the missing "
            "SuperNodes, mend the sites that events.jsonl names as left out, and resume the run."
        )
    _check_groups(run)
    _pool(run, replies)
    for group in state.group_sites():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, "teacher", group))
            state.arrays[f"teacher:{group}"] = module_arrays(build_teacher(group, config.task, config.model, run.prior))
    _announce(run)
    run.advance("teaching")


def _gate(config: Config, reply: EnrolReply) -> str | None:
    """Returns why an enrolment is refused, or None: every other site's patients are scaled with what it says."""
    task = config.task
    if not re.fullmatch(SITE_NAME, reply.site):
        return "its name is no plain name of at most 63 letters, digits, '.', '_' and '-'"
    counts = [*reply.modalities.values(), *reply.labels.values(), *reply.splits.values()]
    if any(n is not None and n < 0 for n in counts):
        return "it counts fewer than zero visits"
    labels = [n or 0 for n in reply.labels.values()]
    most = [sum(labels)] if task.type == "multiclass" else labels
    if max([0, *most, *(n or 0 for n in reply.modalities.values())]) > reply.splits.get("train", 0):
        return "it counts more visits with a label or a modality than training visits"
    if reply.role != "train":
        return None if reply.role == "evaluate" else f"its role '{reply.role[:20]}' is neither 'train' nor 'evaluate'"
    for what, told, known in (
        ("modalities", reply.modalities, taught(config)),
        ("labels", reply.labels, () if task.type == "regression" else task.outputs),
        ("feature statistics", reply.moments, _no_moments(task)),
        ("splits", reply.splits, SPLITS),
    ):
        if set(told) != set(known):
            return f"its {what} are not those of task '{task.name}'"
    reason = fault(reply.moments, _no_moments(task), {}, 0)
    if reason:
        return reason
    for what, arrays in reply.moments.items():
        if (arrays["count"] < 0).any() or (arrays["variance"] < 0).any():
            return f"its statistics of '{what}' hold a negative count or variance"
        if what != LABELS and task.modalities[what].kind == "text" and ((arrays["mean"] < 0) | (arrays["mean"] > 1)).any():
            return f"its statistics of '{what}' hold shares of documents outside 0 and 1"
        if (abs(arrays["mean"]) > LARGEST).any() or (arrays["variance"] > LARGEST**2).any():
            return f"its statistics of '{what}' are of values that no file may hold"
        if (arrays["count"] > reply.splits["train"] * _observations(task, what)).any():
            return f"its statistics of '{what}' claim more observations than its training visits have"
    return None


def _observations(task: Task, what: str) -> int:
    """Returns how many observations of one feature a visit has at most."""
    if what == LABELS:
        return 1
    modality = task.modalities[what]
    most = {
        "table": 1, "text": 1, "series": modality.steps, "image": modality.pixels**2, "audio": modality.frames,
        "volume": math.prod(modality.voxels),
    }  # fmt: skip
    return most[modality.kind]


def _no_moments(task: Task) -> dict[str, Arrays]:
    """Returns moments as every training site tells them, of nobody."""
    columns = {name: _columns(modality) for name, modality in task.modalities.items()}
    columns |= {LABELS: len(task.outputs)} if task.type == "regression" else {}
    return {what: {name: np.zeros(size) for name in ("count", "mean", "variance")} for what, size in columns.items()}


def _columns(modality: Modality) -> int:
    kinds = {
        "text": modality.buckets,
        "table": table_columns(modality),
        "series": len(modality.features),
        "image": 1,
        "volume": 1,
        "audio": modality.coefficients,
    }
    return kinds[modality.kind]


def _groups(run: Run, reply: EnrolReply) -> list[str]:
    """Returns the groups that a site trains: those for which it tells enough training visits."""
    least, kept = run.config.federation.min_patients, []
    for modality in taught(run.config):
        mine = sorted(g for g in reply.architectures if read_by(g) == modality)
        told = reply.modalities.get(modality)
        if mine and (told is None or told < least):
            held = "an undisclosed small number of" if told is None else told
            what = "all modalities" if modality == COMPLETE else f"'{modality}'"
            reason = f"{held} training visits hold {what}, federation.min_patients = {least}"
            run.record.event("left-out", site=reply.site, groups=mine, reason=reason)
        else:
            kept += mine
    return sorted(kept)


def _check_number(nodes: int, replies: Iterable[EnrolReply]) -> None:
    """Fails if a simulation has fewer nodes than hospital folders: silently leaving hospitals out would be a wrong result."""
    told = {r.sites_here for r in replies}
    here = told.pop() if len(told) == 1 else 1  # in a simulation all see the same folder; a site alone can say anything
    if here > 1 and nodes < here:
        raise RunFailed(
            f"the folder in CONSILIUM_SITES holds {here} hospitals, but there are only {nodes} node(s). Run: flwr run . --stream "
            f"--federation-config 'num-supernodes={here}' (make demo does it for you)"
        )


def _check_groups(run: Run) -> None:
    missing = [m for m in run.config.task.modalities if m not in run.state.modality_sites()]
    if missing:
        raise RunFailed(
            f"no site trains on {', '.join(missing)}, which task '{run.config.task.name}' asks for. Invite a site that holds it, "
            "or take it out of the task."
        )
    if run.config.model.complete and not any(read_by(g) == COMPLETE for g in run.state.group_sites()):
        raise RunFailed(
            "no site may train the teacher of complete visits (model.complete): none tells enough visits that hold all of "
            f"{', '.join(run.config.task.modalities)}, or allows networks of its size. Leave model.complete out, or invite a "
            "site that has such visits."
        )


def _pool(run: Run, replies: dict[str, EnrolReply]) -> None:
    """Pools feature moments and label counts of the training sites and of the reference set, in the order of the sites' names.

    The targets of a regression are standardised, so that every network starts from their pooled mean: its prior is 0. That of a
    voxel, of which nobody tells how many lie in a region, is 0 too.
    """
    task, reference = run.config.task, run.raw_reference
    trains = [r for _, r in sorted(replies.items()) if r.role == "train" and r.site in run.state.sites]
    parts = [moments_of(r.moments) for r in trains]
    if reference is not None:
        parts.append(reference.moments())
    pooled = {m: pool([p[m] for p in parts]) for m in _no_moments(task)}
    run.state.arrays.update({f"standardisation:{m}": a for m, a in moments_arrays(pooled).items()})
    if task.type in ("regression", "segmentation"):
        run.state.prior = [0.0] * len(task.outputs)
        return
    visits = [r.splits["train"] for r in trains if r.splits["train"]]
    told = [[r.labels[o] for o in task.outputs] for r in trains if r.splits["train"]]
    if reference is not None and reference.labelled:
        told.append(reference.label_counts().tolist())
        visits.append(len(reference))
    labels = np.array(told, dtype=np.float64)  # None becomes NaN
    silent = [o for o, column in zip(task.outputs, labels.T, strict=True) if np.isnan(column).all()]
    if silent:
        reason = "every site hides how many of its visits have it, and no reference set is labelled: its prior is a guess"
        run.record.event("guessed", outputs=silent, reason=reason)
    _note_untaught(run, labels, float(sum(visits)))
    counts = estimated_counts(task.type, labels, np.array(visits))
    run.state.prior = log_odds(task.type, counts, float(sum(visits))).tolist()


def _note_untaught(run: Run, labels: NDArray[np.float64], visits: float) -> None:
    """Records the outputs that no training visit has; the run goes on with the others.

    Args:
        run: The run.
        labels: Told visits with each output, [S, C], NaN where hidden; what is hidden is at least one.
        visits: Training visits of all places.

    Raises:
        RunFailed: If nothing is left to tell apart: fewer than two classes, or outputs that all visits have or none.
    """
    task = run.config.task
    counts = np.nan_to_num(labels, nan=1.0).sum(0)
    untaught = [o for o, n in zip(task.outputs, counts, strict=True) if not n]
    if untaught:
        reason = "no training visit of any site has it: nobody can learn it. Invite a site that has, or take it out of the task"
        run.record.event("untaught", outputs=untaught, reason=reason)
    constant = (counts == 0) | ((counts == visits) & ~np.isnan(labels).any(0))
    if len(task.outputs) - len(untaught) < 2 if task.type == "multiclass" else constant.all():
        raise RunFailed(
            f"all training visits have the same label, so that nothing of task '{task.name}' can be learned. Check the label "
            "columns that the manifests name, or invite sites with other patients."
        )


def _announce(run: Run) -> None:
    """Says, before anything is trained, who takes part in what and how many bytes each site will move."""
    sizes = {g: sum(a.nbytes for a in run.state.arrays[f"teacher:{g}"].values()) for g in run.state.group_sites()}
    rounds = run.config.teach.rounds + 1
    run.record.event(
        "plan",
        groups=run.state.group_sites(),
        teaching_bytes={n: 2 * rounds * sum(sizes[g] for g in s.groups) for n, s in sorted(run.state.sites.items())},
        reference=run.state.reference,
    )


def _rename_traffic(run: Run, node: str, site: str) -> None:
    for phase, (sent, received) in run.council.traffic.pop(node, {}).items():
        total = run.council.traffic.setdefault(site, {}).setdefault(phase, [0, 0])
        total[0] += sent
        total[1] += received


def _reasons(run: Run) -> str:
    last = run.record.events("round")[-1]["left_out"]
    return "; ".join(f"{name}: {reason}" for name, reason in (last | run.council.refused).items()) or "none given"
