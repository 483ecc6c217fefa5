"""Distribution matching of the `base` student on its own rollouts, after `worldgen_cd_base`:
student, critic, frozen bidirectional real score and frozen causal teacher in one step, the critic
five times for each update of the student.

    jwm train worldgen_dmd_base --out runs/worldgen_dmd_base

Ahead of time, one sample on four chips, 64 of them:

    jwm train worldgen_dmd_base --batch-size 16 --mesh.data 4 --mesh.fsdp 4 --mesh.context 4 \\
        --dry-run --aot v5p:4x4x4

compiles the whole step (1.62 G parameters a network with our conditions; both phases, all terms) in
825 s on two busy cores: 14.47 GB a chip, of which 11.83 GB are temporary; student 0.41 GB, its
average 0.41 GB, its second moments 0.41 GB, critic 0.41 and 0.41 GB, real score and teacher 0.20 GB
each in bfloat16. 3,891 TFLOP a chip and step, 8.5 s at a chip's peak of 459 TFLOP/s, with the steps
before a rollout's exit counted once, where the schedule takes none to three (1.5 on average).

Hardware and time: as for `worldgen_pretrain_base`; no run has been made.
"""

from dataclasses import replace

from jwm_configs import worldgen_cd_base, worldgen_dmd_tiny
from jwm_jax.paradigms.distill import DistillExperiment


def config() -> DistillExperiment:
    """The experiment."""
    before, tiny = worldgen_cd_base.config(), worldgen_dmd_tiny.config()
    return DistillExperiment(
        name="worldgen_dmd_base",
        steps=1000,
        batch_size=before.batch_size,
        mesh=before.mesh,
        optimizer=replace(tiny.optimizer, learning_rate=2e-6, ema_decay=0.99, ema_start=200),
        critic_optimizer=replace(tiny.critic_optimizer, learning_rate=4e-7),
        model=before.model,
        source=before.source,
        init_from="runs/worldgen_cd_base/model",
        real="runs/worldgen_pretrain_base/model",
        teacher="runs/worldgen_base/model",
        weights=tiny.weights,
        frozen_dtype="bfloat16",
        eval_every=100,
    )
