"""Teacher forcing of the `large` generator in chunks of three latent frames, 480x832, after
`worldgen_pretrain_large`: a given frame and seven chunks, 85 frames.

    jwm train worldgen_large --out runs/worldgen_large

Hardware and time: as for `worldgen_pretrain_large`; no run has been made.
"""

from dataclasses import replace

from jwm_configs import worldgen_pretrain_large
from jwm_jax.paradigms.teacher_forcing import TeacherForcingExperiment


def config() -> TeacherForcingExperiment:
    """The experiment."""
    base = worldgen_pretrain_large.config()
    fields = {name: getattr(base, name) for name in base.__dataclass_fields__}
    return TeacherForcingExperiment(
        **{
            **fields,
            "name": "worldgen_large",
            "init_from": "runs/worldgen_pretrain_large/model",
            "source": replace(base.source, frames=85, window=22),
            "optimizer": replace(base.optimizer, learning_rate=2e-6),
        }
    )
