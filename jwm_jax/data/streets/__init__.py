"""Procedural streets: a seeded world, its ray-caster, its clips. See README.md in this folder."""

from jwm_jax.data.streets.appearance import CLASSES
from jwm_jax.data.streets.clip import (
    VIEW_YAWS,
    left_out,
    load_procedural,
    make_clip,
    make_rig,
    parse_spec,
    render,
    render_views,
    scan_lidar,
    true_views,
)
from jwm_jax.data.streets.generate import make_street
from jwm_jax.data.streets.render import Picture
from jwm_jax.data.streets.street import FIRST_TEST_SEED, RUNGS, Street, split_of_seed

__all__ = [
    "CLASSES",
    "FIRST_TEST_SEED",
    "RUNGS",
    "VIEW_YAWS",
    "Picture",
    "Street",
    "left_out",
    "load_procedural",
    "make_clip",
    "make_rig",
    "make_street",
    "parse_spec",
    "render",
    "render_views",
    "scan_lidar",
    "split_of_seed",
    "true_views",
]
