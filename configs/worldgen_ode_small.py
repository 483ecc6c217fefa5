"""Causal ODE distillation of the `small` generator to 4 steps on stored paths of
`worldgen_small`, in the place of `worldgen_cd_small`.

    jwm train worldgen_ode_small --out runs/worldgen_ode_small

Hardware and time: as for `worldgen_pretrain_small`; no run has been made.
"""

from jwm_configs import worldgen_cd_small
from jwm_jax.paradigms.ode import OdeExperiment


def config() -> OdeExperiment:
    """The experiment."""
    before = worldgen_cd_small.config()
    fields = {name: getattr(before, name) for name in before.__dataclass_fields__}
    return OdeExperiment(**{**fields, "name": "worldgen_ode_small", "pairs": 4096})
