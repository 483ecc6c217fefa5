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

from jwm_jax.distributed.sharding import automatic_axes, constrain, is_box

ROOT_MEAN_SQUARE = 0.2


def matrix_axes(names: tuple[str | None, ...]) -> MuonDimensionNumbers | None:
    """Which axes of a kernel are inputs and which is outputs, or None where Adam updates it.

    Args:
        names: Logical names of its axes.

    Returns:
        Dimension numbers for kernels of convolutions ([k, k, in, out]) and of scanned blocks
        ([layers, in, out]).
    """
    stacked = "layers" in names
    named = sum(name not in (None, "layers") for name in names)
    plain = len(names) - stacked
    if named < 2 or not (plain == 4 or (stacked and plain == 2)):
        return None
    return MuonDimensionNumbers(tuple(range(stacked, len(names) - 1)), len(names) - 1)


def scale_by_muon_and_adam(
    axes: Mapping[str, MuonDimensionNumbers], b1: float, b2: float, eps: float
) -> optax.GradientTransformation:
    """Muon's updates for some parameters, Adam's for all others.

    Args:
        axes: Dotted name -> `matrix_axes` of the parameters that Muon updates.
        b1: Decay of the first moment.
        b2: Decay of Adam's second moment.
        eps: Added to the root of Adam's second moment.

    Returns:
        A transformation whose state is {"adam", "muon"}, each over its own parameters by name;
        boxes of parameters carry over to their moments.
    """
    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
    momentum = scale_by_muon(beta=b1, weight_dimension_numbers=dict(axes))

    def init(params: Any) -> dict[str, Any]:
        flat, _ = _by_name(params)
        return {
            "adam": adam.init({name: x for name, x in flat.items() if name not in axes}),
            "muon": momentum.init({name: flat[name] for name in axes}),
        }

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        flat, structure = _by_name(grads)
        others = {name: x for name, x in flat.items() if name not in axes}
        others, adam_state = adam.update(others, state["adam"])
        kernels, muon_state = _muon({n: flat[n] for n in axes}, state["muon"], axes, b1)
        updates = jax.tree.unflatten(structure, [(others | kernels)[name] for name in flat])
        return updates, {"adam": adam_state, "muon": muon_state}

    return optax.GradientTransformation(init, update)


def _by_name(tree: Any) -> tuple[dict[str, Any], Any]:
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_box)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves
    }, structure


def _muon(
    grads: dict[str, jax.Array], state: Any, axes: Mapping[str, MuonDimensionNumbers], b1: float
) -> tuple[dict[str, jax.Array], Any]:
    """Updates and state; every device orthogonalises its share of the stacked matrices."""
    numbers = MuonDimensionNumbers(1, 2)
    stacks = {name: _matrices(grads[name], axes[name]) for name in axes}
    shapes = sorted({x.shape[1:] for x in stacks.values()})
    groups = {s: [name for name in axes if stacks[name].shape[1:] == s] for s in shapes}
    split = dict.fromkeys(map(str, shapes), numbers)

    def gathered(leaves: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {
            str(shape): _spread(jnp.concatenate([_matrices(leaves[n], axes[n]) for n in names]))
            for shape, names in groups.items()
        }

    inner = scale_by_muon(beta=b1, weight_dimension_numbers=split)
    parts, _ = inner.update(gathered(grads), state._replace(mu=gathered(state.mu)))
    updates = {}
    for shape, names in groups.items():
        scaled = ROOT_MEAN_SQUARE * max(shape) ** 0.5 * parts[str(shape)]
        sizes = np.cumsum([stacks[name].shape[0] for name in names])
        for name, part in zip(names, jnp.split(scaled, sizes), strict=False):
            updates[name] = _restored(part, grads[name].shape, axes[name])
    mu = optax.tree.update_moment(grads, state.mu, b1, 1)
    return updates, state._replace(count=optax.safe_increment(state.count), mu=mu)


def _matrices(kernel: jax.Array, axes: MuonDimensionNumbers) -> jax.Array:
    """[*layers, ..., in, out] -> [n, rows, columns] with no more rows than columns."""
    layers = kernel.shape[0] if axes.reduction_axis[0] else 1
    matrices = kernel.reshape(layers, -1, kernel.shape[-1])
    tall = matrices.shape[1] > matrices.shape[2]
    return rearrange(matrices, "n i o -> n o i") if tall else matrices


def _restored(matrices: jax.Array, shape: tuple[int, ...], axes: MuonDimensionNumbers) -> jax.Array:
    """The inverse of `_matrices`."""
    rows = int(np.prod([shape[i] for i in axes.reduction_axis]))
    tall = rows > shape[-1]
    return (rearrange(matrices, "n o i -> n i o") if tall else matrices).reshape(shape)


def _spread(matrices: jax.Array) -> jax.Array:
    """Pads the stack to the number of devices and splits it over all of them."""
    devices = int(np.prod(list(automatic_axes().values())))
    missing = -len(matrices) % devices
    padded = jnp.pad(matrices, [(0, missing), (0, 0), (0, 0)])
    return constrain(padded, ("matrices", None, None))
