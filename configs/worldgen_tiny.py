"""Teacher forcing of the `tiny` generator on the procedural streets: the model that sessions run.

Second of three stages. Data, codec and hardware as for `worldgen_pretrain_tiny`, whose weights
it starts from and whose encoded latents it reads:

    jwm train worldgen_pretrain_tiny --devices 2 --out runs/worldgen_pretrain_tiny
    jwm train worldgen_tiny --devices 2 --out runs/worldgen_tiny

`--set init_from=null` starts from scratch, `--set init_from=DIR` from another model. Evaluation
rolls held-out clips out on the model's own output with 4-step sampling of the teacher-forced
model (no distillation).
"""

from jwm_configs import codec_tiny
from jwm_jax.distributed.mesh import MeshConfig
from jwm_jax.paradigms.latents import LatentSource
from jwm_jax.paradigms.teacher_forcing import TeacherForcingExperiment
from jwm_jax.training.optimizer import OptimizerConfig
from jwm_jax.worldgen.config import SIZES


def config() -> TeacherForcingExperiment:
    """The experiment."""
    return TeacherForcingExperiment(
        name="worldgen_tiny",
        steps=8000,
        batch_size=8,
        mesh=MeshConfig(data=-1),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            warmup_steps=60,
            final_fraction=0.02,
            weight_decay=0.01,
            b2=0.97,
            ema_decay=0.998,
            muon=True,
        ),
        model=SIZES["tiny"],
        source=LatentSource(
            datasets=("data/streets_easy", "data/streets_full"),
            clips=codec_tiny.config().clips,
        ),
        init_from="runs/worldgen_pretrain_tiny/model",
        log_every=20,
        eval_every=500,
        checkpoint_minutes=4.0,
    )
