"""WorldRec's task: examples, falling loss, the same on every mesh."""

from dataclasses import replace
from functools import partial
from unittest import mock

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jwm_jax.data import thinning
from jwm_jax.data.folder import save_folder_clip
from jwm_jax.data.records import encode_clip, read_header
from jwm_jax.data.streets import make_clip
from jwm_jax.data.tfds_clips import write_dataset
from jwm_jax.distributed import MeshConfig, make_mesh, put_batch, read_compiled, unbox
from jwm_jax.errors import DataError, UsageError
from jwm_jax.nn.lpips import lpips_shapes
from jwm_jax.paradigms.worldrec import WorldRecExperiment
from jwm_jax.paradigms.worldrec_data import Sampling, drive_records, make_example
from jwm_jax.worldrec import StageConfig, WorldRecConfig
from jwm_jax.worldrec.losses import LossWeights

MODEL = WorldRecConfig(
    height=32,
    cell=(4, 4),
    children=(1, 1),
    width=16,
    hidden=16,
    weight_hidden=8,
    stem=8,
    stages=(StageConfig(8, 1, 1, 1, True), StageConfig(16, 1, 2, 2, True)),
    pyramid=8,
    levels=2,
    norm_group=4,
    max_tracks=4,
    sky=(6, 16),
)
SAMPLING = Sampling(max_context=2, targets=1, track_steps=8, slots=12.0)


@pytest.fixture(scope="module")
def record():
    clip = make_clip(3, "easy", num_frames=6, height=32, width=48, views=("front_left", "front"))
    return encode_clip(clip)


@pytest.fixture(scope="module")
def task():
    return WorldRecExperiment(name="test", model=MODEL, sampling=SAMPLING, batch_size=2).task()


def examples(record, seeds):
    made = [
        make_example(MODEL, replace(SAMPLING, instant=0.3), 48, record, np.random.default_rng(seed))
        for seed in seeds
    ]
    return jax.tree.map(lambda *x: np.stack(x), *made)


def test_examples_have_fixed_shapes_and_targets_outside_the_context(record):
    batch = examples(record, range(12))
    assert batch.pictures.images.shape == (12, 2, 32, 48, 3)
    assert batch.images.shape == (12, 1, 32, 48, 3)
    count = batch.pictures.mask.sum(1)
    assert set(count) == {1, 2}
    for i in range(12):
        times = batch.pictures.times[i][batch.pictures.mask[i]]
        assert times.min() == 0.0
        assert np.abs(batch.times[i][:, None] - times).min() > 0.05
    assert (batch.lidar > 0).any() and batch.sky_known.any()
    assert batch.sky.any()


def test_an_example_depends_only_on_its_generator(record):
    a, b = examples(record, [7]), examples(record, [7])
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def gradient(task):
    """The task's loss and gradient on a mesh, and what it costs; compiled once for each mesh."""
    function = jax.jit(jax.value_and_grad(partial(task.loss, key=None), has_aux=True))
    compiled = {}

    def evaluate(params, batch, **sizes):
        mesh = make_mesh(MeshConfig(**{"data": 1, **sizes}))
        with jax.set_mesh(mesh):
            placed = put_batch(jax.tree.map(lambda x: np.asarray(x)[None], batch), mesh, 2)
            placed = jax.tree.map(lambda x: x[0], placed)
            params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
            key = tuple(sizes.items())
            if key not in compiled:
                program = function.lower(params, placed).compile()
                compiled[key] = program, read_compiled(program, mesh, params)
            program, costs = compiled[key]
            return *program(params, placed), costs

    return evaluate


@pytest.fixture(scope="module")
def params(task):
    return jax.device_get(jax.jit(lambda key: unbox(task.init(key)))(jax.random.key(0)))


def test_the_loss_falls_on_one_batch(record, params, gradient):
    batch, losses = examples(record, [0, 1]), []
    for _ in range(12):
        (loss, parts), grads, _ = gradient(params, batch)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.device_get(grads))
        losses.append(float(loss))
    assert float(parts["overflow"]) == 0.0
    assert losses[-1] < 0.93 * losses[0]
    assert all(np.isfinite(losses))


def test_scenes_and_their_pictures_are_split_without_changing_loss_or_gradient(
    record, params, gradient
):
    """Two scenes over data, the two pictures of each and the bands of its target over context."""
    batch = examples(record, [0, 1])
    (loss, parts), grads, alone = gradient(params, batch)
    (split_loss, split_parts), split_grads, costs = gradient(params, batch, data=2, context=2)
    np.testing.assert_allclose(float(split_loss), float(loss), rtol=1e-6)
    for name in parts:
        np.testing.assert_allclose(float(split_parts[name]), float(parts[name]), rtol=1e-5)
    for (path, one), four in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(split_grads), strict=True
    ):
        error = np.abs(np.asarray(four) - one).max() / np.abs(one).max()
        # What the pixels give the few numbers of the sky's fallback cancels: they add up to less.
        bound = 2e-5 if path[0].key == "sky" else 1e-5
        assert error < bound, (jax.tree_util.keystr(path), error)
    assert costs.flops < 1.15 / 4 * alone.flops
    assert {c.moves for c in costs.select(axis="data")} <= {"parameters", "scalars"}
    assert {c.kind for c in costs.select(axis="data")} == {"all-reduce"}
    kinds = {c.kind for c in costs.select(axis="context")}
    assert kinds == {"all-gather", "reduce-scatter", "all-to-all", "all-reduce"}


