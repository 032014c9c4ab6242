"""Phase 5: every site evaluates student and teachers for every pattern on its own test patients."""

from __future__ import annotations

import math

from common.messages import EvaluateReply, EvaluateRequest
from server.rounds import require_quorum
from server.run import Run

COLUMNS = {"model": str, "pattern": str, "metric": str, "value": float, "n": int}


def evaluate(run: Run) -> None:
    """Collects what the sites release; while ``federation.quorum`` of them answer, the run finishes without the others."""
    state = run.state
    requests = {
        site: EvaluateRequest(
            **run.request("evaluate", 0, site),
            student=state.arrays["student"] if run.config.trains_student else {},
            teachers=state.teachers(),
            consilium=state.arrays["consilium"],
            standardisation=state.standardisation(),
        )
        for site, enrolled in state.sites.items()
        if enrolled.visits.get("test")
    }

    def gate(site: str, reply: EvaluateReply) -> str | None:
        most = state.sites[site].visits["test"]
        for row in reply.rows:
            if row.keys() != COLUMNS.keys() or not all(isinstance(row[name], kind) for name, kind in COLUMNS.items()):
                return f"its rows do not consist of {', '.join(COLUMNS)}"
            if not 0 <= row["n"] <= most:
                return f"its {row['metric']} of {row['model']} rests on {row['n']} visits, the site enrolled with {most} to test"
            if not math.isfinite(row["value"]):
                return f"its {row['metric']} of {row['model']} is NaN or infinite"
        return None

    replies = run.council.ask("evaluate.patterns", requests, EvaluateReply, gate=gate)
    if requests:
        require_quorum("the evaluation", 0, requests, replies, run.config.federation.quorum)
    state.evaluation = [{"site": site, **row} for site, reply in replies.items() for row in reply.rows]
    state.withheld = {site: reply.withheld for site, reply in replies.items()}
    run.export()
    run.advance("finished")
