"""Causal ODE distillation of the `base` generator to 4 steps on stored paths of
`worldgen_base`, in the place of `worldgen_cd_base`.

    jwm train worldgen_ode_base --out runs/worldgen_ode_base

Hardware and time: as for `worldgen_pretrain_base`; no run has been made.
"""

from jwm_configs import worldgen_cd_base
from jwm_jax.paradigms.ode import OdeExperiment


def config() -> OdeExperiment:
    """The experiment."""
    before = worldgen_cd_base.config()
    fields = {name: getattr(before, name) for name in before.__dataclass_fields__}
    return OdeExperiment(**{**fields, "name": "worldgen_ode_base", "pairs": 4096})
