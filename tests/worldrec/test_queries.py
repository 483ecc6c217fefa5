"""Queries: lifting, ownership, canonical frames."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_jax.scene import make_transform, yaw_rotation
from jwm_jax.worldrec.pictures import make_pictures
from jwm_jax.worldrec.queries import cell_layout, place_queries


def placed(config, clip, frames=(0, 3), move=None):
    pictures = make_pictures(config, clip.select(list(frames)), clip.tracks, start=clip.start)
    if move is not None:
        pictures = replace(
            pictures,
            world_from_camera=(move @ pictures.world_from_camera).astype(np.float32),
            world_from_box=(move @ pictures.world_from_box).astype(np.float32),
        )
    pictures = jax.tree.map(jnp.asarray, pictures)
    depth = np.full(pictures.depth.shape, 50.0, np.float32)
    for i, t in enumerate(frames):
        depth[i] = np.where(clip.depth[0][t] > 0, clip.depth[0][t], 50.0)
    queries, entry = jax.jit(place_queries, static_argnums=0)(
        config, pictures, jnp.asarray(depth), jnp.zeros_like(pictures.depth)
    )
    return pictures, depth, queries, entry


def test_children_lie_on_their_pixels_rays_at_their_depth(config, clip):
    _pictures, depth, queries, _ = placed(config, clip)
    _, children = cell_layout(config, *depth.shape[1:])
    for i in range(2):
        camera = clip.camera((0, 3)[i], 0)
        static = np.asarray(queries.owner[i]) == 0
        uv, z = camera.project(np.asarray(queries.points[i], np.float64)[static])
        np.testing.assert_allclose(uv, children[static], atol=1e-2)
        row, column = children[..., 1].astype(int), children[..., 0].astype(int)
        np.testing.assert_allclose(z, depth[i][row, column][static], rtol=1e-4)


def test_the_box_owns_what_is_seen_of_it_and_not_the_road(config, clip):
    _pictures, depth, queries, _ = placed(config, clip)
    _, children = cell_layout(config, *depth.shape[1:])
    row, column = children[..., 1].astype(int), children[..., 0].astype(int)
    for i, t in enumerate((0, 3)):
        red = (clip.view(0)[t][row, column] == [204, 26, 26]).all(-1)
        owner = np.asarray(queries.owner[i])
        points = np.asarray(queries.points[i])
        high = red & ((owner == 1) | (points[..., 2] > config.ground + 0.02))
        assert red.sum() > 20
        assert (owner[high] == 1).mean() > 0.9
        assert (owner[~red] == 1).mean() < 0.03
        mine = points[owner == 1]
        half = 0.5 * (1 + config.box_margin) * np.array([4.0, 2.0, 1.5]) + 1e-3
        assert (np.abs(mine) <= half).all()


def test_a_wrong_depth_is_moved_into_the_box(config, clip):
    pictures, depth, _, _ = placed(config, clip)
    wrong = depth * 1.05
    queries, _ = place_queries(config, pictures, jnp.asarray(wrong), jnp.zeros_like(pictures.depth))
    mine = np.asarray(queries.points)[np.asarray(queries.owner) == 1]
    assert len(mine) > 20
    assert (np.abs(mine) <= 0.5 * (1 + config.box_margin) * np.array([4.0, 2.0, 1.5]) + 1e-3).all()


def test_owned_points_do_not_change_when_box_and_camera_move_together(config, clip):
    _, _, before, _ = placed(config, clip)
    move = make_transform(yaw_rotation(np.array(0.7)), np.array([5.0, -3.0, 1.0]))
    _, _, after, _ = placed(config, clip, move=move)
    np.testing.assert_array_equal(before.owner, after.owner)
    mine = np.asarray(before.owner) == 1
    np.testing.assert_allclose(before.points[mine], after.points[mine], atol=2e-3)
    moved = np.asarray(before.points)[~mine] @ move[:3, :3].T + move[:3, 3]
    np.testing.assert_allclose(after.points[~mine], moved, atol=2e-2)


def test_views_of_one_thing_at_two_times_agree_in_its_frame(config, clip):
    _, _, queries, _ = placed(config, clip)
    backs = [
        np.asarray(queries.points[i])[np.asarray(queries.owner[i]) == 1].mean(0) for i in range(2)
    ]
    np.testing.assert_allclose(backs[0], backs[1], atol=0.4)


def test_without_boxes_everything_is_static(config, clip):
    _, _, queries, entry = placed(config, replace(clip, tracks=None))
    assert (np.asarray(queries.owner) == 0).all()
    assert np.isinf(np.asarray(entry)).all()


def test_descriptors_do_not_depend_on_where_the_world_begins(config, clip):
    _, _, before, _ = placed(config, clip)
    move = make_transform(np.eye(3), np.array([300.0, 100.0, 0.0]))
    _, _, after, _ = placed(config, clip, move=move)
    np.testing.assert_allclose(before.descriptor, after.descriptor, atol=1e-3)


def test_a_picture_that_cells_do_not_tile_is_refused(config):
    with pytest.raises(ValueError, match="tile"):
        cell_layout(config, 50, 80)
