"""Phase 4: the sites train the student on their own patients; every block is aggregated over the sites that have data for it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from common.arrays import Arrays, consilium_arrays, consilium_of, tensors
from common.data.cohort import Cohort
from common.learning.lessons import block_counts, student_validation_loss, teach_cohort, train_student, trained_blocks
from common.learning.loop import derive_seed, span_of
from common.learning.modality_weights import OmegaAdam
from common.messages import RefineReply, RefineRequest
from common.models.ensemble import Calibration
from common.models.student import block_of
from server.aggregation import step, weighted_mean
from server.distillation import REFERENCE, training_part
from server.rounds import require_quorum
from server.run import Run
from server.update_gate import fault, require_finite, score_fault

LEAST_SITES_OF_A_TEACHER = 2  # a teacher fitted on a site's own patients alone teaches it memorised logits
CALIBRATION_LR = 0.05


def refine(run: Run) -> None:
    """Runs one round; the last one only validates, so that the best student can be chosen."""
    state, config, number = run.state, run.config, run.state.round
    if config.refine.rounds == 0:
        return _finish(run)
    epochs = config.refine.epochs if number < config.refine.rounds else 0
    requests = {site: _request(run, site, epochs) for site, enrolled in state.sites.items() if enrolled.groups}
    sent = state.arrays["student"]

    def gate(site: str, reply: RefineReply) -> str | None:
        return _gate(reply, sent, state.sites[site].visits)

    replies = run.council.ask("train.refine", requests, RefineReply, round=number, gate=gate)
    for modality, members in state.modality_sites().items():
        require_quorum(f"'{modality}' in refine", number, members, replies, config.federation.quorum)
    _choose(run, replies)
    if not epochs:
        return _finish(run)
    updates = {s: (r.student, r.counts) for s, r in replies.items()}
    if run.reference is not None and len(run.reference):
        updates[REFERENCE] = _at_the_server(run, run.reference, epochs)
    _aggregate(run, updates)
    _learn_weights(run, replies)
    run.advance("refining", number + 1)


def _request(run: Run, site: str, epochs: int) -> RefineRequest:
    members = run.state.group_sites()
    mine = {g: a for g, a in run.state.teachers().items() if g in run.state.sites[site].groups}
    fields = run.request("refine", run.state.round, site)
    if not _moves_weights(run):  # no site need find gradients that nobody follows
        fields["config"]["weights"]["estimator"] = "uniform"
    if _fitted(run):
        fields["config"]["distill"]["scale"] = False
    return RefineRequest(
        **fields,
        epochs=epochs,
        student=run.state.arrays["student"],
        teachers={g: a for g, a in mine.items() if epochs and len(members[g]) >= LEAST_SITES_OF_A_TEACHER},
        consilium=run.state.arrays["consilium"],
        standardisation=run.state.standardisation(),
    )


def _gate(reply: RefineReply, sent: Arrays, visits: Mapping[str, int]) -> str | None:
    """Returns why a reply is refused, or None."""
    foreign = sorted(set(reply.student) - set(sent))
    if foreign:
        return f"it holds '{foreign[0][:60]}', which it was not asked for"
    blocks, expected = _blocks(reply.student), _blocks(sent)
    absent = [b for b in expected if reply.counts.get(b) and b not in blocks]
    if absent:
        return f"it counts training visits of '{absent[0]}' without the block"
    gradients = {"omega": sent["omega"], "scale": sent["prior"], "bias": sent["prior"]}
    if set(reply.meta) not in (set(), {"omega"}, {"scale", "bias"}, set(gradients)):
        return "its gradients of the modality weights are incomplete"
    if not 0 <= reply.meta_count <= visits["meta"]:
        return f"its gradients claim {reply.meta_count} meta visits, the site enrolled with {visits['meta']}"
    meta = fault({"meta": reply.meta}, {"meta": {k: gradients[k] for k in reply.meta}}, {}, 0)
    score = score_fault({"student": reply.validation}, visits["validation"]) if reply.validation else None
    return fault(blocks, expected, reply.counts, 1, visits["train"]) or meta or score


def _blocks(student: Arrays) -> dict[str, Arrays]:
    """Returns block -> parameters; buffers belong to the server."""
    blocks: dict[str, Arrays] = {}
    for name, array in student.items():
        if name not in ("omega", "prior"):
            blocks.setdefault(block_of(name), {})[name] = array
    return blocks


def _at_the_server(run: Run, reference: Cohort, epochs: int) -> tuple[Arrays, dict[str, int]]:
    """Trains the student on the reference set, which takes part in the round like one more site: else refine would forget it."""
    config, student = run.config, run.student()
    train = training_part(config, reference)
    calibration, _ = consilium_of(run.state.arrays["consilium"])
    teaching = teach_cohort(run.ensembles(), train, calibration)
    seed = derive_seed(config.seed, "refine", run.state.round, REFERENCE)
    span = span_of(run.state.round, config.refine.rounds)
    fit = train_student(student, train, config, config.refine.training, teaching=teaching, epochs=epochs, seed=seed, span=span)
    require_finite("the student", student, fit, "refine.training.lr")
    counts = block_counts(student, train)
    return trained_blocks(student, counts), counts


def _aggregate(run: Run, updates: Mapping[str, tuple[Arrays, dict[str, int]]]) -> None:
    """Averages every block over the places that have data enough for it (``federation.min_patients``), and takes a step there."""
    least = run.config.federation.min_patients
    sent, mean = run.state.arrays["student"], Arrays()
    for block in _blocks(sent):
        mine = {s: _blocks(arrays)[block] for s, (arrays, counts) in updates.items() if counts.get(block, 0) >= least}
        if mine:
            mean |= weighted_mean(mine, {s: updates[s][1][block] for s in mine})
    velocity = run.state.arrays.get("velocity", {})
    student, moved = step(sent, mean, velocity, run.config.refine.momentum)
    run.state.arrays |= {"student": sent | student, "velocity": velocity | moved}


def _learn_weights(run: Run, replies: dict[str, RefineReply]) -> None:
    """Averages the sites' gradients of omega, s and b, weighted by meta visits, and takes one step each."""
    arrays = run.state.arrays
    calibration, omega = consilium_of(arrays["consilium"])
    if gradient := _mean_gradient(replies, "omega") if _moves_weights(run) else {}:
        adam = OmegaAdam(omega, run.config.weights.rho, tensors(arrays.get("omega-adam", {})))
        omega = adam.step(torch.from_numpy(gradient["omega"]))
        arrays["omega-adam"] = {k: v.numpy() for k, v in adam.state().items()}
        run.note_weights(run.state.round, omega)
    if not _fitted(run) and (gradient := _mean_gradient(replies, "scale", "bias")):
        step = tensors(gradient)
        calibration = Calibration(
            calibration.scale - CALIBRATION_LR * step["scale"].sign(),
            calibration.bias - CALIBRATION_LR * step["bias"].sign(),
            calibration.prior,
        )
    arrays["student"] = {**arrays["student"], "omega": omega.numpy()}
    arrays["consilium"] = consilium_arrays(calibration, omega)


