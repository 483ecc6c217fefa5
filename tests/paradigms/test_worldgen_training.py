"""The generator's trainings: latent sets, losses that fall, one loop for both stages."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest.mock import Mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_jax.data.folder import save_folder_clip
from jwm_jax.data.records import decode_clip, encode_clip
from jwm_jax.data.tfds_clips import open_records, write_dataset
from jwm_jax.distributed import MeshConfig, make_mesh
from jwm_jax.errors import DataError, UsageError
from jwm_jax.export.video import has_h264, write_video
from jwm_jax.paradigms import held_out
from jwm_jax.paradigms.latent_encoding import GrowingArray, fill_once, open_latents
from jwm_jax.paradigms.latents import LatentSource
from jwm_jax.paradigms.pretrain import PretrainExperiment
from jwm_jax.paradigms.teacher_forcing import TeacherForcingExperiment
from jwm_jax.paradigms.worldgen_task import x0_loss
from jwm_jax.scene import Clip
from jwm_jax.scene.cameras import Intrinsics
from jwm_jax.scene.lane_map import LaneMap
from jwm_jax.training.loop import fit
from jwm_jax.training.optimizer import OptimizerConfig
from jwm_jax.training.start import layout, load_source
from jwm_jax.worldgen import CodecConfig, VideoCodec, WorldGen, WorldGenConfig
from jwm_jax.worldgen.codec_network import CodecNetwork
from jwm_jax.worldgen.forward import Prediction
from jwm_jax.worldgen.transformer import init_params
from jwm_jax.worldrec import WorldRec

FRAMES, HEIGHT, WIDTH = 13, 16, 32
SOURCE = {"frames": FRAMES, "window": 3, "height": HEIGHT, "width": WIDTH, "held_out": 1}


def make_clip(seed: int) -> Clip:
    """A camera that looks ahead while the vehicle drives 0.5 m a frame along a lane line."""
    random = np.random.default_rng(seed)
    world_from_ego = np.tile(np.eye(4), (FRAMES, 1, 1))
    world_from_ego[:, 0, 3] = 0.5 * np.arange(FRAMES)
    ego_from_camera = np.asarray([[0, 0, 1, 1.0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1.0]])
    line = np.stack([np.linspace(0, 40, 9), np.full(9, 1.5), np.zeros(9)], axis=-1)
    return Clip(
        images=(random.integers(0, 255, (FRAMES, HEIGHT, WIDTH, 3), np.uint8),),
        times=0.1 * np.arange(FRAMES, dtype=np.float64)[:, None],
        world_from_ego=world_from_ego,
        world_from_camera=(world_from_ego @ ego_from_camera)[:, None],
        cameras=(
            Intrinsics(
                K=np.asarray([[20.0, 0, 16], [0, 20, 8], [0, 0, 1]]), width=WIDTH, height=HEIGHT
            ),
        ),
        view_names=("front",),
        map=LaneMap((line,), ("lane_solid",)),
        style={"weather": "rain", "time_of_day": "noon"},
        name=f"clip {seed}",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of three clips and a codec beside it."""
    root = tmp_path_factory.mktemp("worldgen")
    records = [(f"clip{i}", encode_clip(make_clip(i), "png")) for i in range(3)]
    write_dataset(root / "clips", {"train": records})
    config = CodecConfig(latent_channels=4, half_width=4, quarter_width=4, eighth_width=4)
    network = CodecNetwork(config)
    params = nn.unbox(network.init(jax.random.key(0), jnp.zeros((1, 4, 16, 16, 3))))["params"]
    VideoCodec(config, params).save_pretrained(root / "codec", card="For a test.")
    return root


def stored_clip(folder, index: int) -> Clip:
    """A clip in the data set's own order."""
    return decode_clip(open_records(folder / "clips")[index])


def model_config(folder) -> WorldGenConfig:
    return WorldGenConfig(
        height=HEIGHT,
        dim=16,
        num_layers=2,
        num_heads=2,
        ffn_dim=16,
        freq_dim=16,
        latent_channels=4,
        head_channels=4,
        codec=str(folder / "codec"),
    )


def open_set(folder, **changes):
    source = LatentSource(datasets=(str(folder / "clips"),), **{**SOURCE, **changes})
    codec = VideoCodec.from_pretrained(folder / "codec")
    messages = []
    data = open_latents(
        folder / "latents", source, model_config(folder), codec, say=messages.append
    )
    return data, messages


