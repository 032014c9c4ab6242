"""Phase 2: the sites of every group train its teacher together."""

from __future__ import annotations

from common.arrays import Arrays, module_arrays, tensors
from common.data.cohort import Cohort
from common.learning.lessons import train_teacher
from common.learning.loop import derive_seed, span_of
from common.messages import TeachReply, TeachRequest
from common.models.ensemble import build_teacher, read_by
from server.aggregation import weighted_mean
from server.distillation import REFERENCE
from server.rounds import require_quorum
from server.run import Run
from server.update_gate import fault, loss_fault, require_finite, score_fault


def teach(run: Run) -> None:
    """Runs one round; the last one only validates, so that the best round of every group can be chosen.

    From round ``teach.reference_from`` on a labelled reference set takes part like one more site. The teachers as they were
    before are kept: what is fitted on reference patients, s, b and omega, needs teachers that never saw them.
    """
    state, config, number = run.state, run.config, run.state.round
    epochs = config.teach.epochs if number < config.teach.rounds else 0
    sent = {g: state.arrays[f"teacher:{g}"] for g in state.group_sites()}
    requests = {
        site: TeachRequest(
            **run.request("teach", number, site),
            epochs=epochs,
            groups={g: sent[g] for g in enrolled.groups},
            standardisation=state.standardisation(),
        )
        for site, enrolled in state.sites.items()
        if enrolled.groups
    }

    def gate(site: str, reply: TeachReply) -> str | None:
        visits = state.sites[site].visits
        reason = fault(reply.groups, requests[site].groups, reply.counts, config.federation.min_patients, visits["train"])
        trained = {f"training loss of '{g}'": loss for g, loss in reply.training.items()}
        return reason or score_fault(reply.validation, visits["validation"]) or loss_fault(trained)

    replies = run.council.ask("train.teach", requests, TeachReply, round=number, gate=gate)
    reference = run.reference if run.reference is not None and run.reference.labelled else None
    for group, members in state.group_sites().items():
        mine = {s: r for s, r in replies.items() if group in r.groups}
        require_quorum(f"group '{group}'", number, members, mine, config.federation.quorum)
        _choose(run, group, mine)
        if reference is not None and number == config.teach.reference_from:
            state.arrays[f"unseeing:{group}"] = state.teachers()[group]
        if epochs:
            updates = {s: (r.groups[group], r.counts[group]) for s, r in mine.items()}
            if reference is not None and number >= config.teach.reference_from:
                updates |= _at_the_server(run, reference, group)
            state.arrays[f"teacher:{group}"] = weighted_mean(
                {s: arrays for s, (arrays, _) in updates.items()}, {s: n for s, (_, n) in updates.items()}
            )
    if epochs:
        run.advance("teaching", number + 1)
    else:
        run.advance("distilling")


def _at_the_server(run: Run, reference: Cohort, group: str) -> dict[str, tuple[Arrays, int]]:
    """Trains a teacher on the reference patients that hold what it reads; nothing if they are too few."""
    config, modality = run.config, read_by(group)
    mine = reference.part("train", "meta").holding(modality)
    if len(mine) < config.federation.min_patients:
        return {}
    teacher = build_teacher(group, config.task, config.model)
    teacher.load_state_dict(tensors(run.state.arrays[f"teacher:{group}"]))
    seed = derive_seed(config.seed, "teach", run.state.round, REFERENCE, group)
    span, training = span_of(run.state.round, config.teach.rounds), config.teach.training_of(group)
    fit = train_teacher(teacher, modality, mine, training, epochs=config.teach.epochs, seed=seed, span=span)
    require_finite(f"the teacher '{group}'", teacher, fit, "teach.training")
    return {REFERENCE: (module_arrays(teacher), len(mine))}


def _choose(run: Run, group: str, replies: dict[str, TeachReply]) -> None:
    """Keeps the parameters that were sent if they validate best so far."""
    scores = [r.validation[group] for _, r in sorted(replies.items()) if group in r.validation]
    trained = [(r.training[group], r.counts[group]) for _, r in sorted(replies.items()) if group in r.training]
    if trained:
        run.note_loss(group, "train", _mean(trained))
    if not scores:
        return
    loss = _mean(scores)
    run.note_loss(group, "validation", loss)
    if loss <= run.state.best.get(group, float("inf")):
        run.state.best[group] = loss
        run.state.arrays[f"best:{group}"] = run.state.arrays[f"teacher:{group}"]


def _mean(pairs: list[tuple[float, int]]) -> float:
    return sum(value * n for value, n in pairs) / sum(n for _, n in pairs)
