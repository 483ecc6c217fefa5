"""WorldRec `small`: procedural streets at 272 x 480 for one GPU.

128 wide, 16,320 queries of four Gaussians a view, 8 context pictures (522,240 Gaussians a scene);
the backbone is `tiny`'s, half as wide again and deeper. Starts from scratch.
Data: the folders that
    jwm data make --rung full --clips 2000 --height 272 --width 480 --out data/streets_full_272
    jwm data make --rung easy --clips 500 --height 272 --width 480 --out data/streets_easy_272
make, of three views.
Hardware and time: written for one GPU of 80 GB, or several with --mesh.data or --mesh.context; no
run of it has been made yet, so neither hours nor scores are known.
Command: jwm train worldrec_small --out runs/worldrec_small
"""

from jwm_jax.paradigms.worldrec import WorldRecExperiment
from jwm_jax.paradigms.worldrec_data import Sampling
from jwm_jax.training.optimizer import OptimizerConfig
from jwm_jax.worldrec import StageConfig, WorldRecConfig

MODEL = WorldRecConfig(
    height=272,
    cell=(2, 4),
    children=(2, 2),
    width=128,
    hidden=256,
    weight_hidden=64,
    stem=24,
    stages=(
        StageConfig(24, 1, 1, 1, True),
        StageConfig(40, 3, 2, 4, True),
        StageConfig(64, 3, 2, 4, True),
        StageConfig(96, 4, 2, 4, False),
    ),
    pyramid=64,
    max_tracks=48,
    sky=(48, 192),
)


def config() -> WorldRecExperiment:
    """The experiment."""
    return WorldRecExperiment(
        name="worldrec_small",
        steps=40_000,
        batch_size=2,
        model=MODEL,
        size="small",
        datasets=("data/streets_full_272", "data/streets_easy_272"),
        sampling=Sampling(max_context=8, targets=4),
        optimizer=OptimizerConfig(learning_rate=8e-4, warmup_steps=1000, ema_decay=0.999),
        eval_every=1000,
        checkpoint_minutes=10.0,
    )
