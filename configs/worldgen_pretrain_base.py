"""Bidirectional pretraining of the `base` generator at 480x832x81, in the shape of Wan 2.1 1.3B:
1536 wide, 30 layers, with our conditions beside it.

The stage before `worldgen_base`. Starts from scratch, or from Wan's weights converted by
`jwm_jax.worldgen.wan`: `--set init_from=DIR`. Prompts are empty. Its latents are those of Wan's
codec, which is not part of the project yet, so this config is for compiling and measuring; it
takes a folder of drives of 81 frames at 480x832:

    jwm train worldgen_pretrain_base --batch-size 1 --mesh.data 1 --mesh.fsdp 1 --mesh.context 4 \\
        --dry-run --aot v5p:2x2x1

compiles one sample on four chips ahead of time, optimiser and average included: 12.08 GB and
358.5 TFLOP a chip. Before weights were gathered by hand (`nn.layers.parameter`) it was 11.97 GB, in
114 s on two idle cores; with `--batch-size 4 --mesh.data 4 --aot v6e:4x4` 11.63 GB in 194 s, with
`--batch-size 16 --mesh.data 16 --aot v5p:4x4x4` 11.72 GB in 112 s, and as many TFLOP.

Hardware and time: no run has been made.
"""

from jwm_jax.distributed.mesh import MeshConfig
from jwm_jax.paradigms.latents import LatentSource
from jwm_jax.paradigms.pretrain import PretrainExperiment
from jwm_jax.training.optimizer import OptimizerConfig
from jwm_jax.worldgen.config import SIZES


def config() -> PretrainExperiment:
    """The experiment."""
    return PretrainExperiment(
        name="worldgen_pretrain_base",
        steps=20000,
        batch_size=64,
        mesh=MeshConfig(data=-1, fsdp=4),
        optimizer=OptimizerConfig(
            learning_rate=2e-5,
            warmup_steps=1000,
            weight_decay=0.01,
            b2=0.95,
            ema_decay=0.9995,
            spike=10.0,
        ),
        model=SIZES["base"],
        source=LatentSource(
            datasets=("data/drives_480",),
            frames=81,
            window=21,
            height=480,
            width=832,
        ),
        eval_every=1000,
    )
