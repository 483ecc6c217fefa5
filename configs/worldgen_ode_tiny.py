"""Causal ODE distillation of the `tiny` generator to 4 steps on stored paths of
`worldgen_joint_tiny`, in the place of `worldgen_cd_tiny`. The first run makes the paths,
later ones find them in runs/latents.

    jwm train worldgen_ode_tiny --devices 2 --out runs/worldgen_ode_tiny

Hardware: two CPU cores as two simulated devices. No run has been kept yet.
"""

from jwm_configs import worldgen_cd_tiny
from jwm_jax.paradigms.ode import OdeExperiment


def config() -> OdeExperiment:
    """The experiment."""
    before = worldgen_cd_tiny.config()
    fields = {name: getattr(before, name) for name in before.__dataclass_fields__}
    return OdeExperiment(**{**fields, "name": "worldgen_ode_tiny", "pairs": 1024})
