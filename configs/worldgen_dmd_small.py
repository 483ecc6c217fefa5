"""Distribution matching of the `small` student on its own rollouts, after `worldgen_cd_small`:
student, critic, frozen bidirectional real score and frozen causal teacher in one step, the critic
five times for each update of the student.

    jwm train worldgen_dmd_small --out runs/worldgen_dmd_small

Hardware and time: as for `worldgen_pretrain_small`; no run has been made.
"""

from dataclasses import replace

from jwm_configs import worldgen_cd_small, worldgen_dmd_tiny
from jwm_jax.paradigms.distill import DistillExperiment


def config() -> DistillExperiment:
    """The experiment."""
    before, tiny = worldgen_cd_small.config(), worldgen_dmd_tiny.config()
    return DistillExperiment(
        name="worldgen_dmd_small",
        steps=1000,
        batch_size=before.batch_size,
        mesh=before.mesh,
        optimizer=replace(tiny.optimizer, learning_rate=2e-5, ema_decay=0.99, ema_start=200),
        critic_optimizer=replace(tiny.critic_optimizer, learning_rate=4e-5),
        model=before.model,
        source=before.source,
        init_from="runs/worldgen_cd_small/model",
        real="runs/worldgen_pretrain_small/model",
        teacher="runs/worldgen_small/model",
        weights=tiny.weights,
        frozen_dtype="bfloat16",
        eval_every=100,
    )
