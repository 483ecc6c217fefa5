"""Causal consistency distillation of the `small` generator to 4 steps, after `worldgen_small`
and on its data, with it as teacher.

    jwm train worldgen_cd_small --out runs/worldgen_cd_small

Hardware and time: as for `worldgen_pretrain_small`; no run has been made.
"""

from dataclasses import replace

from jwm_configs import worldgen_small
from jwm_jax.paradigms.consistency import ConsistencyExperiment


def config() -> ConsistencyExperiment:
    """The experiment."""
    before = worldgen_small.config()
    return ConsistencyExperiment(
        name="worldgen_cd_small",
        steps=3000,
        batch_size=before.batch_size,
        mesh=before.mesh,
        optimizer=replace(
            before.optimizer, learning_rate=5e-5, warmup_steps=100, weight_decay=0.0, ema_decay=0.99
        ),
        model=before.model,
        source=before.source,
        teacher="runs/worldgen_small/model",
        eval_every=500,
    )
