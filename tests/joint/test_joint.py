"""The joint model: priors show what is known, key frames fill what is not, rollouts repeat."""

import json
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_jax.errors import DataError, UsageError
from jwm_jax.joint import JointWorldModel, KeyFrames, extend_scene, render_prior, with_room
from jwm_jax.joint.session import things_of
from jwm_jax.scene import (
    EGO_FROM_OPENCV,
    Camera,
    Clip,
    Intrinsics,
    Scene,
    Tracks,
    Trajectory,
    make_gaussians,
    make_transform,
    stack_cameras,
    yaw_rotation,
)
from jwm_jax.worldgen import VideoCodec, WorldGen, WorldGenConfig
from jwm_jax.worldgen.codec_network import CodecConfig, CodecNetwork
from jwm_jax.worldrec import StageConfig, WorldRec, WorldRecConfig

HEIGHT, WIDTH = 96, 96
LENS = Intrinsics(np.array([[70.0, 0, 48], [0, 70, 40], [0, 0, 1]]), WIDTH, HEIGHT)
MOUNT = make_transform(np.eye(3), np.array([1.0, 0.0, 1.6])) @ EGO_FROM_OPENCV

REC = WorldRecConfig(
    cell=(8, 8),
    width=16,
    hidden=16,
    weight_hidden=8,
    stem=8,
    stages=(StageConfig(8, 1, 1, 1, True), StageConfig(16, 1, 2, 2, False)),
    pyramid=8,
    levels=2,
    max_tracks=4,
    sky=(4, 8),
    buckets=(1, 2, 4),
)
GEN = WorldGenConfig(
    dim=16,
    num_layers=2,
    num_heads=2,
    ffn_dim=16,
    freq_dim=16,
    latent_channels=4,
    head_channels=4,
    window=2,
)


def drive(frames):
    position = np.zeros((frames, 3))
    position[:, 0] = np.arange(frames) * 0.5
    return make_transform(np.broadcast_to(np.eye(3), (frames, 3, 3)), position)


def clip(frames=1):
    ego = drive(frames)
    ramp = np.linspace(0, 255, WIDTH)[None, None, :, None]
    image = np.broadcast_to(ramp, (frames, HEIGHT, WIDTH, 3)).astype(np.uint8)
    return Clip(
        images=(image,),
        times=100.0 + 0.1 * np.arange(frames)[:, None],
        world_from_ego=ego,
        world_from_camera=(ego @ MOUNT)[:, None],
        cameras=(LENS,),
        view_names=("front",),
    )


def future(frames):
    return Trajectory(100.1 + 0.1 * np.arange(frames), drive(frames + 1)[1:])


@pytest.fixture(scope="module")
def world():
    codec_config = CodecConfig(latent_channels=4, half_width=4, quarter_width=4, eighth_width=4)
    network = CodecNetwork(codec_config)
    params = nn.unbox(network.init(jax.random.key(0), jnp.zeros((1, 4, 16, 16, 3))))["params"]
    codec = VideoCodec(codec_config, params)
    return JointWorldModel(
        WorldRec.initialize(REC, jax.random.key(1)), WorldGen.from_scratch(GEN, codec, seed=2)
    )


def wall():
    """A scene that fills the left half of the picture with red, ten metres ahead."""
    y, z = np.meshgrid(np.arange(0.3, 8, 0.5), np.arange(-8, 9, 0.5))
    means = np.stack([np.full(y.size, 11.0), y.ravel(), z.ravel()], axis=1).astype(np.float32)
    n = len(means)
    gaussians = make_gaussians(
        means=jnp.asarray(means),
        colors=jnp.broadcast_to(jnp.asarray([0.9, 0.1, 0.1]), (n, 3)),
        scales=jnp.full((n, 3), 0.35),
        opacities=jnp.full(n, 0.95),
    )
    return Scene(gaussians, start=100.0)


def front(pose=MOUNT):
    return Camera(LENS, np.asarray(pose, np.float32))


def test_a_prior_shows_what_is_known_and_is_black_elsewhere():
    prior = render_prior(wall(), stack_cameras([front()]), np.zeros(1, np.float32))
    assert prior.alpha[0, :, :40].mean() > 0.9 and prior.rgb[0, 48, 20, 0] > 0.7
    assert prior.alpha[0, :, 60:].max() < 0.05 and prior.rgb[0, :, 60:].max() < 0.05


