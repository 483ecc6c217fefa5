"""The whole model: interface, untrained quality, gradients, saving."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_jax.distributed import unnamed_leaves
from jwm_jax.errors import DataError
from jwm_jax.evaluation.images import psnr
from jwm_jax.worldrec import GivenDepth, LidarDepth, WorldRec, WorldRecConfig, WorldRecNetwork
from jwm_jax.worldrec.heads import OUTPUTS
from jwm_jax.worldrec.model import boxed_params, initial_params
from jwm_jax.worldrec.pictures import make_pictures, nearest_tracks


def picture(clip, t):
    return clip.view(0)[t].astype(np.float32) / 255.0


@pytest.fixture(scope="module")
def context(config, clip):
    return clip.select([0, 2, 4])


def test_an_untrained_model_shows_a_single_picture(rec, clip):
    scene = rec(clip.select([2]))
    seen = scene.render(clip.camera(2, 0), 0.0)
    assert scene.start == clip.times[2, 0]
    assert psnr(seen.rgb, picture(clip, 2)) > 24.0
    assert np.asarray(seen.depth).max() < 200


def test_untrained_with_true_depth_it_shows_unseen_instants_with_the_box_moved(rec, clip, context):
    scene = rec(context, GivenDepth())
    for t in (1, 3):
        seen = scene.render(clip.camera(t, 0), float(clip.times[t, 0] - scene.start))
        truth = picture(clip, t)
        red = (clip.view(0)[t] == [204, 26, 26]).all(-1)
        assert psnr(seen.rgb, truth) > 21.0
        assert np.abs(np.asarray(seen.rgb)[red] - truth[red]).mean() < 0.1


def test_works_without_tracks_lidar_map_style_and_depth(rec, clip, context):
    bare = replace(context, tracks=None, lidar=None, depth=None, map=None, style=None)
    scene = rec(bare)
    assert scene.tracks is None
    assert (np.asarray(scene.gaussians.owner) == 0).all()
    assert psnr(scene.render(clip.camera(0, 0), 0.0).rgb, picture(clip, 0)) > 20.0


def test_gaussians_beyond_the_pictures_are_padding(rec, config, clip):
    scene = rec(clip.select([0, 2]))
    g = scene.gaussians
    each = g.capacity // 3
    assert g.count() == 2 * each
    assert (np.asarray(g.opacities)[2 * each :] == 0).all()
    times = np.unique(np.asarray(g.time)[: 2 * each])
    np.testing.assert_allclose(times, [0.0, 0.2], atol=1e-5)


def test_moving_the_box_moves_its_gaussians(rec, clip, context):
    scene = rec(context, GivenDepth())
    owned = np.asarray(scene.gaussians.owner) == 1
    first, last = scene.compose(0.0), scene.compose(0.4)
    moved = np.asarray(last.means - first.means)
    np.testing.assert_allclose(moved[owned], [[4.8, 0, 0]] * owned.sum(), atol=1e-2)
    np.testing.assert_allclose(moved[~owned], 0.0, atol=1e-5)


def test_lidar_depth_fills_between_returns_and_needs_lidar(clip):
    depth = LidarDepth()(clip, 1, 0)
    truth = clip.depth[0][1]
    known = (depth > 0) & (truth > 0) & (truth < 30)
    assert known.mean() > 0.3
    assert np.median(np.abs(depth[known] / truth[known] - 1)) < 0.02
    with pytest.raises(DataError, match="no lidar"):
        LidarDepth()(replace(clip, lidar=None), 1, 0)


def test_every_parameter_names_its_axes_and_the_shipped_size_is_small():
    config = WorldRecConfig()
    boxed = jax.eval_shape(lambda key: boxed_params(config, key), jax.random.key(0))
    assert unnamed_leaves(boxed) == []
    assert sum(x.size for x in jax.tree.leaves(boxed)) < 1_500_000


def test_gradients_reach_every_head_and_are_finite(rec, config, clip, context):
    tracks = nearest_tracks(config, context)
    pictures = jax.tree.map(jnp.asarray, make_pictures(config, context, tracks))
    network = WorldRecNetwork(config)

    def loss(params):
        result = network.apply({"params": params}, pictures)
        g = result.gaussians
        parts = (g.means, g.scales, g.quats, g.opacities, g.colors, g.lifespan, result.sky.texture)
        weights = jax.random.normal(jax.random.key(3), (16,))
        total = sum(
            jnp.sum(jnp.sin(x * 3.0) * weights[: x.shape[-1]] if x.ndim > 1 else jnp.sin(3.0 * x))
            for x in parts
        )
        return total + result.log_depth.sum() + result.sky_logit.sum()

    gradients = jax.jit(jax.grad(loss))(rec.params)
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradients)[0]:
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
    for name in OUTPUTS:
        assert np.abs(gradients["heads"][name]["kernel"]).max() > 0, name
    for name in ("backbone", "depth", "embed", "fusion", "fused", "mix", "sky"):
        norms = [float(np.abs(x).max()) for x in jax.tree.leaves(gradients[name])]
        assert max(norms) > 0, name


def test_save_and_load_give_the_same_scene(tmp_path, rec, context):
    rec.save_pretrained(tmp_path / "model", "# Card")
    again = WorldRec.from_pretrained(tmp_path / "model")
    assert again.config == rec.config
    a, b = rec(context).gaussians, again(context).gaussians
    np.testing.assert_allclose(a.means, b.means, rtol=1e-2, atol=0.1)
    np.testing.assert_allclose(a.colors, b.colors, atol=5e-3)


def test_weights_of_another_size_are_refused(tmp_path, rec):
    smaller = replace(rec.config, width=8)
    params = jax.jit(initial_params, static_argnums=0)(smaller, jax.random.key(0))
    WorldRec(rec.config, params).save_pretrained(tmp_path / "model")
    with pytest.raises(DataError, match="another size"):
        WorldRec.from_pretrained(tmp_path / "model")
