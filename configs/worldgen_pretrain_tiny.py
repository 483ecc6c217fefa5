"""Bidirectional pretraining of the `tiny` generator (192 wide, 6 layers) on the procedural streets.

First of three stages; the second, `worldgen_tiny`, starts from its weights. Needs the `tiny`
codec and data/streets_easy and data/streets_full (configs/README.md):

    jwm train worldgen_pretrain_tiny --devices 2 --out runs/worldgen_pretrain_tiny

It sees priors from the scenes of the shipped WorldRec, hidden from 30 % of the samples, so that it
can judge a student that sees them (`worldgen_dmd_tiny`).

The first run encodes the clips into runs/latents (about half a second an example), later ones
find them there. The codec's real drives are part of the data; `--set source.clips=[]` does
without. Hardware: 2 CPU cores as two simulated devices.
"""

from jwm_configs import codec_tiny
from jwm_jax.distributed.mesh import MeshConfig
from jwm_jax.paradigms.latents import LatentSource
from jwm_jax.paradigms.pretrain import PretrainExperiment
from jwm_jax.paradigms.worldgen_task import DROPOUT
from jwm_jax.training.optimizer import OptimizerConfig
from jwm_jax.worldgen.config import SIZES


def config() -> PretrainExperiment:
    """The experiment."""
    return PretrainExperiment(
        name="worldgen_pretrain_tiny",
        steps=2000,
        batch_size=8,
        mesh=MeshConfig(data=-1),
        optimizer=OptimizerConfig(
            learning_rate=1.5e-3,
            warmup_steps=60,
            final_fraction=0.1,
            weight_decay=0.01,
            b2=0.97,
            ema_decay=0.995,
        ),
        model=SIZES["tiny"],
        rec="tiny",
        dropout={**DROPOUT, "prior": 0.3},
        source=LatentSource(
            datasets=("data/streets_easy", "data/streets_full"),
            clips=codec_tiny.config().clips,
        ),
        log_every=20,
        eval_every=500,
        checkpoint_minutes=4.0,
    )
