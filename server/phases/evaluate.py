"""Phase 5: every site evaluates student and teachers for every pattern on its own test patients."""

from __future__ import annotations

from common.messages import EvaluateReply, EvaluateRequest
from server.rounds import RunFailed
from server.run import Run
from server.update_gate import not_finite

NAMES = ("model", "pattern", "metric")
NUMBERS = ("value", "n")


def evaluate(run: Run) -> None:
    """Collects what the sites release; a site that does not answer is named in the record, and the run finishes without it."""
    state = run.state
    requests = {
        site: EvaluateRequest(
            **run.request("evaluate", 0, site),
            student=state.arrays["student"],
            teachers=state.teachers(),
            consilium=state.arrays["consilium"],
            standardisation=state.standardisation(),
        )
        for site, enrolled in state.sites.items()
        if enrolled.visits.get("test")
    }

    def gate(site: str, reply: EvaluateReply) -> str | None:
        for row in reply.rows:
            if set(row) != {*NAMES, *NUMBERS} or not all(isinstance(row[name], str) for name in NAMES):
                return f"its rows do not consist of {', '.join((*NAMES, *NUMBERS))}"
        return not_finite({f"{n} of {r['metric']} of {r['model']}": float(r[n]) for r in reply.rows for n in NUMBERS})

    replies = run.council.ask("evaluate.patterns", requests, EvaluateReply, gate=gate)
    if requests and not replies:
        raise RunFailed("no site evaluated the student. See left_out in events.jsonl, mend the sites, and resume the run")
    state.evaluation = [{"site": site, **row} for site, reply in replies.items() for row in reply.rows]
    state.withheld = {site: reply.withheld for site, reply in replies.items()}
    run.export()
    run.advance("finished")
