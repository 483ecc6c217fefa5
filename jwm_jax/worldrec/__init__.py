"""Feed-forward reconstruction: pictures to Gaussians. See README.md in this folder."""

from jwm_jax.worldrec.config import StageConfig, WorldRecConfig
from jwm_jax.worldrec.depth import DepthSource, GivenDepth, LidarDepth, measured_depth
from jwm_jax.worldrec.model import WorldRec
from jwm_jax.worldrec.network import Reconstruction, WorldRecNetwork
from jwm_jax.worldrec.pictures import Pictures, make_pictures

__all__ = [
    "DepthSource",
    "GivenDepth",
    "LidarDepth",
    "Pictures",
    "Reconstruction",
    "StageConfig",
    "WorldRec",
    "WorldRecConfig",
    "WorldRecNetwork",
    "make_pictures",
    "measured_depth",
]
