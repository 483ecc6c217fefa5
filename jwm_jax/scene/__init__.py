"""Types and geometry: what a drive, a scene and a camera are. See README.md in this folder."""

from jwm_jax.scene.cameras import (
    Camera,
    Intrinsics,
    Rig,
    inside_image,
    shift_half_pixel,
    stack_cameras,
)
from jwm_jax.scene.clip import Clip, crop_covering, fitted_size, mirrored
from jwm_jax.scene.drawing import (
    clip_layout,
    color_depth,
    contact_sheet,
    draw_boxes,
    draw_layout,
    draw_lidar,
    layout_frames,
)
from jwm_jax.scene.gaussians import Gaussians, concatenate, make_gaussians
from jwm_jax.scene.lane_map import LINE_KINDS, LaneMap
from jwm_jax.scene.ply import read_ply, write_ply
from jwm_jax.scene.pytree import Array, pytree_dataclass, static_field
from jwm_jax.scene.scene import Rendering, Scene
from jwm_jax.scene.sky import Sky, texel_directions
from jwm_jax.scene.tracks import CATEGORIES, Tracks, box_corners
from jwm_jax.scene.trajectory import Trajectory, ego_motion
from jwm_jax.scene.transforms import (
    EGO_FROM_OPENCV,
    interpolate_transforms,
    invert_transform,
    make_transform,
    matrix_to_quat,
    quat_multiply,
    quat_normalize,
    quat_slerp,
    quat_to_matrix,
    transform_points,
    yaw_rotation,
)

__all__ = [
    "CATEGORIES",
    "EGO_FROM_OPENCV",
    "LINE_KINDS",
    "Array",
    "Camera",
    "Clip",
    "Gaussians",
    "Intrinsics",
    "LaneMap",
    "Rendering",
    "Rig",
    "Scene",
    "Sky",
    "Tracks",
    "Trajectory",
    "box_corners",
    "clip_layout",
    "color_depth",
    "concatenate",
    "contact_sheet",
    "crop_covering",
    "draw_boxes",
    "draw_layout",
    "draw_lidar",
    "ego_motion",
    "fitted_size",
    "inside_image",
    "interpolate_transforms",
    "invert_transform",
    "layout_frames",
    "make_gaussians",
    "make_transform",
    "matrix_to_quat",
    "mirrored",
    "pytree_dataclass",
    "quat_multiply",
    "quat_normalize",
    "quat_slerp",
    "quat_to_matrix",
    "read_ply",
    "shift_half_pixel",
    "stack_cameras",
    "static_field",
    "texel_directions",
    "transform_points",
    "write_ply",
    "yaw_rotation",
]