def test_key_frames_fill_only_what_was_open(world):
    rows = REC.capacity(1, HEIGHT, WIDTH)
    before = with_room(wall(), rows)
    known = wall().gaussians.capacity
    frame = clip().view(0)
    pose = make_transform(yaw_rotation(np.asarray(0.2)), np.array([0.5, 0.2, 0.0]))
    camera = Camera(LENS, pose @ MOUNT)
    after, count, unfit = extend_scene(
        world.rec, before, frame, (camera,), pose, 100.5, None, known
    )
    assert unfit == 0 and count == np.asarray(after.gaussians.mask)[known:].sum() > 20
    for name in ("means", "colors", "mask"):
        np.testing.assert_array_equal(
            getattr(after.gaussians, name)[:known], getattr(before.gaussians, name)[:known]
        )
    added = np.asarray(after.gaussians.mask).copy()
    added[:known] = False
    uv, depth = camera.project(np.asarray(after.gaussians.means, np.float64)[added])
    alpha = render_prior(before, stack_cameras([camera]), np.full(1, 0.5, np.float32)).alpha[0]
    assert (depth > 0).all()
    assert np.asarray(alpha)[uv[:, 1].astype(int), uv[:, 0].astype(int)].max() < 0.5
    np.testing.assert_allclose(np.asarray(after.gaussians.confidence)[added], 0.5)
    np.testing.assert_allclose(np.asarray(after.gaussians.time)[added], 0.5, atol=1e-5)
    lens = stack_cameras([camera])
    open_before, open_after = (
        1 - np.asarray(render_prior(s, lens, np.full(1, 0.5, np.float32)).alpha).mean()
        for s in (before, after)
    )
    assert open_after < open_before - 0.05


def test_rollouts_repeat_by_seed_and_the_prior_matters(world):
    one = world.rollout(clip(), future(9), seed=0, steps=2)
    assert one.frames.shape == (8, 1, HEIGHT, WIDTH, 3), "trimmed to whole chunks"
    assert one.prior.shape == one.frames.shape and one.prior_alpha.max() > 200
    np.testing.assert_allclose(one.times, 100.1 + 0.1 * np.arange(8))
    again = world.rollout(clip(), future(9), seed=0, steps=2)
    np.testing.assert_array_equal(one.frames, again.frames)
    other = world.rollout(clip(), future(9), seed=1, steps=2)
    assert (one.frames != other.frames).any()
    plain = world.rollout(clip(), future(9), seed=0, steps=2, use_prior=False)
    assert plain.prior is None and plain.scene is None


def test_the_prior_follows_the_trajectory(world):
    straight = world.rollout(clip(), future(4), steps=1)
    left = world.rollout(clip(), future(4).shifted(1.0), steps=1)
    assert np.abs(straight.prior.astype(int) - left.prior).mean() > 1


def test_feedback_grows_the_scene_within_its_buffer(world):
    plain = world.rollout(clip(), future(8), steps=1)
    grown = world.rollout(clip(), future(8), steps=1, key_frames=KeyFrames(holes=0.0))
    rows = REC.capacity(1, HEIGHT, WIDTH)
    own = plain.scene.gaussians
    assert grown.scene.gaussians.capacity == own.capacity + 4 * rows, "whatever the horizon"
    assert len(grown.metrics["key_frames"]) == 2
    added = sum(k["gaussians"] for k in grown.metrics["key_frames"])
    assert grown.scene.gaussians.count() == own.count() + added


def test_what_does_not_fit_into_the_room_is_left_out_and_counted(world):
    before = with_room(wall(), 5)
    known = wall().gaussians.capacity
    pose = make_transform(yaw_rotation(np.asarray(0.2)), np.array([0.5, 0.2, 0.0]))
    place = (Camera(LENS, pose @ MOUNT),), pose, 100.5, None, known
    after, count, unfit = extend_scene(world.rec, before, clip().view(0), *place)
    assert count == 5 and unfit > 15
    assert np.asarray(after.gaussians.mask)[known:].all()
    full, count, more = extend_scene(world.rec, after, clip().view(0), *place[:-1], known + 5)
    assert (count, full.gaussians.capacity) == (0, known + 5) and more > 0


def test_pictures_are_as_high_as_the_generator_asks(world):
    low = JointWorldModel(world.rec, replace(world.gen, config=replace(GEN, height=48)))
    grown = low.rollout(clip(), future(4), steps=1, key_frames=KeyFrames(holes=0.0))
    assert grown.frames.shape == grown.prior.shape == (4, 1, 48, 48, 3)
    seen, added = REC.capacity(1, HEIGHT, WIDTH), REC.capacity(1, HEIGHT, WIDTH)
    assert grown.scene.gaussians.capacity == seen + 4 * added


