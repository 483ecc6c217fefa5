"""Orthogonalised updates for the kernels of convolutions and blocks (Muon), Adam for all else.

A kernel is a matrix G of inputs (k k in rows for a convolution [k, k, in, out]) by outputs. Its
update is the momentum's nearest semi-orthogonal matrix, U V^T of G = U S V^T, so that every
direction of the map from inputs to outputs moves equally fast, scaled to the root mean square 0.2
that Adam's updates have:

    m <- b1 m + (1 - b1) g,    update = 0.2 sqrt(max(rows, columns)) orthogonal(b1 m + (1 - b1) g)

Blocks of a transformer are scanned, so their kernels are stacks of matrices [layers, in, out], one
update each. Embeddings, heads, depthwise convolutions and vectors stay with Adam.

The orthogonal factor comes from five steps of the quintic Newton-Schulz iteration
X <- a X + (b A + c A^2) X, A = X X^T, whose coefficients bring all singular values between about
0.7 and 1.2. Muon: Jordan et al. 2024, kellerjordan.github.io/posts/muon; the scale is that of
Liu et al., arXiv 2502.16982.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5


def orthogonalize(
    matrix: Float[jax.Array, "rows columns"],
) -> Float[jax.Array, "rows columns"]:
    """Approximately U V^T of the singular value decomposition U S V^T of a matrix.

    Args:
        matrix: Any float matrix; zeros stay zeros.

    Returns:
        A matrix of the same shape whose singular values lie between about 0.7 and 1.2.
    """
    rows, columns = matrix.shape
    x = matrix.T if rows > columns else matrix
    x = x / (jnp.linalg.norm(x) + 1e-8)
    a, b, c = _COEFFICIENTS
    for _ in range(_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if rows > columns else x


def scale_by_muon_and_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Muon's updates for kernels of convolutions and of scanned blocks, Adam's for all others.

    A leaf counts by its path: its name is `kernel`, and `layers` above it means a leading axis of
    layers. The state is Adam's, so checkpoints and shardings do not depend on the choice.

    Args:
        b1: Decay of the first moment.
        b2: Decay of Adam's second moment.
        eps: Added to the root of Adam's second moment.
    """
    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = adam.update(grads, state, params)

        def one(path: Any, update: jax.Array, gradient: jax.Array, momentum: jax.Array):
            names = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
            stacked = "layers" in names
            convolution = update.ndim - stacked == 4
            if names[-1] != "kernel" or not (convolution or (stacked and update.ndim == 3)):
                return update
            layers = update.shape[0] if stacked else 1
            matrices = (b1 * momentum + (1 - b1) * gradient).reshape(layers, -1, update.shape[-1])
            scale = 0.2 * max(matrices.shape[1:]) ** 0.5
            return scale * jax.vmap(orthogonalize)(matrices).reshape(update.shape)

        return jax.tree_util.tree_map_with_path(one, updates, grads, state.mu), state

    return optax.GradientTransformation(adam.init, update)
