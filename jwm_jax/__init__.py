"""jwm_jax: an open joint world model for driving, in JAX.

A drive goes in; WorldRec reconstructs it as 3D Gaussians, WorldGen generates its future as video,
and the joint model lets each hold the other straight. Everything here is imported when first used,
so that importing the package costs nothing.
"""

import importlib

_LAZY = {
    "Clip": "jwm_jax.scene",
    "Scene": "jwm_jax.scene",
    "Camera": "jwm_jax.scene",
    "Trajectory": "jwm_jax.scene",
    "load_clip": "jwm_jax.data",
    "WorldRec": "jwm_jax.worldrec",
    "WorldGen": "jwm_jax.worldgen",
    "Conditions": "jwm_jax.worldgen",
    "VideoCodec": "jwm_jax.worldgen",
    "JointWorldModel": "jwm_jax.joint",
}

__all__ = sorted(_LAZY)
__version__ = "0.1.0"


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'jwm_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
