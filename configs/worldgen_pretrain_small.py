"""Bidirectional pretraining of the `small` generator (512 wide, 12 layers) at 256x448, for one GPU.

The stage before `worldgen_small`. Data: a folder of streets, or of converted drives, of 49
frames:

    jwm data make --rung full --clips 4000 --frames 49 --height 256 --width 448 --views front \
        --out data/streets_full_256
    jwm train worldgen_pretrain_small --out runs/worldgen_pretrain_small

Its latents are those of the codec `small`, which is not trained yet: `--set model.codec=DIR`
names another of 32 channels. Hardware and time: written for one GPU of 80 GB; no run has been
made, so neither hours nor scores are known. `--dry-run` prints memory, products and collectives.
"""

from jwm_jax.distributed.mesh import MeshConfig
from jwm_jax.paradigms.latents import LatentSource
from jwm_jax.paradigms.pretrain import PretrainExperiment
from jwm_jax.training.optimizer import OptimizerConfig
from jwm_jax.worldgen.config import SIZES


def config() -> PretrainExperiment:
    """The experiment."""
    return PretrainExperiment(
        name="worldgen_pretrain_small",
        steps=40000,
        batch_size=32,
        mesh=MeshConfig(data=-1),
        optimizer=OptimizerConfig(
            learning_rate=3e-4,
            warmup_steps=500,
            weight_decay=0.01,
            b2=0.95,
            ema_decay=0.9995,
        ),
        model=SIZES["small"],
        source=LatentSource(
            datasets=("data/streets_full_256",),
            frames=49,
            window=13,
            height=256,
            width=448,
        ),
        eval_every=1000,
    )
