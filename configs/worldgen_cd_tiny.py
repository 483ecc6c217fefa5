"""Causal consistency distillation of the `tiny` generator to 4 steps: the stage after
`worldgen_joint_tiny`, from its weights, with it as teacher, on its data and priors.

    jwm train worldgen_cd_tiny --devices 2 --out runs/worldgen_cd_tiny

Hardware: two CPU cores as two simulated devices. No run has been kept yet.
"""

from jwm_configs import worldgen_joint_tiny
from jwm_jax.paradigms.consistency import ConsistencyExperiment
from jwm_jax.training.optimizer import OptimizerConfig


def config() -> ConsistencyExperiment:
    """The experiment."""
    before = worldgen_joint_tiny.config()
    return ConsistencyExperiment(
        name="worldgen_cd_tiny",
        steps=1500,
        batch_size=before.batch_size,
        mesh=before.mesh,
        optimizer=OptimizerConfig(
            learning_rate=1e-4,
            warmup_steps=50,
            final_fraction=0.1,
            weight_decay=0.0,
            ema_decay=0.99,
        ),
        model=before.model,
        source=before.source,
        rec=before.rec,
        depth=before.depth,
        dropout=before.dropout,
        init_from=None,
        teacher="runs/worldgen_joint_tiny/model",
        log_every=20,
        eval_every=300,
        checkpoint_minutes=4.0,
    )
