"""Teachers and student at one place: the protocol of MIND and of pooled-bottleneck fusion, which are not federated.

Neither paper has sites (arXiv 2502.01158; doi 10.1016/j.cmpb.2024.108568, of which the abstract could be read); that teachers and
student learn from the same patients is our reading. Networks, losses and settings are those of a run of the five phases, with all
epochs of a phase at one place: the teachers' are ``teach.rounds x teach.epochs``, the student's ``distill.epochs``; modality
weights stay equal, and the consilium's scale and bias where they start.
"""

from __future__ import annotations

import torch

from common.data.cohort import concatenate
from common.evaluation.predictions import student_speaker
from common.learning.lessons import teach_cohort, train_student, train_teacher
from common.learning.loop import derive_seed
from common.models.ensemble import Ensembles, build_teacher, groups, initial_calibration, read_by
from common.models.student import parameters_of
from server.distillation import new_student
from simulations.baselines import Consortium, Trained, common_ground, curves_of, refuse_volumes


def central_kd(consortium: Consortium) -> Trained:
    """Trains a teacher of every group on all training patients that hold what it reads, and the student with them."""
    config = consortium.config
    refuse_volumes(config, "central-kd")
    scaling, prior = common_ground(consortium.training.values())
    pooled = concatenate(c for _, c in sorted(consortium.training.items())).standardised(scaling)
    train, held_out = pooled.part("train"), pooled.part("validation")
    states, curves = {}, []
    for group in groups(config.task, config.model):
        what, seed = read_by(group), derive_seed(config.seed, "central-kd", group)
        if not len(train.holding(what)):
            continue
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            teacher = build_teacher(group, config.task, config.model, prior)
        result = train_teacher(
            teacher,
            what,
            train.holding(what),
            config.teach.training_of(group),
            epochs=config.teach.rounds * config.teach.epochs,
            seed=seed,
            validation=held_out.holding(what),
        )
        states[group] = teacher.state_dict()
        curves += curves_of(result, group)
    calibration = initial_calibration(config.task, prior, scale=config.distill.scale)
    student = new_student(config, prior)
    student.start_fusion_at(calibration.scale, calibration.bias)
    result = train_student(
        student,
        train,
        config,
        config.distill.training,
        teaching=teach_cohort(Ensembles(config.task, config.model, states), train, calibration),
        epochs=config.distill.epochs,
        seed=derive_seed(config.seed, "baseline", "central-kd"),
        validation=held_out,
    )
    speaker = student_speaker(student)
    return Trained(lambda site: (speaker, scaling), parameters_of(student), {}, [*curves, *curves_of(result, "student")])