def test_layout_is_drawn_from_the_tracks_given(world):
    tracks = Tracks(
        times=np.array([100.0]),
        centers=np.array([[[12.0, 0, 0.8]]]),
        quats=np.array([[[1.0, 0, 0, 0]]]),
        sizes=np.array([[4.0, 1.8, 1.6]]),
        valid=np.array([[True]]),
        category=np.zeros(1, np.int32),
        ids=("car",),
    )
    told = world.rollout(clip(), future(4), steps=1, tracks=tracks)
    assert told.layout.max() > 50
    assert world.rollout(clip(), future(4), steps=1).layout is None


def cars(**left):
    """Standing cars twelve metres ahead, each so many metres to the left."""
    n = len(left)
    centers = np.array([[[12.0, y, 0.8]] for y in left.values()]).reshape(n, 1, 3)
    return Tracks(
        times=np.array([100.0]),
        centers=centers,
        quats=np.tile([1.0, 0, 0, 0], (n, 1, 1)),
        sizes=np.tile([4.0, 1.8, 1.6], (n, 1)),
        valid=np.ones((n, 1), bool),
        category=np.zeros(n, np.int32),
        ids=tuple(left),
    )


def test_the_scenes_things_follow_the_tracks_given(world):
    scene = replace(wall(), tracks=cars(red=0.0).on_device(100.0, 4))
    in_its_box = jnp.asarray(scene.gaussians.means) * 0.1 - jnp.asarray([1.1, 0.4, 0.0])
    scene = replace(
        scene,
        gaussians=replace(
            scene.gaussians, means=in_its_box, owner=jnp.ones(len(in_its_box), jnp.int32)
        ),
    )

    def column(**tracks):
        rollout = world.rollout(clip(), future(4), steps=1, scene=scene, **tracks)
        alpha = rollout.prior_alpha[0, 0].astype(float)
        return (alpha.sum(0) * np.arange(WIDTH)).sum() / max(alpha.sum(), 1.0)

    ahead = column()
    assert ahead > 0
    assert column(tracks=cars(other=-3.0, red=0.0)) == ahead
    assert column(tracks=cars(other=-3.0, red=2.0)) < ahead - 8
    assert column(tracks=cars(other=0.0)) == 0


def test_things_are_found_by_id_and_otherwise_in_order():
    scene = replace(wall(), tracks=cars(a=1.0, b=2.0).on_device(100.0, 4))
    found = things_of(scene, cars(b=5.0, c=6.0))
    assert found.ids == ("a", "b") and np.asarray(found.valid)[:, 0].tolist() == [False, True]
    assert found.centers[1, 0, 1] == 5.0
    unnamed = replace(cars(x=1.0, y=2.0, z=3.0), ids=())
    assert things_of(scene, unnamed) is unnamed
    with pytest.raises(DataError, match="give them the ids"):
        things_of(replace(scene, tracks=unnamed.select(np.array([0])).on_device(100.0)), unnamed)


def test_a_rollout_is_saved_whole(world, tmp_path):
    rollout = world.rollout(clip(), future(4), steps=1)
    folder = rollout.save(tmp_path / "rollout")
    assert {p.name for p in folder.iterdir()} >= {"rollout.npz", "metrics.json", "scene.ply"}
    assert json.loads((folder / "metrics.json").read_text())["frames"] == 4
    with np.load(folder / "rollout.npz") as arrays:
        np.testing.assert_array_equal(arrays["frames"], rollout.frames)


def test_too_short_a_trajectory_is_refused(world):
    with pytest.raises(DataError, match="3 frames; one chunk needs 4"):
        world.rollout(clip(), future(3))


def shapes(state):
    return jax.tree.map(lambda x: (x.shape, x.dtype), state)


def test_steps_are_the_rollout_and_the_state_keeps_its_shape(world):
    key_frames = KeyFrames(holes=0.0)
    rollout = world.rollout(clip(), future(12), seed=3, steps=1, key_frames=key_frames)
    state = world.start(clip(), seed=3, key_frames=key_frames)
    first, path = shapes(state), drive(13)[1:]
    for index in range(3):
        part = slice(4 * index, 4 * index + 4)
        times = future(12).times[part]
        chunk, state = world.step(state, path[part], times=times, steps=1)
        np.testing.assert_array_equal(chunk.frames, rollout.frames[part])
        assert shapes(state) == first, "whatever the horizon"
    assert int(state.chunks) == 3 and int(state.row) > int(world.start(clip()).row)


