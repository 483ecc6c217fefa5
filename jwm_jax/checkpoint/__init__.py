"""Model directories and training checkpoints."""

from jwm_jax.checkpoint.dataclass_json import from_dict, to_dict
from jwm_jax.checkpoint.model_dir import (
    STAGES,
    check_params,
    check_shapes,
    flatten,
    load_config,
    load_params,
    read_header,
    resolve_model,
    save_model,
    unflatten,
)
from jwm_jax.checkpoint.sharded import check_model, load_sharded
from jwm_jax.checkpoint.weights import refuse_pickle

__all__ = [
    "STAGES",
    "check_model",
    "check_params",
    "check_shapes",
    "flatten",
    "from_dict",
    "load_config",
    "load_params",
    "load_sharded",
    "read_header",
    "refuse_pickle",
    "resolve_model",
    "save_model",
    "to_dict",
    "unflatten",
]
