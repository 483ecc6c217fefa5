"""Configuration of the generator and its sizes."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from jwm_jax.scene.clip import fitted_size
from jwm_jax.worldgen.codec_network import PIXELS_PER_LATENT

STYLES = (
    ("time_of_day", ("noon", "morning", "evening", "night", "day", "dusk")),
    ("weather", ("clear", "overcast", "fog", "rain", "snow")),
)
PLACE = ("place", ("city", "suburb", "highway", "rural", "tunnel", "parking"))
"""A vocabulary that a configuration may add to `STYLES`."""

CONDITIONS = ("layout", "prior", "rays", "ego_motion", "style")
PREDICTIONS = ("x0", "velocity")
DTYPES = ("auto", "float32", "bfloat16")
SAMPLERS = ("euler", "renoise")


@dataclass(frozen=True)
class WorldGenConfig:
    """Shape of the transformer, of its memory and of its conditions.

    Wan 2.1's transformer is the special case of ``prediction="velocity"``, text, no conditions, no
    ``previous_input``, no ``frame_conv``, no convolutional head and no cross-view attention. What
    is ours beside it starts at zero, so that Wan's weights do what they did.

    Attributes:
        height: rows of the pictures; the width follows the aspect, see `picture_size`.
        dim: width of a token.
        num_layers: transformer blocks.
        num_heads: attention heads; ``dim / num_heads`` is even.
        ffn_dim: hidden width of a block's feed-forward network.
        freq_dim: width of the sinusoidal embedding of sigma.
        patch: side of a token in latent pixels.
        latent_channels: channels of the codec's latents.
        frames_per_latent: video frames in a latent frame (every one but the first).
        chunk: latent frames that are generated together.
        prediction: "x0": the head corrects a base (the previous latent, or the prior where it is
            valid); "velocity": the head's output is the velocity.
        text_dim: channels of text embeddings; 0 leaves text out.
        text_len: rows to which text is padded with zeros; all of them are attended to.
        conditions: which conditions of ours the network takes, of `CONDITIONS`.
        previous_input: whether the clean latent before a chunk is an input of each of its frames.
        frame_conv: whether a block's feed-forward network begins with a depthwise convolution.
        guidance_input: whether the strength of guidance is an input, for models distilled with it.
        head_channels: channels of the convolutional part of the output head; 0 leaves it out.
        middle_head: whether a second head follows the middle block.
        cross_view_every: blocks between two cross-view attentions; 0 for none.
        window: past latent frames that attention sees besides the sink.
        sink: latent frames at the start of a session that attention always sees.
        sink_ema: what the last of the sink's frames keeps of itself when a frame leaves the window;
            the rest is the frame that leaves (Reward Forcing's EMA sink); 1 keeps the first frames.
        context_noise: standard deviation of noise on generated latents as they are remembered.
        rebase: whether positions count within what is visible, so that a session may outlast
            training; if not, they are frame indices, as Wan's.
        motion_scale: factors on (dx m, dy m, dyaw rad, v m/s) of an ego-motion sub-step.
        styles: named style codes, each with its vocabulary; code 0 means unknown.
        sampling_shift: shift of the sigma schedule used for sampling.
        sampling_steps: steps of a chunk unless others are asked for.
        sampler: how a step goes on from the clean latents it predicts: "euler" along the line it
            came on; "renoise" with fresh noise, as models distilled to few steps are trained.
        codec: name or directory of the codec whose latents the model was trained on.
        remat: recompute activations of a layer in the backward pass.
        dtype: compute type: "float32", "bfloat16", or "auto", see `compute_dtype`.
        attention: implementation of attention; "auto" chooses by what is compiled for.
    """

    height: int = 96
    dim: int = 192
    num_layers: int = 6
    num_heads: int = 4
    ffn_dim: int = 768
    freq_dim: int = 64
    patch: int = 2
    latent_channels: int = 32
    frames_per_latent: int = 4
    chunk: int = 1
    prediction: str = "x0"
    text_dim: int = 0
    text_len: int = 0
    conditions: tuple[str, ...] = CONDITIONS
    previous_input: bool = True
    frame_conv: bool = True
    guidance_input: bool = False
    head_channels: int = 64
    middle_head: bool = False
    cross_view_every: int = 2
    window: int = 5
    sink: int = 1
    sink_ema: float = 1.0
    context_noise: float = 0.0
    rebase: bool = True
    motion_scale: tuple[float, float, float, float] = (1.0, 5.0, 20.0, 0.1)
    styles: tuple[tuple[str, tuple[str, ...]], ...] = STYLES
    sampling_shift: float = 2.5
    sampling_steps: int = 4
    sampler: str = "euler"
    codec: str = "tiny"
    remat: bool = False
    dtype: str = "auto"
    attention: str = "auto"

    def __post_init__(self):
        def require(fine: bool, message: str) -> None:
            if not fine:
                raise ValueError(f"WorldGenConfig: {message}.")

        every = self.cross_view_every
        require(
            every >= 0 and (every == 0 or self.num_layers % every == 0),
            f"num_layers = {self.num_layers} must be a multiple of cross_view_every = {every}",
        )
        require(
            self.dim % self.num_heads == 0 and (self.dim // self.num_heads) % 2 == 0,
            f"dim = {self.dim} must split into num_heads = {self.num_heads} heads of even width",
        )
        require(
            self.window >= 1 and self.sink >= 0 and self.chunk >= 1,
            "window and chunk must be at least 1 and sink at least 0 latent frames, got "
            f"{self.window}, {self.chunk} and {self.sink}",
        )
        require(
            0.0 < self.sink_ema <= 1.0 and self.context_noise >= 0.0,
            "sink_ema must be above 0 and at most 1, and context_noise at least 0, got "
            f"{self.sink_ema} and {self.context_noise}",
        )
        require(
            self.sampling_steps >= 1,
            f"sampling_steps must be at least 1, got {self.sampling_steps}",
        )
        choices = (("prediction", PREDICTIONS), ("dtype", DTYPES), ("sampler", SAMPLERS))
        for name, known in choices:
            value = getattr(self, name)
            require(value in known, f"{name} must be one of {', '.join(known)}, got {value!r}")
        unknown = sorted(set(self.conditions) - set(CONDITIONS))
        require(not unknown, f"conditions must be of {', '.join(CONDITIONS)}, got {unknown}")
        require(
            (self.text_dim > 0) == (self.text_len > 0),
            f"text_dim and text_len go together, got {self.text_dim} and {self.text_len}",
        )
        require(
            self.text_dim > 0 or self.has_tokens,
            "cross-attention needs text (text_dim) or the conditions ego_motion or style",
        )
        require(
            self.prediction == "velocity" or self.previous_input,
            'prediction = "x0" corrects the previous latent and needs previous_input = True',
        )
        require(
            not self.middle_head or self.middle_layer > 0,
            f"middle_head needs a middle, but there are {self.num_layers} layers in groups of "
            f"{max(every, 1)}",
        )

    def takes(self, condition: str) -> bool:
        """Whether a condition is an input of the network."""
        return condition in self.conditions

    @property
    def has_tokens(self) -> bool:
        """Whether conditions of ours are tokens for cross-attention."""
        return self.takes("ego_motion") or (self.takes("style") and bool(self.styles))

    @property
    def pixels_per_token(self) -> int:
        """Side of a token in pixels; pictures are a multiple of it high and wide."""
        return self.patch * PIXELS_PER_LATENT

    def picture_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns to which a picture of `height` x `width` pixels is resized."""
        return fitted_size(height, width, self.height, self.pixels_per_token)

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.dim // self.num_heads

    @property
    def slots(self) -> int:
        """Latent frames a session's cache holds."""
        return self.sink + self.window

    @property
    def frames_per_chunk(self) -> int:
        """Video frames of a chunk."""
        return self.chunk * self.frames_per_latent

    @property
    def middle_layer(self) -> int:
        """Blocks before the middle head, whole groups between cross-view attentions."""
        group = max(self.cross_view_every, 1)
        return self.num_layers // group // 2 * group

    def compute_dtype(self) -> Any:
        """Type in which matrices are multiplied.

        "auto" is bfloat16 on the devices of an accelerator mesh (`jax.set_mesh`), which may be the
        topology that a program is compiled for, and float32 elsewhere.
        """
        if self.dtype != "auto":
            return jnp.dtype(self.dtype)
        device = jax.sharding.get_abstract_mesh().abstract_device
        return jnp.dtype("float32" if device is None else dtype_for(device.platform))

    def for_params(self, params: Any) -> "WorldGenConfig":
        """This configuration with "auto" decided by the devices that hold the parameters."""
        leaf = jax.tree.leaves(params)[0]
        if self.dtype != "auto" or not isinstance(leaf, jax.Array):
            return self
        return replace(self, dtype=dtype_for(next(iter(leaf.devices())).platform))


def dtype_for(platform: str) -> str:
    """Compute type on a platform: float32 on CPUs, bfloat16 on accelerators."""
    return "float32" if platform == "cpu" else "bfloat16"


def _wan(dim: int, num_layers: int, num_heads: int, ffn_dim: int) -> WorldGenConfig:
    """A size of Wan 2.1 with our conditions beside it."""
    return WorldGenConfig(
        height=480,
        dim=dim,
        num_layers=num_layers,
        num_heads=num_heads,
        ffn_dim=ffn_dim,
        freq_dim=256,
        latent_channels=16,
        chunk=3,
        prediction="velocity",
        text_dim=4096,
        text_len=512,
        frame_conv=False,
        head_channels=0,
        cross_view_every=5,
        window=9,
        sink=3,
        sampling_shift=5.0,
        codec="wan2.1",
        remat=True,
    )


SIZES = {
    "tiny": WorldGenConfig(),
    "small": WorldGenConfig(
        height=256,
        dim=512,
        num_layers=12,
        num_heads=8,
        ffn_dim=2048,
        freq_dim=256,
        head_channels=128,
        window=8,
        codec="small",
        remat=True,
    ),
    "base": _wan(dim=1536, num_layers=30, num_heads=12, ffn_dim=8960),
    "large": _wan(dim=5120, num_layers=40, num_heads=40, ffn_dim=13824),
}


def size_name(config: WorldGenConfig) -> str:
    """Name of a configuration among `SIZES`, however it is sampled, or "custom"."""
    plain = WorldGenConfig()
    sampling = ("sampling_steps", "sampler", "sink_ema", "context_noise")
    config = replace(config, **{name: getattr(plain, name) for name in sampling})
    return next((name for name, known in SIZES.items() if known == config), "custom")
