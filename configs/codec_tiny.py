"""The `tiny` video codec: 4x temporal, 8x8 spatial, 32 channels, on the procedural streets.

Trains on pictures of both rungs, on their layout frames, and on one real drive in `$JWM_DATA`
(`--set video=` does without). configs/README.md makes the streets (25 frames at 10 Hz, 96x160):

    jwm train codec_tiny --devices 2 --out runs/codec_tiny

Hardware: two CPU cores as two simulated devices, 27 minutes beside other work. The weights that
ship with the package come from this config on 96 easy and 120 full streets (the latter with seeds
from 200,000 on); their card has the scores, and `jwm evaluate codec` prints them.
"""

from jwm_jax.distributed.mesh import MeshConfig
from jwm_jax.paradigms.codec import CodecExperiment
from jwm_jax.training.optimizer import OptimizerConfig


def config() -> CodecExperiment:
    """The experiment."""
    return CodecExperiment(
        name="codec_tiny",
        steps=1600,
        batch_size=4,
        mesh=MeshConfig(data=-1),
        optimizer=OptimizerConfig(
            learning_rate=2e-3,
            warmup_steps=60,
            final_fraction=0.01,
            weight_decay=0.0,
            b1=0.95,
            b2=0.98,
            ema_decay=0.995,
            muon=True,
        ),
        datasets=("data/streets_easy", "data/streets_full"),
        dataset_shares=(0.3, 0.45),
        layout_share=0.15,
        video="$JWM_DATA/real_driving_clips/nvidia_sample_av_mv_input_rgb.mp4",
        video_share=0.1,
        log_every=20,
        eval_every=200,
        checkpoint_minutes=4.0,
    )
