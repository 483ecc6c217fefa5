"""Scenes: actors move with their boxes, Gaussians fade with age, skies fill, files round-trip."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_jax.errors import DataError
from jwm_jax.scene import (
    EGO_FROM_OPENCV,
    Camera,
    Intrinsics,
    Scene,
    Sky,
    Tracks,
    make_gaussians,
    matrix_to_quat,
    read_ply,
    texel_directions,
    yaw_rotation,
)

K = np.array([[40.0, 0, 24], [0, 40, 16], [0, 0, 1]], np.float32)


def camera():
    return Camera(Intrinsics(K, 48, 32), EGO_FROM_OPENCV.astype(np.float32))


def gaussians(owner=(0, 1), **others):
    return make_gaussians(
        means=jnp.asarray([[8.0, 1.0, 0.5], [0.5, 0.2, 0.1]]),
        colors=jnp.asarray([[0.9, 0.1, 0.1], [0.1, 0.2, 0.9]]),
        scales=jnp.full((2, 3), 0.4),
        opacities=jnp.full(2, 0.9),
        owner=jnp.asarray(owner, jnp.int32),
        **others,
    )


def moving():
    quats = matrix_to_quat(yaw_rotation(np.array([0.0, 1.0]))).astype(np.float32)
    return Tracks(
        times=np.array([0.0, 1.0], np.float32),
        centers=np.array([[[6, 0, 0], [10, -2, 0]]], np.float32),
        quats=quats[None],
        sizes=np.array([[4, 2, 1.5]], np.float32),
        valid=np.array([[True, True]]),
        category=np.array([0], np.int32),
        ids=("car",),
    )


def test_an_actor_moves_with_its_box_and_the_world_stands():
    scene = Scene(gaussians(), moving())
    for time in (0.0, 0.5, 1.0):
        composed = scene.compose(time)
        pose, _ = moving().at(np.float32(time))
        expected = pose[0, :3, :3] @ np.array([0.5, 0.2, 0.1]) + pose[0, :3, 3]
        np.testing.assert_allclose(composed.means[1], expected, atol=1e-5)
        np.testing.assert_allclose(composed.means[0], [8, 1, 0.5])


def test_an_absent_actor_is_invisible():
    tracks = Tracks(**{**moving().__dict__, "valid": np.zeros((1, 2), bool)})
    assert Scene(gaussians(), tracks).compose(0.5).opacities[1] == 0


def test_opacity_fades_by_the_stated_formula():
    scene = Scene(gaussians(owner=(0, 0), lifespan=jnp.asarray([0.5, 1e6])), tau=1.0)
    faded = scene.compose(3.0).opacities
    np.testing.assert_allclose(faded, [0.9 * np.exp(-0.5 * (3 / 1.5) ** 2), 0.9], rtol=1e-4)


def test_batched_rendering_equals_one_by_one():
    scene = Scene(gaussians(), moving(), Sky(jnp.full((4, 8, 3), 0.5)))
    poses = np.stack([camera().world_from_camera] * 3)
    poses[:, 1, 3] = [-0.5, 0.0, 0.5]
    times = np.array([0.0, 0.4, 0.8], np.float32)
    lens = Intrinsics(np.stack([K] * 3), 48, 32)
    many = scene.render(Camera(lens, poses), times)
    for i in range(3):
        one = scene.render(Camera(camera().intrinsics, poses[i]), times[i])
        np.testing.assert_allclose(many.rgb[i], one.rgb, atol=1e-5)
        np.testing.assert_allclose(many.depth[i], one.depth, atol=1e-4)


def test_render_shows_colour_depth_and_sky_where_they_belong():
    sky = Sky(jnp.broadcast_to(jnp.asarray([0.2, 0.4, 0.8]), (4, 8, 3)))
    scene = Scene(gaussians(owner=(0, 0), mask=jnp.asarray([True, False])), None, sky)
    picture = scene.render(camera(), 0.0)
    (u, v), depth = camera().project(np.array([8.0, 1.0, 0.5], np.float32))
    row, column = int(v), int(u)
    assert picture.rgb[row, column, 0] > 0.6
    np.testing.assert_allclose(picture.depth[row, column], depth, rtol=0.05)
    np.testing.assert_allclose(picture.rgb[2, 45], [0.2, 0.4, 0.8], atol=1e-3)
    black = scene.render(camera(), 0.0, sky=False)
    assert black.rgb[2, 45].max() < 1e-3 and black.alpha[2, 45] < 1e-3


def test_gradients_reach_an_actor_through_time():
    def loss(means):
        scene = Scene(gaussians(), moving())
        scene = Scene(
            type(scene.gaussians)(**{**scene.gaussians.__dict__, "means": means}), moving()
        )
        return scene.render(camera(), 0.5).rgb[:, :24].sum()

    grad = jax.grad(loss)(gaussians().means)
    assert np.isfinite(grad).all() and np.abs(grad[1]).max() > 0


def test_sky_is_continuous_across_the_seam_and_exact_at_texels():
    texture = np.random.default_rng(0).random((6, 12, 3)).astype(np.float32)
    sky = Sky(texture)
    np.testing.assert_allclose(sky.sample(texel_directions(6, 12)), texture, atol=2e-5)
    angle = np.pi - 1e-4
    sides = np.array([[np.cos(a), np.sin(a), 0.3] for a in (angle, -angle)], np.float32)
    left, right = np.asarray(sky.sample(sides))
    np.testing.assert_allclose(left, right, atol=1e-3)


def test_scene_file_round_trip(tmp_path):
    scene = Scene(gaussians(), moving(), Sky(np.zeros((2, 4, 3), np.float32)), start=1e9, tau=0.5)
    back = Scene.load(scene.save(tmp_path / "scene.npz"))
    assert jax.tree.structure(back) == jax.tree.structure(scene)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(scene), strict=True):
        np.testing.assert_array_equal(a, b)


def test_ply_round_trip_keeps_what_can_be_seen(tmp_path):
    scene = Scene(gaussians(owner=(0, 0)))
    back = read_ply(scene.save_ply(tmp_path / "scene.ply"))
    for name in ("means", "quats", "scales", "opacities", "colors"):
        np.testing.assert_allclose(
            getattr(back, name), getattr(scene.gaussians, name), rtol=1e-4, atol=1e-6
        )
    actors = Scene(gaussians(), moving())
    assert read_ply(actors.save_ply(tmp_path / "static.ply")).capacity == 1
    assert read_ply(actors.save_ply(tmp_path / "all.ply", time=0.5)).capacity == 2


def test_scene_files_that_are_no_whole_scene_are_named(tmp_path):
    scene = Scene(gaussians(), moving(), Sky(np.zeros((2, 4, 3), np.float32)))
    whole = scene.save(tmp_path / "whole.npz")
    content, arrays = whole.read_bytes(), dict(np.load(whole))
    broken = tmp_path / "scene.npz"
    for piece in (b"", b"nonsense", content[: len(content) // 2], content[:-20]):
        broken.write_bytes(piece)
        with pytest.raises(DataError, match=r"scene\.npz: cannot be read"):
            Scene.load(broken)
    for name, array in arrays.items():
        if name == "tracks.ids":
            continue
        np.savez(broken, **{k: v for k, v in arrays.items() if k != name})
        if not name.startswith("sky"):
            with pytest.raises(DataError, match=r"scene\.npz: .*lacks the arrays"):
                Scene.load(broken)
        for other in (array[None], np.concatenate([array] * 2) if array.ndim else np.array("x")):
            np.savez(broken, **(arrays | {name: other}))
            if not name.startswith("sky") or other.ndim != array.ndim:
                with pytest.raises(DataError, match=r"scene\.npz: .*(has shape|holds)"):
                    Scene.load(broken)
    np.savez(broken, **(arrays | {"gaussians.owner": np.full(2, 9, np.int32)}))
    with pytest.raises(DataError, match="owners must be 0 to 1"):
        Scene.load(broken)
    np.savez(broken, **(arrays | {"format_version": np.int64(2)}))
    with pytest.raises(DataError, match="of format version 1, got 2"):
        Scene.load(broken)


def test_ply_files_that_are_no_whole_ply_are_named(tmp_path):
    whole = Scene(gaussians(owner=(0, 0))).save_ply(tmp_path / "whole.ply").read_bytes()
    lacking = whole.replace(b"property float opacity", b"property float opaque_")
    for content in (None, b"", b"<!DOCTYPE html>", whole[:40], whole[:-9], lacking):
        if content is not None:
            (tmp_path / "broken.ply").write_bytes(content)
        with pytest.raises(DataError, match=r"broken\.ply: not a whole Gaussian splatting PLY"):
            read_ply(tmp_path / "broken.ply")


def test_ply_has_rotations_and_scales_that_viewers_can_use(tmp_path):
    """What the renderer draws alike is written alike: no rotation of length 0, no log of < 0."""
    still = gaussians(owner=(0, 0))
    odd = replace(
        still,
        quats=np.float32([[0, 0, 0, 0], [0, 2, 0, 0]]),
        scales=still.scales * np.float32([[-1, 1, -1]]),
    )
    back = read_ply(Scene(odd).save_ply(tmp_path / "a.ply"))
    np.testing.assert_array_equal(back.quats, [[1, 0, 0, 0], [0, 2, 0, 0]])
    np.testing.assert_allclose(back.scales, still.scales, rtol=1e-6)
    nothing = replace(still, quats=np.full((2, 4), np.nan, np.float32))
    assert read_ply(Scene(nothing).save_ply(tmp_path / "b.ply")).capacity == 0


def test_what_does_not_fit_is_counted():
    scene = Scene(gaussians(owner=(0, 0)))
    assert scene.render(camera(), 0.0).overflow == 0
    small = scene.render(camera(), 0.0, capacity=2)
    assert small.overflow > 0 and np.isfinite(small.rgb).all()
