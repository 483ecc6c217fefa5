"""Model directories, training checkpoints, warm starts."""

from jwm_jax.checkpoint.dataclass_json import from_dict, to_dict
from jwm_jax.checkpoint.model_dir import (
    check_params,
    flatten,
    load_config,
    load_params,
    read_header,
    resolve_model,
    save_model,
    unflatten,
)
from jwm_jax.checkpoint.warm_start import WarmStartReport, warm_start

__all__ = [
    "WarmStartReport",
    "check_params",
    "flatten",
    "from_dict",
    "load_config",
    "load_params",
    "read_header",
    "resolve_model",
    "save_model",
    "to_dict",
    "unflatten",
    "warm_start",
]
