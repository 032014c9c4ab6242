"""Phase 3: the teachers become one student on the reference set."""

from __future__ import annotations

from common.arrays import consilium_arrays, module_arrays
from common.models.ensemble import initial_calibration
from server.distillation import distil, new_student
from server.rounds import RunFailed
from server.run import Run
from server.update_gate import require_finite


def distill(run: Run) -> None:
    """Distils on the reference set; without one, the student starts untrained and learns in refine."""
    reference = run.reference
    if reference is None or not len(reference):
        if run.config.refine.rounds == 0 and run.config.distill.epochs > 0:  # without either, only teachers are asked for
            raise RunFailed("nothing would train the student: there is no reference set, and refine.rounds = 0. Set one of them")
        student, adam = new_student(run.config, run.prior), {}
        calibration = initial_calibration(run.config.task, run.prior, scale=run.config.distill.scale)
        if run.config.distill.gamma:
            student.start_fusion_at(calibration.scale, calibration.bias)
        run.note_weights(0, student.omega)
    else:
        distilled = distil(run.config, reference, run.ensembles(), run.ensembles(unseeing=True), run.prior, run.note_weights)
        require_finite("the student", distilled.student, distilled.fit, "distill.training.lr")
        student, calibration, adam = distilled.student, distilled.calibration, distilled.adam
        run.state.equal_weights = distilled.equal_weights
        if distilled.equal_start:
            reason = (
                "weights.start=evidence, but too few patients of the reference set have all modalities, or one has no teacher"
            )
            run.record.event("equal-start", reason=reason)
        if distilled.equal_weights:
            run.record.event("equal-weights", reason="learned ones were not better on the reference set by a standard error")
        for epoch, loss in enumerate(distilled.fit.training):
            run.note_loss("student", "train", loss, step=epoch + 1)
        for epoch, loss in enumerate(distilled.fit.validation):
            run.note_loss("student", "validation", loss, step=epoch)
    run.state.arrays["student"] = module_arrays(student)
    run.state.arrays["consilium"] = consilium_arrays(calibration, student.omega)
    run.state.arrays["omega-adam"] = {k: v.numpy() for k, v in adam.items()}
    run.advance("refining")