def test_rows_are_drawn_from_real_drives_at_their_share(folder, tmp_path):
    """Whatever part of a batch a process loads; a street's rows are its others."""
    drive = replace(make_clip(9), name="drive", style=None)
    save_folder_clip(drive, tmp_path / "drive")
    source = LatentSource(
        datasets=(str(folder / "clips"),), clips=(f"folder:{tmp_path / 'drive'}",), **SOURCE
    )
    fields = {"name": "x", "batch_size": 4, "model": model_config(folder), "source": source}
    fields |= {"latents": str(tmp_path / "latents")}
    task = TeacherForcingExperiment(clips_share=0.3, **fields).task()
    assert np.asarray(task.data.real).sum() == 2  # the drive and its mirror image
    batches = task.batches(5, slice(None))
    drawn = [next(batches)[1].style[:, 0] == 0 for _ in range(100)]
    assert abs(np.mean(drawn) - 0.3) < 0.06
    later = task.batches(7, slice(2, 4))
    np.testing.assert_array_equal(next(later)[1].style[:, 0] == 0, drawn[2][2:])
    for share, clips, said in ((1.5, source.clips, "from 0 to 1"), (0.5, (), "only with drives")):
        with pytest.raises(UsageError, match=said):
            changed = {**fields, "source": replace(source, clips=clips)}
            TeacherForcingExperiment(clips_share=share, **changed)
    none = TeacherForcingExperiment(clips_share=1.0, **fields).task()
    none.data = replace(task.data, real=np.zeros(len(task.data.real), bool))
    with pytest.raises(UsageError, match="both streets and real drives"):
        next(none.batches(0, slice(None)))


def test_clips_are_encoded_once_and_windows_start_from_stills(folder):
    data, messages = open_set(folder)
    assert messages and open_set(folder)[1] == []
    assert data.latents.shape == (6, 1, 4, 2, 4, 4) and data.stills.shape[2] == 2
    assert np.asarray(data.held_out).tolist() == [False] * 4 + [True] * 2
    codec = VideoCodec.from_pretrained(folder / "codec")
    picture = stored_clip(folder, 1).view(0).astype(np.float32) / 255
    latents, conditions = data.window(2, 1, 3)
    np.testing.assert_allclose(latents[0, 0, :1], codec.encode(picture[4:5]), atol=2e-2)
    np.testing.assert_allclose(latents[0, 0, 1:], codec.encode(picture)[2:4], atol=2e-2)
    assert conditions.ego_valid.tolist() == [[0, 1, 1]]
    np.testing.assert_allclose(conditions.ego_motion[0, 1:, :, 0], 0.5, atol=1e-5)
    assert conditions.layout_valid.all() and not conditions.prior_mask.any()
    assert conditions.style.tolist() == [[1, 4]]


def test_real_drives_and_films_join_with_what_they_have(folder, tmp_path):
    """A wide drive at 20 Hz with poses and no map, and the same drive as a film."""
    if not has_h264():
        pytest.skip("PyAV has no H.264 encoder here")
    clip = make_clip(7)
    wide = replace(
        clip,
        images=(np.repeat(np.concatenate([clip.view(0)] * 2, axis=2), 2, axis=0),),
        times=0.05 * np.arange(2.0 * FRAMES)[:, None],
        world_from_ego=np.repeat(clip.world_from_ego, 2, axis=0),
        world_from_camera=np.repeat(clip.world_from_camera, 2, axis=0),
        cameras=(replace(clip.cameras[0], width=2 * WIDTH),),
        map=None,
    )
    save_folder_clip(wide, tmp_path / "drive")
    write_video(tmp_path / "film.mp4", wide.view(0), 20)
    specs = (f"folder:{tmp_path}/drive", f"video:{tmp_path}/film.mp4")
    data, _ = open_set(folder, clips=specs)
    real = np.arange(6, 6 + 2 * 2 * 3)  # mirrored or not, three windows across, two drives
    assert len(data.latents) == 6 + len(real) and not np.asarray(data.held_out)[real].any()
    assert not np.asarray(data.layout_valid)[real].any()
    np.testing.assert_array_equal(np.asarray(data.ego_valid)[real], [1.0] * 6 + [0.0] * 6)
    assert np.abs(data.rays[6:12]).min(axis=(1, 2, 3)).max() > 0 and not np.any(data.rays[12:])
    codec = VideoCodec.from_pretrained(folder / "codec")
    first = clip.view(0).astype(np.float32) / 255
    np.testing.assert_allclose(data.latents[6, 0], codec.encode(first), atol=2e-2)
    np.testing.assert_allclose(data.ego_motion[6, 1:, :, 0], 0.5, atol=1e-5)


