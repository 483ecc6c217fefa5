"""Muon for the kernels of convolutions and blocks, Adam for all else, the work split over devices.

A kernel is a matrix G of inputs (k k in rows for a convolution [k, k, in, out]) by outputs. Its
update is the momentum's nearest semi-orthogonal matrix, U V^T of G = U S V^T, so that every
direction of the map from inputs to outputs moves equally fast, scaled to the root mean square 0.2
that Adam's updates have. Blocks of a transformer are scanned, so their kernels are stacks
[layers, in, out], one update each. Embeddings, heads, depthwise convolutions and vectors stay with
Adam. Momentum and Newton-Schulz iteration are `optax.contrib`'s (Muon: Jordan et al. 2024,
kellerjordan.github.io/posts/muon); the scale is that of Liu et al., arXiv 2502.16982.

The iteration costs more than everything else of an update and no device needs another's matrices
for it: matrices of equal shape (a tall one counts by its transpose, whose factor is the transpose)
are stacked, padded to the number of devices and split over all of them. Momentum stays with its
parameter, so checkpoints do not depend on the mesh.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from jwm_jax.distributed.sharding import automatic_axes, is_box, pin

ROOT_MEAN_SQUARE = 0.2


def is_matrix(names: tuple[str | None, ...]) -> bool:
    """Whether Muon updates a kernel: those of convolutions and of scanned blocks.

    Args:
        names: Logical names of its axes: [k, k, in, out] or [layers, in, out].
    """
    stacked = "layers" in names
    named = sum(name not in (None, "layers") for name in names)
    plain = len(names) - stacked
    return named == 2 and (plain == 4 or (stacked and plain == 2))


def dimension_numbers(names: tuple[str | None, ...]) -> MuonDimensionNumbers:
    """Which axes of such a kernel are inputs and which is outputs; layers are a batch."""
    inputs = tuple(range("layers" in names, len(names) - 1))
    return MuonDimensionNumbers(inputs, len(names) - 1)


def scale_by_muon_and_adam(
    kernels: Mapping[str, tuple[str | None, ...]], b1: float, b2: float, eps: float
) -> optax.GradientTransformation:
    """Muon's updates for some parameters, Adam's for all others.

    Args:
        kernels: Dotted name -> logical axes of the parameters that Muon updates.
        b1: Decay of the first moment.
        b2: Decay of Adam's second moment.
        eps: Added to the root of Adam's second moment.

    Returns:
        A transformation whose state is {"adam", "muon"}, each over its own parameters by name;
        boxes of parameters carry over to their moments.
    """
    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
    numbers = {name: dimension_numbers(axes) for name, axes in kernels.items()}
    momentum = scale_by_muon(beta=b1, weight_dimension_numbers=numbers)

    def init(params: Any) -> dict[str, Any]:
        flat, _ = _by_name(params)
        return {
            "adam": adam.init({name: x for name, x in flat.items() if name not in kernels}),
            "muon": momentum.init({name: flat[name] for name in kernels}),
        }

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        flat, structure = _by_name(grads)
        others = {name: x for name, x in flat.items() if name not in kernels}
        others, adam_state = adam.update(others, state["adam"])
        turned, muon_state = _muon({n: flat[n] for n in kernels}, state["muon"], kernels, b1)
        updates = jax.tree.unflatten(structure, [(others | turned)[name] for name in flat])
        return updates, {"adam": adam_state, "muon": muon_state}

    return optax.GradientTransformation(init, update)


def _by_name(tree: Any) -> tuple[dict[str, Any], Any]:
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_box)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves
    }, structure


def _muon(
    grads: dict[str, jax.Array],
    state: Any,
    kernels: Mapping[str, tuple[str | None, ...]],
    b1: float,
) -> tuple[dict[str, jax.Array], Any]:
    """Updates and state; every device orthogonalises its share of the stacked matrices."""
    shapes = {name: _matrices(grads[name], axes).shape for name, axes in kernels.items()}
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, (_, *sides) in shapes.items():
        groups.setdefault(tuple(sides), []).append(name)

    def stacked(leaves: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        def one(name: str) -> jax.Array:
            return _matrices(pin(leaves[name], kernels[name]), kernels[name])

        return {str(s): _spread(jnp.concatenate([*map(one, n)])) for s, n in groups.items()}

    numbers = {str(sides): MuonDimensionNumbers(1, 2) for sides in groups}
    inner = scale_by_muon(beta=b1, weight_dimension_numbers=numbers)
    parts, _ = inner.update(stacked(grads), state._replace(mu=stacked(state.mu)))
    updates = {}
    for sides, names in groups.items():
        whole = pin(parts[str(sides)], (None, None, None))
        scaled = ROOT_MEAN_SQUARE * max(sides) ** 0.5 * whole
        ends = np.cumsum([shapes[name][0] for name in names])
        for name, part in zip(names, jnp.split(scaled, ends), strict=False):
            updates[name] = _restored(part, grads[name].shape)
    mu = optax.tree.update_moment(grads, state.mu, b1, 1)
    return updates, state._replace(count=optax.safe_increment(state.count), mu=mu)


def _matrices(kernel: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """[*layers, ..., in, out] -> [n, rows, columns] with no more rows than columns."""
    layers = kernel.shape[0] if "layers" in axes else 1
    matrices = kernel.reshape(layers, -1, kernel.shape[-1])
    tall = matrices.shape[1] > matrices.shape[2]
    return rearrange(matrices, "n i o -> n o i") if tall else matrices


def _restored(matrices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `_matrices`."""
    tall = matrices.shape[2] != shape[-1]
    return (rearrange(matrices, "n o i -> n i o") if tall else matrices).reshape(shape)


def _spread(matrices: jax.Array) -> jax.Array:
    """Pads the stack to the number of devices and splits it over all of them.

    Where parameters are whole on every device, so is the stack before it is split, and each device
    cuts out its share; left to itself XLA would split the leaves of the stack some other way first
    and exchange them. Where parameters are split the exchange is needed.
    """
    sizes = automatic_axes()
    missing = -len(matrices) % int(np.prod(list(sizes.values())))
    padded = jnp.pad(matrices, [(0, missing), (0, 0), (0, 0)])
    if all(size == 1 for axis, size in sizes.items() if axis != "data"):
        padded = pin(padded, (None, None, None))
    return pin(padded, ("matrices", None, None))
