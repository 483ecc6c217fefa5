"""Causal consistency distillation of the `base` generator to 4 steps, after `worldgen_base` and on
its data, with it as teacher.

    jwm train worldgen_cd_base --out runs/worldgen_cd_base

Hardware and time: as for `worldgen_pretrain_base`; no run has been made.
"""

from dataclasses import replace

from jwm_configs import worldgen_base
from jwm_jax.paradigms.consistency import ConsistencyExperiment


def config() -> ConsistencyExperiment:
    """The experiment."""
    before = worldgen_base.config()
    return ConsistencyExperiment(
        name="worldgen_cd_base",
        steps=3000,
        batch_size=before.batch_size,
        mesh=before.mesh,
        optimizer=replace(
            before.optimizer, learning_rate=2e-6, warmup_steps=100, weight_decay=0.0, ema_decay=0.99
        ),
        model=before.model,
        source=before.source,
        teacher="runs/worldgen_base/model",
        eval_every=500,
    )
