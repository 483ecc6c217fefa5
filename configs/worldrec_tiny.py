"""WorldRec `tiny`: feed-forward reconstruction of procedural streets at 96 x 160.

Starts from the weights of `worldrec_easy_tiny`.
Data: `jwm data make` folders data/streets_easy and data/streets_full (front view, 300 clips each)
and data/streets_easy_rig, data/streets_full_rig (three views).
Hardware and time: about an hour on one CPU core.
Command: jwm train worldrec_tiny --out runs/worldrec_tiny
"""

from jwm_jax.paradigms.worldrec import WorldRecExperiment
from jwm_jax.training.optimizer import OptimizerConfig


def config() -> WorldRecExperiment:
    """The experiment."""
    return WorldRecExperiment(
        name="worldrec_tiny",
        steps=3000,
        batch_size=2,
        datasets=(
            "data/streets_easy",
            "data/streets_full",
            "data/streets_easy_rig",
            "data/streets_full_rig",
        ),
        init_from="runs/worldrec_easy_tiny/model",
        optimizer=OptimizerConfig(
            learning_rate=1.5e-3, warmup_steps=50, final_fraction=0.02, ema_decay=0.995
        ),
        eval_every=250,
        checkpoint_minutes=3.0,
    )
