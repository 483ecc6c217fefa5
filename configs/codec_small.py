"""The `small` video codec: that of `codec_tiny`, wider, for one GPU and pictures of 256 rows.

On the streets and real drives of `codec_tiny`, made at 256x448:

    jwm data make --rung full --clips 2000 --height 256 --width 448 --views front \\
        --out data/streets_256
    jwm train codec_small --out runs/codec_small

Hardware and time: written for one GPU; no run has been made.
"""

from dataclasses import replace

from jwm_configs import codec_tiny
from jwm_jax.paradigms.codec import CodecExperiment
from jwm_jax.worldgen.codec_network import SIZES


def config() -> CodecExperiment:
    """The experiment."""
    return replace(
        codec_tiny.config(),
        name="codec_small",
        steps=40000,
        batch_size=16,
        codec=SIZES["small"],
        datasets=("data/streets_256",),
        dataset_shares=(0.45,),
        crop_frames=17,
        crop_height=128,
        crop_width=192,
        eval_every=2000,
    )
