"""Teacher forcing of the `small` generator, after `worldgen_pretrain_small` and on its data.

    jwm train worldgen_small --out runs/worldgen_small

Hardware and time: as for `worldgen_pretrain_small`; no run has been made.
"""

from dataclasses import replace

from jwm_configs import worldgen_pretrain_small
from jwm_jax.paradigms.teacher_forcing import TeacherForcingExperiment


def config() -> TeacherForcingExperiment:
    """The experiment."""
    base = worldgen_pretrain_small.config()
    fields = {name: getattr(base, name) for name in base.__dataclass_fields__}
    return TeacherForcingExperiment(
        **{
            **fields,
            "name": "worldgen_small",
            "init_from": "runs/worldgen_pretrain_small/model",
            "source": replace(base.source, frames=49, window=13),
            "optimizer": replace(base.optimizer, learning_rate=1e-4),
        }
    )
