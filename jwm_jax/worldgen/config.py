"""Configuration of the generator and its sizes."""

from dataclasses import dataclass

from jwm_jax.scene.clip import fitted_size
from jwm_jax.worldgen.codec_network import PIXELS_PER_LATENT

STYLES = (
    ("time_of_day", ("noon", "morning", "evening", "night", "day", "dusk")),
    ("weather", ("clear", "overcast", "fog", "rain", "snow")),
)


@dataclass(frozen=True)
class WorldGenConfig:
    """Shape of the transformer, of its memory and of its conditions.

    Attributes:
        height: rows of the pictures; the width follows the aspect, see `picture_size`.
        dim: width of a token.
        num_layers: transformer blocks; a multiple of ``cross_view_every``.
        num_heads: attention heads; ``dim / num_heads`` is even.
        ffn_dim: hidden width of a block's feed-forward network.
        freq_dim: width of the sinusoidal embedding of sigma.
        patch: side of a token in latent pixels.
        latent_channels: channels of the codec's latents.
        frames_per_latent: video frames in a latent frame (every one but the first).
        head_channels: channels of the convolutional part of the output head; 0 leaves it out.
        cross_view_every: blocks between two cross-view attentions.
        window: past latent frames that attention sees besides the sink.
        sink: latent frames at the start of a session that attention always sees.
        motion_scale: factors on (dx m, dy m, dyaw rad, v m/s) of an ego-motion sub-step.
        styles: named style codes, each with its vocabulary; code 0 means unknown.
        sampling_shift: shift of the sigma schedule used for sampling.
        codec: name or directory of the codec whose latents the model was trained on.
        remat: recompute activations of a layer in the backward pass.
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
    head_channels: int = 64
    cross_view_every: int = 2
    window: int = 5
    sink: int = 1
    motion_scale: tuple[float, float, float, float] = (1.0, 5.0, 20.0, 0.1)
    styles: tuple[tuple[str, tuple[str, ...]], ...] = STYLES
    sampling_shift: float = 2.5
    codec: str = "tiny"
    remat: bool = False

    def __post_init__(self):
        if self.num_layers % self.cross_view_every:
            raise ValueError(
                f"WorldGenConfig: num_layers = {self.num_layers} must be a multiple of "
                f"cross_view_every = {self.cross_view_every}."
            )
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise ValueError(
                f"WorldGenConfig: dim = {self.dim} must split into num_heads = {self.num_heads} "
                "heads of even width."
            )
        if self.window < 1 or self.sink < 0:
            raise ValueError(
                f"WorldGenConfig: window must be at least 1 and sink at least 0 latent frames, got "
                f"{self.window} and {self.sink}."
            )

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


SIZES = {
    "tiny": WorldGenConfig(),
    "small": WorldGenConfig(
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
    "base": WorldGenConfig(
        dim=1536,
        num_layers=30,
        num_heads=12,
        ffn_dim=8960,
        freq_dim=256,
        latent_channels=16,
        head_channels=0,
        window=9,
        sink=3,
        sampling_shift=5.0,
        codec="wan2.1",
        remat=True,
    ),
    "large": WorldGenConfig(
        dim=5120,
        num_layers=40,
        num_heads=40,
        ffn_dim=13824,
        freq_dim=256,
        latent_channels=16,
        head_channels=0,
        window=9,
        sink=3,
        sampling_shift=5.0,
        codec="wan2.1",
        remat=True,
    ),
}


def size_name(config: WorldGenConfig) -> str:
    """Name of a configuration among `SIZES`, or "custom"."""
    return next((name for name, known in SIZES.items() if known == config), "custom")