def test_a_copy_is_a_fork_and_a_file_goes_on_bitwise(world, tmp_path):
    scene = replace(wall(), tracks=cars(red=0.0).on_device(100.0, 4))
    options = {"scene": scene, "tracks": cars(red=0.0, other=3.0), "key_frames": KeyFrames()}
    start = world.start(clip(), seed=1, **options)
    _, state = world.step(start, drive(5)[1:], steps=1)
    file = state.save(tmp_path / "state.npz")
    expected, after = world.step(state, drive(9)[5:], steps=1)
    fork = jax.tree.map(lambda x: x, state)
    aside, _ = world.step(fork, drive(9)[5:] + side(1.0), steps=1)
    assert np.abs(aside.prior - expected.prior).max() > 0.1
    for other in (fork, world.start(clip(), seed=7, **options).load(file)):
        again, end = world.step(other, drive(9)[5:], steps=1)
        np.testing.assert_array_equal(again.frames, expected.frames)
        a, b = jax.tree.leaves(end), jax.tree.leaves(after)
        assert all(np.array_equal(numbers(x), numbers(y)) for x, y in zip(a, b, strict=True))


def numbers(leaf):
    typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if typed else np.asarray(leaf)


def side(metres):
    shift = np.zeros((4, 4))
    shift[1, 3] = metres
    return shift


def test_a_copys_things_follow_the_tracks_of_a_step(world):
    """A copy's tracks have forgotten their names; the state has not."""
    scene = replace(wall(), tracks=cars(red=0.0, blue=1.0).on_device(100.0, 4))
    state = jax.tree.map(lambda x: x, world.start(clip(), scene=scene, tracks=cars(red=0.0)))
    chunk, state = world.step(state, drive(5)[1:], tracks=cars(blue=5.0), steps=1)
    assert np.asarray(state.own.valid)[:, 0].tolist() == [False, True]
    assert state.own.centers[1, 0, 1] == 5.0 and chunk.layout.max() > 50
    assert np.asarray(state.scene.tracks.valid)[:, 0].tolist() == [False, True, False, False]


def test_a_state_with_other_boxes_goes_on_from_its_file(world, tmp_path):
    """Its boxes are the file's, whatever the clip's are."""
    scene = replace(wall(), tracks=cars(red=0.0, blue=1.0).on_device(100.0, 4))
    start = world.start(clip(), scene=scene)
    _, state = world.step(start, drive(5)[1:], tracks=cars(blue=5.0, red=1.0, new=2.0), steps=1)
    expected, _ = world.step(state, drive(9)[5:], steps=1)
    back = world.start(clip(), scene=scene).load(state.save(tmp_path / "state.npz"))
    again, _ = world.step(back, drive(9)[5:], steps=1)
    np.testing.assert_array_equal(again.frames, expected.frames)
    np.testing.assert_array_equal(again.layout, expected.layout)
    np.testing.assert_array_equal(again.prior, expected.prior)


def test_poses_and_states_that_do_not_fit_are_refused(world, tmp_path):
    state = world.start(clip(), use_prior=False)
    broken = drive(5)[1:]
    broken[2, 0, 3] = np.nan
    for poses in (drive(3), broken):
        with pytest.raises(DataError, match="needs 4 finite poses"):
            world.step(state, poses)
    for times in ([100.1, 100.2], [100.1, 100.2, 100.2, 100.3], [99.9, 100.1, 100.2, 100.3]):
        with pytest.raises(DataError, match="should rise from after 100 s"):
            world.step(state, drive(5)[1:], times=np.array(times))
    with pytest.raises(UsageError, match="at least 1"):
        KeyFrames(every=0)
    file = state.save(tmp_path / "state.npz")
    for other in (
        world.start(clip()),
        replace(state, names=("rear",)),
        replace(state, style=np.zeros(5, np.int32)),
    ):
        with pytest.raises(DataError, match="the state of another world or clip"):
            other.load(file)
    raw = file.read_bytes()
    for content in (b"", raw[: len(raw) // 2]):
        file.write_bytes(content)
        with pytest.raises(DataError, match="cannot be read"):
            state.load(file)


def test_a_state_keeps_its_pose_when_a_controller_reuses_its_array(world):
    poses = drive(5)[1:]
    _, state = world.step(world.start(clip(), use_prior=False), poses, steps=1)
    poses[:] = 0.0
    assert state.pose[0, 3] == 2.0
