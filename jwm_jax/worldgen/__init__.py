"""The generator: latents of the next frames from past frames and conditions. See README.md here."""

from jwm_jax.worldgen.codec import VideoCodec
from jwm_jax.worldgen.codec_network import CodecConfig
from jwm_jax.worldgen.conditions import Conditions, LatentConditions, camera_rays
from jwm_jax.worldgen.config import WorldGenConfig
from jwm_jax.worldgen.model import WorldGen
from jwm_jax.worldgen.session import Session

__all__ = [
    "CodecConfig",
    "Conditions",
    "LatentConditions",
    "Session",
    "VideoCodec",
    "WorldGen",
    "WorldGenConfig",
    "camera_rays",
]
