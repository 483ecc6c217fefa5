"""Model directories, training checkpoints, warm starts."""

from jwm_jax.checkpoint.dataclass_json import from_dict, to_dict
from jwm_jax.checkpoint.model_dir import (
    check_params,
    flatten,
    load_model,
    resolve_model,
    save_model,
    unflatten,
)

__all__ = [
    "check_params",
    "flatten",
    "from_dict",
    "load_model",
    "resolve_model",
    "save_model",
    "to_dict",
    "unflatten",
]
