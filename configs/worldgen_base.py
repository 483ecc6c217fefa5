"""Teacher forcing of the `base` generator in chunks of three latent frames, 480x832, after
`worldgen_pretrain_base`: a given frame and seven chunks, 85 frames.

    jwm train worldgen_base --out runs/worldgen_base

Hardware and time: as for `worldgen_pretrain_base`; no run has been made.
"""

from dataclasses import replace

from jwm_configs import worldgen_pretrain_base
from jwm_jax.paradigms.teacher_forcing import TeacherForcingExperiment


def config() -> TeacherForcingExperiment:
    """The experiment."""
    base = worldgen_pretrain_base.config()
    fields = {name: getattr(base, name) for name in base.__dataclass_fields__}
    return TeacherForcingExperiment(
        **{
            **fields,
            "name": "worldgen_base",
            "init_from": "runs/worldgen_pretrain_base/model",
            "source": replace(base.source, frames=85, window=22),
            "optimizer": replace(base.optimizer, learning_rate=2e-6),
        }
    )
