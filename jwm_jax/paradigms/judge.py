"""LPIPS as a frozen network beside those that are trained."""

import os
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jwm_jax.nn.lpips import load_lpips, lpips_shapes
from jwm_jax.training.nets import Net

JUDGE = "lpips"
"""Its name among a task's networks."""


def judge_net(path: str | os.PathLike[str]) -> dict[str, Net]:
    """The network `JUDGE` for `Task.nets`; its weights are read when it is asked for.

    Args:
        path: File of the weights, see `load_lpips`.

    Raises:
        DataError: There is no such file, or it holds something else.
    """
    weights = load_lpips(path)
    return {JUDGE: Net(_blank, fit=lambda shapes: weights)}


def _blank(key: jax.Array) -> Any:
    """LPIPS before its weights are read, in boxes: zeros, and no axis to cut."""

    def blank(x: jax.ShapeDtypeStruct) -> Any:
        return nn.LogicallyPartitioned(jnp.zeros(x.shape, x.dtype), (None,) * x.ndim)

    return jax.tree.map(blank, lpips_shapes())
