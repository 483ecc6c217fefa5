"""The loss of WorldRec on a mesh: scenes over data and fsdp, a scene's pictures over context.

Each device reconstructs from its own pictures of its own scenes and draws its share of the targets
(`jax.shard_map`). The loss is a sum of what the devices give, each divided by what all of them
have, so that every mesh has the loss and gradient of one device:

    L = sum over devices of (1 / scenes) sum over scenes of
            pictures drawn here / targets + depth and sky errors here / pixels known anywhere

Over data and fsdp only sums of losses and gradients move (and weights to where they are needed);
over context also, once forward and once backward: the maps that queries of all pictures read,
projected splats (`scene.split_rendering`), and sums for the sky's texture.
"""

from functools import partial
from typing import Any

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Float

from jwm_jax.distributed import RULES
from jwm_jax.errors import UsageError
from jwm_jax.paradigms.worldrec_data import Batch
from jwm_jax.scene import Scene
from jwm_jax.scene.split_rendering import bands_for, render_split
from jwm_jax.worldrec import WorldRecConfig, WorldRecNetwork
from jwm_jax.worldrec.losses import LossWeights, depth_loss, picture_loss, sky_loss

Loss = tuple[Float[jax.Array, ""], dict[str, jax.Array]]


def mean_loss(
    model: WorldRecConfig,
    weights: LossWeights,
    slots: float,
    params: Any,
    batch: Batch,
    judge: Any = None,
) -> Loss:
    """Mean loss of a batch's scenes and its parts, under the mesh that is set.

    Args:
        model: Shape of the model.
        weights: Of the terms.
        slots: Slots of the rasterizer a Gaussian.
        params: Of the network.
        batch: Rows over data and fsdp.
        judge: Parameters of LPIPS, where the loss has it.

    Raises:
        UsageError: The mesh does not divide the scenes, pictures or targets.
    """
    mesh = jax.sharding.get_abstract_mesh()
    sizes = {} if mesh.empty else dict(mesh.shape)
    rows = tuple(axis for axis in RULES["batch"] if sizes.get(axis, 1) > 1)
    split = tuple(axis for axis in RULES["queries"] if sizes.get(axis, 1) > 1)
    if not rows + split:
        return local_loss(model, weights, slots, None, params, batch, judge)
    axis = split[0] if split else None
    groups = 1
    for name in rows:
        groups *= sizes[name]
    _check_divides(batch, groups, sizes[axis] if axis else 1, whole=weights.lpips > 0)

    def on_device(params: Any, batch: Batch, judge: Any) -> Any:
        result = local_loss(model, weights, slots, axis, params, batch, judge)
        return jax.tree.map(lambda x: x[None] / groups, result)

    # A loss a device, summed outside. Within, every sum over devices is one of their losses' parts,
    # whose transpose is the sum of cotangents, as `jax.shard_map` has it without the check of
    # replication (which `searchsorted` does not pass).
    losses = jax.shard_map(
        on_device,
        in_specs=(PartitionSpec(), batch_specs(batch, rows, axis), PartitionSpec()),
        out_specs=PartitionSpec(rows + split),
        axis_names=set(rows + split),
        check_vma=False,
    )(params, batch, judge)
    return jax.tree.map(lambda x: x.sum(0), losses)


def batch_specs(batch: Batch, rows: tuple[str, ...], axis: str | None) -> Batch:
    """Which mesh axes split each array of a batch: its rows, and the axis of context pictures."""

    def one(path: Any, x: Any) -> PartitionSpec:
        names = [key.name for key in path]
        of_context = names[0] == "pictures" and names[1] != "box_sizes"
        of_context |= names[0] in ("lidar", "sky", "sky_known")
        return PartitionSpec(rows or None, *(axis,) * of_context)

    return jax.tree_util.tree_map_with_path(one, batch)


def _check_divides(batch: Batch, groups: int, devices: int, whole: bool) -> None:
    scenes, pictures = batch.pictures.images.shape[:2]
    targets, height = batch.images.shape[1:3]
    if scenes % groups:
        raise UsageError(
            f"a (micro-)batch of {scenes} scenes does not divide over the {groups} devices of the "
            f"mesh axes data x fsdp; make batch_size a multiple of {groups} for every micro-batch."
        )
    if pictures % devices:
        raise UsageError(
            f"sampling.max_context {pictures} does not divide over mesh.context {devices}; make it "
            f"a multiple of {devices} or make --mesh.context smaller."
        )
    if whole and bands_for(targets, devices) > 1:
        raise UsageError(
            f"LPIPS looks at whole pictures: make sampling.targets {targets} a multiple of "
            f"mesh.context {devices}, or set loss.lpips=0."
        )
    if height % (4 * bands_for(targets, devices)):
        raise UsageError(
            f"sampling.targets {targets} of {height} rows do not divide over mesh.context "
            f"{devices}; make it a multiple of {devices} or make --mesh.context smaller."
        )


def local_loss(
    model: WorldRecConfig,
    weights: LossWeights,
    slots: float,
    axis: str | None,
    params: Any,
    batch: Batch,
    judge: Any = None,
) -> Loss:
    """This device's part of the mean loss of its scenes and of its parts; devices add up.

    Args:
        model: Shape of the model.
        weights: Of the terms.
        slots: Slots of the rasterizer a Gaussian.
        axis: Mesh axis that the pictures are split over, inside `jax.shard_map`; None without.
        params: Of the network.
        batch: This device's rows, and of these its context pictures.
        judge: Parameters of LPIPS, where the loss has it.
    """
    network = WorldRecNetwork(model, axis=axis)
    results = jax.vmap(lambda p: network.apply({"params": params}, p))(batch.pictures)
    devices = 1 if axis is None else jax.lax.axis_size(axis)
    drawn = render_split(
        Scene(results.gaussians, batch.tracks, results.sky, tau=model.tau),
        batch.K,
        batch.poses,
        batch.times,
        batch.images.shape[2:4],
        int(slots * results.gaussians.capacity * devices),
        axis,
    )
    scenes, targets = batch.images.shape[:2]

    def flat(x):
        return x.reshape(-1, *x.shape[2:])

    share = drawn.picture.shape[0] * drawn.share / targets
    truth = flat(batch.images[:, drawn.picture])
    pictures, parts = picture_loss(weights, flat(drawn.rgb), truth, judge=judge)
    depth = jax.vmap(partial(depth_loss, axis=axis))(results.log_depth, batch.lidar).mean()
    sky = jax.vmap(partial(sky_loss, axis=axis))(results.sky_logit, batch.sky, batch.sky_known)
    sky = sky.mean()
    loss = share * pictures + weights.depth * depth + weights.sky * sky
    parts = {name: share * part for name, part in parts.items()}
    overflow = drawn.overflow / (scenes * targets)
    return loss, {**parts, "depth": depth, "sky": sky, "overflow": overflow}
