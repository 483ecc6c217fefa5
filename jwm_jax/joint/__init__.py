"""The joint model: scene priors for the generator, key frames for the scene, rollouts."""

from jwm_jax.joint.feedback import extend_scene, with_room
from jwm_jax.joint.prior import Prior, render_prior
from jwm_jax.joint.rollout import JointWorldModel, Rollout, side_by_side
from jwm_jax.joint.session import Chunk, JointState, KeyFrames

__all__ = [
    "Chunk",
    "JointState",
    "JointWorldModel",
    "KeyFrames",
    "Prior",
    "Rollout",
    "extend_scene",
    "render_prior",
    "side_by_side",
    "with_room",
]
