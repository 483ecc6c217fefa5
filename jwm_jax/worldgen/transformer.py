"""The video transformer, for any number of frames and views: embeddings, a scan over one stack of
layers, heads.

Parameters are a dict of the modules' own: "embeddings", "layers" (every leaf [num_layers, ...]),
"views" (cross-view attentions, [num_layers / cross_view_every, ...]), "head", "middle_head" and
"text". They do not depend on the pattern (`masks`), so one set of weights runs bidirectionally,
teacher-forced and with a cache; and the layers' do not depend on where cross-view attentions are.
A cross-view attention follows every ``cross_view_every`` blocks; with one view it is skipped.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta
from jaxtyping import Float

from jwm_jax.distributed.context import AXIS
from jwm_jax.distributed.sharding import automatic_axes
from jwm_jax.nn.layers import Mlp
from jwm_jax.worldgen.blocks import Block, ContextKeys, ViewBlock
from jwm_jax.worldgen.cache import Cache
from jwm_jax.worldgen.conditions import LatentConditions, no_conditions
from jwm_jax.worldgen.config import WorldGenConfig
from jwm_jax.worldgen.embeddings import Embedded, Embeddings, Latents
from jwm_jax.worldgen.head import Head
from jwm_jax.worldgen.masks import Bidirectional, Pattern

Text = tuple[Float[jax.Array, "layers b rows heads k"], Float[jax.Array, "layers b rows heads k"]]
"""Keys and values of text in every layer, from `text_keys`."""


class Outputs(NamedTuple):
    """What a pass returns.

    Attributes:
        head: output of the head for the last copy, float32 [b, v, f, h, w, c]; None if not wanted.
        middle: of the middle head, likewise.
        keys: unrotated keys of the chunk, [layers, b v, f, s, heads, k], for a cached pattern.
        values: as the keys.
    """

    head: jax.Array | None
    middle: jax.Array | None
    keys: jax.Array | None
    values: jax.Array | None


def init_params(config: WorldGenConfig, key: jax.Array) -> Any:
    """Fresh parameters in their boxes with logical axis names; they do not depend on sizes of
    images.

    Args:
        config: shape of the network.
        key: typed PRNG key.
    """
    side, width, grid = config.patch, config.dim, (1, 1)
    names = ("embeddings", "layers", "views", "heads", "text")
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    latents = jnp.zeros((1, 1, 1, 1, side, side, config.latent_channels))
    conditions = no_conditions(config, (1, 1, 1, side, side))
    x, e0 = jnp.zeros((1, 1, 1, 1, 1, width)), jnp.zeros((1, 1, 1, 6, width))
    context = jnp.zeros((1, 1, 1, 1, width)) if config.has_tokens else None
    heads = (1, 1, config.num_heads, config.head_dim)
    text = (jnp.zeros(heads), jnp.zeros(heads)) if config.text_dim else None

    def layer(key: jax.Array) -> Any:
        block = Block(config, Bidirectional(), grid)
        params = dict(block.init(key, x, e0, context, text, None)["params"])
        if config.text_dim:
            module = ContextKeys(config, jnp.float32)
            key = jax.random.fold_in(key, 1)
            params["text_attention"] = module.init(key, jnp.zeros((1, 1, width)))["params"]
        return params

    def stack(init: Callable, key: jax.Array, count: int) -> Any:
        stacked = jax.vmap(init)(jax.random.split(key, count))
        return meta.add_axis(stacked, 0, {nn.PARTITION_NAME: "layers"})

    embeddings = Embeddings(config).init(
        keys["embeddings"], latents, jnp.zeros((1, 1, 1)), latents, conditions
    )
    params = {
        "embeddings": embeddings["params"],
        "layers": stack(layer, keys["layers"], config.num_layers),
    }
    for i, name in enumerate(("head", "middle_head")[: 1 + config.middle_head]):
        key = jax.random.fold_in(keys["heads"], i)
        module = Head(config, grid)
        params[name] = module.init(key, x[:, :, 0], jnp.zeros((1, 1, width)))["params"]
    if config.cross_view_every:
        view = ViewBlock(config, jnp.float32, grid)
        params["views"] = stack(
            lambda key: view.init(key, x, jnp.zeros((1, 1, 1, width)))["params"],
            keys["views"],
            config.num_layers // config.cross_view_every,
        )
    if config.text_dim:
        module = _text_mlp(config, jnp.float32)
        params["text"] = module.init(keys["text"], jnp.zeros((1, config.text_dim)))["params"]
    return params


def text_keys(
    config: WorldGenConfig, params: Any, text: Float[jax.Array, "b length channels"]
) -> Text:
    """Keys and values of text in every layer: computed once a clip, whatever the sampling steps.

    Args:
        config: shape of the network.
        params: parameters without boxes.
        text: embeddings of at most ``text_len`` rows of ``text_dim`` channels; padded with zero
            rows, which take part.

    Raises:
        ValueError: text for a network without, too long, or of other channels.
    """
    length, channels = config.text_len, config.text_dim
    if text.shape[2] != channels or text.shape[1] > length:
        raise ValueError(
            f"this network takes text of up to {length} rows of {channels} channels, but got "
            f"{text.shape[1]} rows of {text.shape[2]}."
        )
    dtype = config.compute_dtype()
    text = jnp.pad(text, ((0, 0), (0, length - text.shape[1]), (0, 0)))
    tokens = _text_mlp(config, dtype).apply({"params": params["text"]}, text)
    module = ContextKeys(config, dtype)
    layers = params["layers"]["text_attention"]
    return jax.lax.map(lambda layer: module.apply({"params": layer}, tokens), layers)


def empty_text(config: WorldGenConfig, params: Any, batch: int) -> Text | None:
    """`text_keys` of an empty prompt; None for a network without text."""
    if not config.text_dim:
        return None
    return text_keys(config, params, jnp.zeros((batch, 1, config.text_dim)))


def transformer(
    config: WorldGenConfig,
    params: Any,
    pattern: Pattern,
    noisy: Latents,
    sigma: Float[jax.Array, "b copies f"],
    previous: Latents | None,
    conditions: LatentConditions,
    cache: Cache | None = None,
    text: Text | None = None,
    head: bool = True,
    middle: bool = False,
) -> Outputs:
    """Runs the network.

    Args:
        config: shape of the network.
        params: parameters without boxes.
        pattern: which frames see which; its ``offsets`` say which of the conditions' frames each
            copy begins with.
        noisy: latents at ``sigma``.
        sigma: diffusion time of each latent frame, in [0, 1].
        previous: clean latent before the chunk of each frame, if the network takes it.
        conditions: of the frames that the copies are taken from.
        cache: past frames, for a pattern with memory.
        text: from `text_keys`, for a network with text.
        head: whether the head's output is wanted.
        middle: whether the middle head's is.

    Raises:
        ValueError: a latent grid that does not divide into patches, or text where there is none
            and none where there is.
    """
    height, width = noisy.shape[4:6]
    if height % config.patch or width % config.patch:
        raise ValueError(
            f"WorldGen: the latent grid {height} x {width} must divide into patches of "
            f"{config.patch}; use images whose sides are multiples of {config.pixels_per_token}."
        )
    if (text is None) == (config.text_dim > 0):
        raise ValueError(
            "this network attends to text: give `text`, from text_keys()."
            if text is None
            else "text was given to a network without text (text_dim = 0)."
        )
    dtype, grid = config.compute_dtype(), (height // config.patch, width // config.patch)
    embeddings = Embeddings(config, pattern.offsets, dtype)
    given = embeddings.apply({"params": params["embeddings"]}, noisy, sigma, previous, conditions)
    if cache is None:
        given = _padded(given)

    def output(name: str, x: jax.Array) -> jax.Array:
        return Head(config, grid).apply({"params": params[name]}, x[:, :, -1], given.e[:, -1])

    run = _layers(config, params, pattern, grid, given, cache, text)
    half = config.middle_layer if middle else 0
    x, first = run(given.x, 0, half)
    in_the_middle = output("middle_head", x) if middle else None
    x, second = run(x, half, config.num_layers)
    kept = (
        second
        if first is None
        else jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)
    )
    keys, values = kept or (None, None)
    return Outputs(output("head", x) if head else None, in_the_middle, keys, values)


def _padded(given: Embedded) -> Embedded:
    """Tokens filled up with zeros to a number that the mesh's context axis divides.

    Attention leaves them out, the head drops them, and nothing flows into or out of them between.
    A cache has no room for them.
    """
    ways, tokens = automatic_axes().get(AXIS, 1), given.x.shape[4]
    missing = -tokens % ways
    if not missing:
        return given
    x = jnp.pad(given.x, [(0, 0)] * 4 + [(0, missing), (0, 0)])
    rays = given.rays
    if rays is not None:
        rays = jnp.pad(rays, [(0, 0), (0, 0), (0, missing), (0, 0)])
    return given._replace(x=x, rays=rays)


def _layers(config, params, pattern, grid, given, cache, text) -> Callable:
    """A function that runs layers ``start`` to ``stop`` on tokens."""
    dtype = config.compute_dtype()
    block, view = Block(config, pattern, grid, dtype), ViewBlock(config, dtype, grid)
    written = None if cache is None else cache.frames
    past = None if cache is None else (cache.keys, cache.values)
    stack = {name: leaf for name, leaf in params["layers"].items() if name != "text_attention"}

    def one(x, layer):
        layer_params, layer_text, stored = layer
        memory = None if stored is None else (*stored, written)
        return block.apply({"params": layer_params}, x, given.e0, given.context, layer_text, memory)

    def between_views(x, view_params):
        return view.apply({"params": view_params}, x, given.rays)

    if config.remat:
        one, between_views = (
            jax.checkpoint(function, prevent_cse=False) for function in (one, between_views)
        )

    def across(x, group):
        layers, view_params = group
        x, kept = jax.lax.scan(one, x, layers)
        return between_views(x, view_params), kept

    def run(x, start, stop):
        if start == stop:
            return x, None
        every, views = config.cross_view_every, x.shape[1]
        layers = jax.tree.map(lambda leaf: leaf[start:stop], (stack, text, past))
        if not every or views == 1:
            return jax.lax.scan(one, x, layers)
        groups = jax.tree.map(lambda leaf: leaf.reshape(-1, every, *leaf.shape[1:]), layers)
        own = jax.tree.map(lambda leaf: leaf[start // every : stop // every], params["views"])
        x, kept = jax.lax.scan(across, x, (groups, own))
        return x, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), kept)

    return run


def _text_mlp(config: WorldGenConfig, dtype: Any) -> Mlp:
    return Mlp(config.dim, config.dim, dtype=dtype)