def test_of_two_that_fill_a_folder_one_waits(tmp_path):
    filled = []

    def fill(part):
        filled.append(part)
        time.sleep(0.2)
        (part / "rows.npy").touch()

    folder = tmp_path / "set"
    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(fill_once, folder, fill) for _ in range(2)]:
            job.result()
    assert len(filled) == 1 and {p.name for p in folder.iterdir()} == {"done", "rows.npy"}

    def fail(part):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fill_once(tmp_path / "other", fail)
    fill_once(tmp_path / "other", fill)
    assert (tmp_path / "other" / "rows.npy").is_file()


def test_a_mirrored_example_is_the_mirrored_clip(folder):
    data, _ = open_set(folder)
    codec = VideoCodec.from_pretrained(folder / "codec")
    mirrored = stored_clip(folder, 0).view(0)[:, :, ::-1].astype(np.float32) / 255
    np.testing.assert_allclose(data.latents[1, 0], codec.encode(mirrored), atol=2e-2)
    signs = np.asarray([1, -1, -1, 1], np.float32)
    np.testing.assert_allclose(data.ego_motion[1], data.ego_motion[0] * signs)


def test_priors_plug_in_and_leave_the_first_frame_alone(folder):
    def prior(clip):
        shape = (1, FRAMES, HEIGHT, WIDTH)
        return np.full((*shape, 3), 0.5, np.float32), np.full(shape, 0.25, np.float32)

    source = LatentSource(datasets=(str(folder / "clips"),), **SOURCE)
    codec = VideoCodec.from_pretrained(folder / "codec")
    config = model_config(folder)
    data = open_latents(folder / "latents", source, config, codec, prior, "grey", print)
    mask = np.asarray(data.prior_mask[0, 0])
    assert not mask[0].any() and (mask[1:] == 0.25).all()
    _, conditions = data.window(0, 1, 3)
    assert not conditions.prior_mask[0, 0, 0].any()
    assert conditions.prior[0, 0, 1:].any() and conditions.prior_mask[0, 0, 1:].all()


