"""WorldRec `base`: the published size, 110,592 static queries a view at 576 x 768.

The size of PointForward (arXiv 2605.11594): about 100,000 queries a view, one Gaussian each,
EfficientNetV2-S (without its last stage of stride 32) under a pyramid 128 wide, AdamW at 5e-4 with
2,000 steps of warm-up and a cosine over 45,000 steps at batch 8. Where that paper gives every actor
10,000 queries of its own, an actor here owns the cells of the pictures that its box claims: up to
a whole view's. 12 context pictures (three views, four instants) make 1,327,104 Gaussians a scene.
Data: converted drives, resized to 576 x 768, or the folder that
    jwm data make --rung full --clips 4000 --height 576 --width 768 --out data/streets_full_576
makes.
Hardware and time: written for one H200 or 8 devices with --mesh.data 2 --mesh.context 4 (context
divides the 12 pictures and the 4 targets); the paper trained on 8 H20 for a time it does not give.
No run of it has been made yet, so neither hours nor scores are known.
Command: jwm train worldrec_base --out runs/worldrec_base
"""

from jwm_jax.paradigms.worldrec import WorldRecExperiment
from jwm_jax.paradigms.worldrec_data import Sampling
from jwm_jax.training.optimizer import OptimizerConfig
from jwm_jax.worldrec import StageConfig, WorldRecConfig

MODEL = WorldRecConfig(
    height=576,
    cell=(2, 2),
    children=(1, 1),
    width=256,
    hidden=512,
    weight_hidden=64,
    stem=24,
    stages=(
        StageConfig(24, 2, 1, 1, True),
        StageConfig(48, 4, 2, 4, True),
        StageConfig(64, 4, 2, 4, True),
        StageConfig(128, 6, 2, 4, False),
        StageConfig(160, 9, 1, 6, False),
    ),
    pyramid=128,
    max_tracks=64,
    sky=(96, 384),
)


def config() -> WorldRecExperiment:
    """The experiment."""
    return WorldRecExperiment(
        name="worldrec_base",
        steps=45_000,
        batch_size=8,
        model=MODEL,
        size="base",
        datasets=("data/streets_full_576",),
        sampling=Sampling(max_context=12, targets=4, track_steps=64),
        optimizer=OptimizerConfig(
            learning_rate=5e-4, warmup_steps=2000, final_fraction=0.0, b2=0.999
        ),
        eval_every=1000,
        checkpoint_minutes=15.0,
    )
