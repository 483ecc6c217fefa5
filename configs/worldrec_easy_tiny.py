"""First stage of WorldRec `tiny`: easy streets, targets close to the context in time.

Data: the `jwm data make` folder data/streets_easy (front view, 300 clips).
Hardware and time: 10 to 20 minutes on one CPU core.
Command: jwm train worldrec_easy_tiny --out runs/worldrec_easy_tiny
"""

from jwm_jax.paradigms.worldrec import WorldRecExperiment
from jwm_jax.paradigms.worldrec_data import Sampling
from jwm_jax.training.optimizer import OptimizerConfig


def config() -> WorldRecExperiment:
    """The experiment."""
    return WorldRecExperiment(
        name="worldrec_easy_tiny",
        steps=400,
        batch_size=2,
        datasets=("data/streets_easy",),
        sampling=Sampling(beyond=0.8, instant=0.15, untracked=0.0),
        optimizer=OptimizerConfig(
            learning_rate=2e-3, warmup_steps=30, final_fraction=0.2, ema_decay=0.98
        ),
        checkpoint_minutes=3.0,
    )