def test_both_stages_train_and_the_second_starts_from_the_first(folder, tmp_path):
    shared = {
        "batch_size": 2,
        "model": model_config(folder),
        "source": LatentSource(datasets=(str(folder / "clips"),), **SOURCE),
        "latents": str(folder / "latents"),
        "optimizer": OptimizerConfig(learning_rate=3e-3, warmup_steps=1, ema_decay=0.0),
        "log_every": 5,
    }
    one = jax.devices()[:1]
    first = PretrainExperiment(name="first", steps=10, **shared)
    result = fit(first, first.task(), tmp_path / "first", devices=one, quiet=True)
    assert result.status == "finished"
    second = TeacherForcingExperiment(
        name="second", steps=10, init_from=str(tmp_path / "first" / "model"), **shared
    )
    task = second.task()
    place = layout(second, task, make_mesh(MeshConfig(data=1)))
    started = load_source("model", task.nets(second)["model"], place.params["model"])
    trained = jax.device_get(result.state.nets["model"].params)
    np.testing.assert_allclose(
        started["head"]["out"]["bias"], trained["head"]["out"]["bias"], atol=1e-3
    )
    result = fit(second, second.task(), tmp_path / "second", devices=one, quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").open()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]
    assert {"held_out_loss", "rollout_mse_1", "copy_mse_2"} <= set(result.evaluation)
    gen = WorldGen.from_pretrained(tmp_path / "second" / "model")
    session = gen.start(np.zeros((HEIGHT, WIDTH, 3), np.float32))
    assert gen.step(session, steps=1)[0].shape == (4, HEIGHT, WIDTH, 3)


def test_the_middle_head_learns_where_its_loss_has_a_weight(folder):
    config = replace(model_config(folder), num_layers=4, middle_head=True)
    shared = {
        "model": config,
        "source": LatentSource(datasets=(str(folder / "clips"),), **SOURCE),
        "latents": str(folder / "latents"),
        "batch_size": 2,
    }
    params = nn.unbox(init_params(config, jax.random.key(0)))
    batch = jax.device_put(
        next(PretrainExperiment(name="on", **shared).task().batches(0, slice(0, 2)))
    )
    key = jax.random.key(1)
    for kind in (PretrainExperiment, TeacherForcingExperiment):
        for weight in (0.0, 0.5):
            loss = kind(name="on", middle_weight=weight, **shared).task().loss
            _, metrics = jax.eval_shape(loss, params, batch, key)
            assert ("middle_mse" in metrics) == (weight > 0)
    loss = PretrainExperiment(name="on", middle_weight=0.5, **shared).task().loss
    gradient = jax.jit(jax.grad(loss, has_aux=True))(params, batch, key)[0]
    assert np.any(gradient["middle_head"]["out"]["bias"])
    shape = (1, 1, 1, 2, 2, 4)
    head, middle = (Prediction(jnp.full(shape, value), jnp.zeros(shape)) for value in (1.0, 3.0))
    total, metrics = x0_loss(
        head._replace(middle=middle), jnp.zeros(shape), jnp.full((1, 1), 2.0), jnp.ones(shape), 0.5
    )
    assert total.tolist() == [2.0 * 1.0 + 0.5 * 2.0 * 9.0] and metrics["middle_mse"].tolist() == [9]
    for model, weight in ((model_config(folder), 0.5), (config, -1.0)):
        with pytest.raises(UsageError, match="above 0 only with model"):
            PretrainExperiment(name="off", middle_weight=weight, **{**shared, "model": model})


def test_the_held_out_loss_sees_the_prior(folder, monkeypatch):
    def truth(rec, clip, depth):
        pictures = clip.view(0)[None].astype(np.float32) / 255
        return pictures, np.ones(pictures.shape[:-1], np.float32)

    monkeypatch.setattr(held_out, "first_instant_prior", truth)
    config = model_config(folder)
    params = nn.unbox(init_params(config, jax.random.key(0)))
    gen = WorldGen(config, params, VideoCodec.from_pretrained(folder / "codec"))
    rows = held_out.held_out_flow_loss(Mock(spec=WorldRec), gen, [make_clip(0)])
    assert rows["prior"]["x0 mse"] < 0.1 * rows["no prior"]["x0 mse"]
    assert rows["prior"]["flow loss"] < 0.1 * rows["no prior"]["flow loss"]


def test_an_array_grows_on_disk_row_by_row(tmp_path):
    rows = np.random.default_rng(0).normal(size=(12, 3, 2)).astype(np.float16)
    array = GrowingArray(tmp_path / "x.npy")
    for row in rows:
        array.append(row)
    with pytest.raises(ValueError, match=r"a row of \(3,\) float64 among rows of \(3, 2\) float16"):
        array.append(np.zeros(3))
    array.close()
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy", mmap_mode="r"), rows)


def test_batches_are_a_function_of_seed_and_step(folder):
    experiment = PretrainExperiment(
        name="order",
        batch_size=4,
        model=model_config(folder),
        source=LatentSource(datasets=(str(folder / "clips"),), **SOURCE),
        latents=str(folder / "latents"),
    )
    task = experiment.task()
    from_start = task.batches(0, slice(0, 4))
    next(from_start)
    later = next(task.batches(1, slice(2, 4)))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[2:], b), next(from_start), later)


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(DataError, match="jwm data make"):
        codec = VideoCodec.from_pretrained(folder / "codec")
        source = LatentSource(datasets=(str(tmp_path / "none"),))
        open_latents(tmp_path, source, model_config(folder), codec)
    shared = {"name": "no", "init_from": str(tmp_path / "nothing")}
    experiment = TeacherForcingExperiment(
        model=model_config(folder), source=LatentSource(**SOURCE), **shared
    )
    with pytest.raises(UsageError, match="source of the network 'model': no worldgen model"):
        load_source("model", experiment.task().nets(experiment)["model"], {})
    with pytest.raises(UsageError, match=r"source.height 96 and model.height 16 must be equal"):
        TeacherForcingExperiment(model=model_config(folder), **shared)
    with pytest.raises(UsageError, match="window"):
        LatentSource(frames=17, window=7)