def test_lpips_joins_the_loss_on_every_mesh(record, task, params):
    """Random weights judge; two scenes on two devices as on one, and pictures are never cut."""
    random = np.random.default_rng(0)
    judge = jax.tree.map(
        lambda x: np.abs(random.normal(size=x.shape)).astype(np.float32) * 0.05, lpips_shapes()
    )
    config = replace(task.config, loss=LossWeights(lpips=0.5))
    loss = partial(config.task().loss, key=None)
    batch = examples(record, [0, 1])
    plain = jax.eval_shape(partial(task.loss, key=None), params, batch)[1]
    assert "lpips" not in plain

    def run(**sizes):
        mesh = make_mesh(MeshConfig(**{"data": 1, **sizes}))
        with jax.set_mesh(mesh):
            placed = put_batch(jax.tree.map(lambda x: np.asarray(x)[None], batch), mesh, 2)
            placed = jax.tree.map(lambda x: x[0], placed)
            return jax.jit(lambda p, b: loss(p, b, judge=judge))(params, placed)

    (one, parts), (two, split) = run(), run(data=2)
    assert parts["lpips"] > 0
    np.testing.assert_allclose(two, one, rtol=1e-5)
    np.testing.assert_allclose(split["lpips"], parts["lpips"], rtol=1e-4)
    with (
        jax.set_mesh(make_mesh(MeshConfig(data=1, context=2))),
        pytest.raises(UsageError, match=r"make sampling.targets 1 a multiple of mesh.context 2"),
    ):
        jax.eval_shape(partial(loss, judge=judge), params, batch)


def test_the_shapes_for_a_preview_are_those_of_examples(record, task):
    batch = examples(record, [0, 1])
    config = replace(task.config, batch_size=2)
    wanted = jax.tree.map(lambda x: (x.shape, x.dtype), config.task().shapes())
    width = batch.images.shape[-2]
    got = jax.tree.map(lambda x: (np.shape(x), jax.dtypes.canonicalize_dtype(x.dtype)), batch)
    assert jax.tree.map(str, wanted) == jax.tree.map(str, got), width


def test_a_mesh_that_does_not_divide_the_pictures_is_refused(record, task, params):
    batch = examples(record, [0, 1])
    with (
        jax.set_mesh(make_mesh(MeshConfig(data=1, context=4))),
        pytest.raises(UsageError, match=r"max_context 2 does not divide over mesh.context 4"),
    ):
        jax.eval_shape(partial(task.loss, key=None), params, batch)


def test_batches_depend_on_seed_and_step_alone(record, task, tmp_path):
    write_dataset(tmp_path / "clips", {"train": [(f"clip{i}", record) for i in range(3)]})
    config = replace(task.config, datasets=(str(tmp_path / "clips"),), held_out=1)
    from_start = config.task().batches(0, slice(0, 2))
    first, second = next(from_start), next(from_start)
    part = next(config.task().batches(1, slice(1, 2)))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1:], b), second, part)
    assert (first.images != second.images).any()
    other = next(replace(config, seed=1).task().batches(1, slice(1, 2)))
    assert (other.images != part.images).any()


def test_real_drives_join_with_and_without_lidar(record, task, tmp_path):
    """A wide drive at 20 Hz with a long list of boxes; half a second of it at the streets' size."""
    clip = make_clip(3, "easy", num_frames=24, rate=20.0, height=32, width=96, views=("front",))
    save_folder_clip(clip, tmp_path / "lidar")
    save_folder_clip(replace(clip, lidar=None, depth=None), tmp_path / "none")
    write_dataset(tmp_path / "clips", {"train": [(f"clip{i}", record) for i in range(2)]})
    specs = tuple(f"folder:{tmp_path / name}" for name in ("lidar", "none"))
    kept = drive_records(specs, 32, 48)
    assert [read_header(r)["frames"] for r in kept] == [12, 12]
    config = replace(
        task.config,
        datasets=(str(tmp_path / "clips"),),
        clips=specs,
        clips_share=1.0,
        held_out_clips=specs[1:],
        held_out=1,
    )
    batches = config.task().batches(0, slice(0, 2))
    drawn = [next(batches) for _ in range(8)]
    assert all(batch.images.shape == (2, 1, 32, 48, 3) for batch in drawn)
    measured = np.concatenate([(batch.lidar > 0).any((1, 2, 3)) for batch in drawn])
    sky = np.concatenate([batch.sky_known.any((1, 2, 3)) for batch in drawn])
    assert 0 < measured.sum() < len(measured) and not sky[~measured].any()
    again = next(config.task().batches(7, slice(0, 2)))
    jax.tree.map(np.testing.assert_array_equal, again, drawn[7])
    film = replace(clip, posed=False, name="film")
    with (
        mock.patch.object(thinning, "load_clip", lambda spec: film),
        pytest.raises(DataError, match="film: WorldRec's training needs to know where"),
    ):
        drive_records(("video:film",), 32, 48)


def test_missing_data_is_named(task, tmp_path):
    with pytest.raises(UsageError, match="jwm data make"):
        next(task.batches(0, slice(0, 2)))
    config = replace(task.config, datasets=(str(tmp_path / "nothing"),))
    with pytest.raises(DataError, match="jwm data make"):
        next(config.task().batches(0, slice(0, 2)))