def _fitted(run: Run) -> bool:
    """Returns whether s and b come from the reference set; else they follow the sites' gradients."""
    return run.reference is not None and run.reference.labelled


def _moves_weights(run: Run) -> bool:
    return run.config.weights.estimator != "uniform" and not run.state.equal_weights


def _mean_gradient(replies: dict[str, RefineReply], *names: str) -> Arrays:
    """Returns the mean over the sites that sent all of these gradients, weighted by their meta visits; empty if none did."""
    sent = {s: r for s, r in replies.items() if r.meta_count and all(n in r.meta for n in names)}
    if not sent:
        return {}
    return weighted_mean({s: {n: r.meta[n] for n in names} for s, r in sent.items()}, {s: r.meta_count for s, r in sent.items()})


def _choose(run: Run, replies: dict[str, RefineReply]) -> None:
    """Keeps the student that was sent if it validates best so far, over the sites' and the reference set's validation visits."""
    scores = [r.validation for _, r in sorted(replies.items()) if r.validation is not None]
    reference = run.reference
    if reference is not None and reference.labelled and len(held := reference.part("validation")):
        scores.append((student_validation_loss(run.student(), held), len(held)))
    if not scores:
        return
    loss = sum(value * n for value, n in scores) / sum(n for _, n in scores)
    run.note_loss("student", "validation", loss)
    if loss <= run.state.best.get("student", float("inf")):
        run.state.best["student"] = loss
        run.state.arrays["best:student"] = run.state.arrays["student"]
        run.state.arrays["best:consilium"] = run.state.arrays["consilium"]


def _finish(run: Run) -> None:
    """Goes on to phase 5 with the best student."""
    for name in ("student", "consilium"):
        run.state.arrays[name] = run.state.arrays.pop(f"best:{name}", run.state.arrays[name])
    run.advance("evaluating")
