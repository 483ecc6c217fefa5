"""A generator's session as StableHLO programs that a process with jax alone loads and runs.

Two programs, `start` and `step`, with weights as arguments, for any batch size and for several
platforms at once. What they take and give are dicts of arrays with dotted names:

    state         = start(weights, inputs)           frames [b, v, H, W, 3], rays, key, ...
    frames, state = step(weights, state, inputs)     the chunk [b, v, T, H, W, 3] in [0, 1]

b is any number of rollouts. Attention is computed in plain XLA, because kernels of GPU and TPU are
no part of StableHLO.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jwm_jax.checkpoint.model_dir import flatten, unflatten
from jwm_jax.nn.attention import BLOCKWISE_FROM
from jwm_jax.worldgen.codec_network import PIXELS_PER_LATENT
from jwm_jax.worldgen.conditions import RAY_CHANNELS, ChunkConditions
from jwm_jax.worldgen.config import WorldGenConfig
from jwm_jax.worldgen.model import WorldGen
from jwm_jax.worldgen.session import Session, start_session, step_session


def weights_of(gen: WorldGen) -> dict[str, np.ndarray]:
    """The arrays that both programs take: the network's and the codec's, float32."""
    trees = {"network": gen.params, "codec": gen.codec.params}
    return {name: np.asarray(value, np.float32) for name, value in flatten(trees).items()}


def export_session(
    gen: WorldGen,
    views: int,
    height: int,
    width: int,
    platforms: Sequence[str],
    steps: int | None = None,
) -> dict[str, export.Exported]:
    """The programs `start` and `step` of a generator.

    Args:
        gen: with its codec; a network without text.
        views: cameras.
        height: of the pictures, in pixels.
        width: of the pictures.
        platforms: that the programs are lowered for.
        steps: denoising steps; the configuration's if None.

    Raises:
        ValueError: a size that does not divide into tokens, or a network with text.
    """
    unit = gen.config.pixels_per_token
    if height % unit or width % unit or min(height, width) < unit:
        raise ValueError(f"pictures of {height} x {width} do not divide into tokens of {unit}.")
    if gen.config.text_dim:
        raise ValueError("networks with text are not exported as programs yet.")
    config, codec = _portable(gen.config, height, width), gen.codec

    def unpacked(weights: Mapping[str, jax.Array]) -> tuple[Any, Any]:
        tree = unflatten(weights)
        return tree["network"], replace(codec, params=tree["codec"])

    def conditions(inputs: Mapping[str, jax.Array]) -> ChunkConditions:
        fields = ChunkConditions.__dataclass_fields__
        return ChunkConditions(**{name: inputs[name] for name in fields})

    def begin(weights: Any, inputs: Any) -> Session:
        network, own = unpacked(weights)
        key = jax.random.wrap_key_data(inputs["key"])
        given = conditions(inputs)
        return start_session(config, network, own, inputs["frames"], inputs["rays"], key, given)

    def start(weights: Any, inputs: Any) -> Any:
        return _packed(begin(weights, inputs))

    def step(weights: Any, state: Any, inputs: Any) -> Any:
        network, own = unpacked(weights)
        session, given = _unpacked(state, like), conditions(inputs)
        frames, session = step_session(
            config, network, own, session, given, steps, inputs.get("cfg_scale", 1.0)
        )
        return frames, _packed(session)

    (batch,) = export.symbolic_shape("b")
    picture = (batch, views, height, width)
    rays = (batch, views, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT, RAY_CHANNELS)
    first = _conditions(config, picture, 1) | {
        "frames": _shape(*picture, 3),
        "rays": _shape(*rays),
        "key": jax.ShapeDtypeStruct((2,), jnp.uint32),
    }
    more = _conditions(config, picture, config.frames_per_chunk)
    if config.guidance_input:
        more |= {"cfg_scale": _shape()}
    weights = {name: _shape(*value.shape) for name, value in weights_of(gen).items()}
    like = jax.eval_shape(begin, weights, first)
    state = jax.eval_shape(start, weights, first)
    return {
        "start": export.export(jax.jit(start), platforms=platforms)(weights, first),
        "step": export.export(jax.jit(step), platforms=platforms)(weights, state, more),
    }


def _portable(config: WorldGenConfig, height: int, width: int) -> WorldGenConfig:
    """The configuration in float32 and with attention that is plain XLA."""
    tokens = height * width // config.pixels_per_token**2
    logits = config.chunk * tokens * (config.slots + config.chunk) * tokens
    attention = "xla" if logits <= BLOCKWISE_FROM else "blockwise"
    return replace(config, dtype="float32", attention=attention)


def _conditions(
    config: WorldGenConfig, picture: tuple[Any, ...], frames: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """`ChunkConditions` of a chunk as shapes by name."""
    batch, views, *size = picture
    pictures = _shape(batch, views, frames, *size, 3)
    flag = jax.ShapeDtypeStruct((), jnp.bool_)
    return {
        "layout": pictures,
        "has_layout": flag,
        "prior": pictures,
        "prior_alpha": _shape(batch, views, frames, *size),
        "has_prior": flag,
        "ego_motion": _shape(batch, frames, 4),
        "has_motion": flag,
        "style": jax.ShapeDtypeStruct((batch, len(config.styles)), jnp.int32),
    }


def _shape(*sizes: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def _packed(session: Session) -> dict[str, jax.Array]:
    """A session as arrays by dotted name, its key as numbers."""
    session = replace(session, key=jax.random.key_data(session.key))
    leaves = jax.tree_util.tree_flatten_with_path(session)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _unpacked(state: Mapping[str, jax.Array], like: Session) -> Session:
    """The session of `_packed`, given the structure of such a session."""
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
    session = jax.tree.unflatten(structure, [state[name] for name in names])
    return replace(session, key=jax.random.wrap_key_data(session.key))
