"""View fusion against a loop, and its invariances."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_jax.distributed import unbox
from jwm_jax.scene import Camera, Intrinsics
from jwm_jax.worldrec.fusion import NUM_CUES, ViewFusion, make_views
from jwm_jax.worldrec.pictures import make_pictures
from jwm_jax.worldrec.queries import place_queries


@pytest.fixture(scope="module")
def stage(config, clip):
    """Pictures, queries, views and embeddings with random features; two pictures and padding."""
    pictures = make_pictures(config, clip.select([0, 3]), clip.tracks)
    pictures = jax.tree.map(jnp.asarray, pictures)
    rng = np.random.default_rng(0)
    p, h, w = pictures.depth.shape
    pyramid = tuple(
        jnp.asarray(rng.normal(size=(p, h // s, w // s, config.pyramid)), jnp.float32)
        for s in (2, 4, 8)
    )
    depth = np.full((p, h, w), 50.0, np.float32)
    for i, t in enumerate((0, 3)):
        depth[i] = np.where(clip.depth[0][t] > 0, clip.depth[0][t], 50.0)
    sky = jnp.asarray(rng.uniform(size=(p, h, w)), jnp.float32)
    queries, entry = place_queries(config, pictures, jnp.asarray(depth), sky)
    views = make_views(config, pictures, pyramid, jnp.asarray(depth), sky, entry)
    embedding = jnp.asarray(rng.normal(size=(*queries.query_depth.shape, config.width)))
    embedding = embedding.astype(jnp.float32)
    module = ViewFusion(config)
    arguments = (embedding, queries, pictures.times, views)
    params = unbox(module.init(jax.random.key(1), *arguments))
    return pictures, queries, views, embedding, module, params


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def test_fusion_equals_a_loop_over_queries_and_views(config, clip, stage):
    pictures, queries, views, embedding, module, params = stage
    fused = np.asarray(module.apply(params, embedding, queries, pictures.times, views))
    weights = jax.tree.map(np.asarray, params["params"])
    up, down, query = (weights["step"]["up"], weights["step"]["down"], weights["query"])
    maps, nearest = np.asarray(views.maps), np.asarray(views.nearest)
    height, width = pictures.depth.shape[1:]
    rng = np.random.default_rng(3)
    owned = np.argwhere(np.asarray(queries.query_owner) > 0)
    picks = [tuple(rng.integers(0, n) for n in (2, embedding.shape[1])) for _ in range(40)]
    picks += [tuple(owned[i]) for i in rng.integers(0, len(owned), 10)]
    both = 0
    for i, q in picks:
        owner = int(queries.query_owner[i, q])
        point = np.asarray(queries.point[i, q], np.float64)
        logits, values = [], []
        for k in range(2):
            world = point
            if owner:
                box = np.asarray(pictures.world_from_box[k, owner - 1], np.float64)
                world = box[:3, :3] @ point + box[:3, 3]
            lens = Intrinsics(np.asarray(pictures.K[k], np.float64), width, height)
            camera = Camera(lens, np.asarray(pictures.world_from_camera[k], np.float64))
            (u, v), z = camera.project(world)
            if z <= 1e-3 or not (0 <= u < width and 0 <= v < height):
                continue
            row, column = int(v / 2), int(u / 2)
            seen, sky, entry = nearest[k, row, column]
            if owner == 0 and z > entry and k != i:
                continue
            x, y = np.clip(u / 2 - 0.5, 0, width / 2 - 1), np.clip(v / 2 - 0.5, 0, height / 2 - 1)
            left, top = min(int(x), width // 2 - 2), min(int(y), height // 2 - 2)
            a, b = x - left, y - top
            grid = maps[k, top : top + 2, left : left + 2]
            read = (grid[0, 0] * (1 - a) + grid[0, 1] * a) * (1 - b)
            read = read + (grid[1, 0] * (1 - a) + grid[1, 1] * a) * b
            delta = np.clip((z - seen) / z, -1, 1)
            change = read[-3:] - np.asarray(queries.colors[i, q]).mean(0)
            age = float(pictures.times[k] - pictures.times[i])
            ratio = np.clip(np.log(z / float(queries.query_depth[i, q])), -2, 2)
            cues = [delta, abs(delta), np.tanh(20 * delta), sky, ratio, age, abs(age) < 1e-3]
            cues += [*change, np.linalg.norm(change + 1e-6), k == i, owner > 0]
            value = np.concatenate([read[:-3], np.array(cues, np.float64)])
            hidden = value @ up["kernel"] + up["bias"]
            hidden = hidden + np.asarray(embedding[i, q]) @ query["kernel"] + query["bias"]
            logits.append((gelu(hidden) @ down["kernel"])[0])
            values.append(value)
        both += len(values) == 2
        weight = np.exp(np.array(logits) - max(logits))
        weight /= weight.sum()
        expected = np.append(weight @ np.array(values), weight.max())
        np.testing.assert_allclose(fused[i, q], expected, atol=2e-3)
    assert both > 10


def test_weights_sum_to_one_over_valid_views(config, stage):
    pictures, queries, views, embedding, module, params = stage
    constant = views._replace(maps=jnp.full_like(views.maps, 3.0))
    fused = module.apply(params, embedding, queries, pictures.times, constant)
    channels = views.maps.shape[-1] - 3
    np.testing.assert_allclose(fused[:2, :, :channels], 3.0, rtol=1e-5)
    assert fused.shape[-1] == channels + NUM_CUES + 1


def test_views_that_do_not_count_change_nothing(config, stage):
    pictures, queries, views, embedding, module, params = stage
    before = module.apply(params, embedding, queries, pictures.times, views)
    noise = jax.random.normal(jax.random.key(5), views.maps[2].shape)
    changed = views._replace(maps=views.maps.at[2].set(noise), nearest=views.nearest.at[2].set(1.0))
    after = module.apply(params, embedding, queries, pictures.times, changed)
    np.testing.assert_array_equal(before[:2], after[:2])


def test_static_queries_behind_a_box_do_not_read_it(config, stage):
    pictures, queries, views, embedding, module, params = stage
    everywhere = views._replace(nearest=views.nearest.at[..., 2].set(0.01))
    fused = module.apply(params, embedding, queries, pictures.times, everywhere)
    static = np.asarray(queries.query_owner[:2]) == 0
    np.testing.assert_allclose(np.asarray(fused)[:2][static][:, -1], 1.0, rtol=1e-6)


def test_the_order_of_pictures_does_not_matter(config, rec, clip):
    one = make_pictures(config, clip.select([0, 2, 3]), clip.tracks)
    order = np.array([2, 0, 1])
    names = [n for n in one.__dataclass_fields__ if n != "box_sizes"]
    two = replace(one, **{n: getattr(one, n)[order] for n in names})
    first, second = rec.reconstruct(one), rec.reconstruct(two)
    for name in ("means", "colors", "opacities", "scales", "lifespan"):
        a, b = (
            np.asarray(getattr(first.gaussians, name)),
            np.asarray(getattr(second.gaussians, name)),
        )
        shape = (3, -1, *a.shape[1:])
        np.testing.assert_allclose(a.reshape(shape)[order], b.reshape(shape), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(first.sky.texture, second.sky.texture, atol=1e-4)
