"""Distribution matching of the `tiny` student on its own rollouts: the stage after
`worldgen_cd_tiny`, which it starts from. The real score and the critic's start are
`worldgen_pretrain_tiny`; `worldgen_joint_tiny` stays as the teacher of a consistency term that
fades out while matching fades in.

    jwm train worldgen_dmd_tiny --devices 2 --out runs/worldgen_dmd_tiny

`--set init_from=runs/worldgen_joint_tiny/model` leaves the stage before out. Hardware: two
CPU cores as two simulated devices. No run has been kept yet.
"""

from jwm_configs import worldgen_cd_tiny
from jwm_jax.paradigms.distill import DistillExperiment, WeightSchedule
from jwm_jax.training.optimizer import OptimizerConfig


def config() -> DistillExperiment:
    """The experiment: 50 steps in which only the critic learns, then 400 for both."""
    before = worldgen_cd_tiny.config()
    matching = {"warmup_steps": 10, "final_fraction": 0.1, "weight_decay": 0.0, "b1": 0.0}
    return DistillExperiment(
        name="worldgen_dmd_tiny",
        steps=450,
        batch_size=before.batch_size,
        mesh=before.mesh,
        optimizer=OptimizerConfig(
            learning_rate=3e-5, b2=0.999, ema_decay=0.98, ema_start=50, **matching
        ),
        critic_optimizer=OptimizerConfig(learning_rate=6e-5, b2=0.999, ema_decay=0.0, **matching),
        model=before.model,
        source=before.source,
        rec=before.rec,
        depth=before.depth,
        dropout=before.dropout,
        init_from="runs/worldgen_cd_tiny/model",
        real="runs/worldgen_pretrain_tiny/model",
        teacher="runs/worldgen_joint_tiny/model",
        weights=WeightSchedule(
            cd=((0, 0.0), (50, 0.0), (51, 1.0), (200, 0.1)),
            dmd=((0, 0.0), (50, 0.0), (51, 1.0)),
        ),
        log_every=10,
        eval_every=50,
        best="statistics_gap",
        checkpoint_minutes=4.0,
    )
